"""Tests of the GPU report on a machine without a GPU: sections, stored states, red tests, and the written report."""

from __future__ import annotations

import ast
import copy
import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import cached_decoding, machine, peers, report, sampler_throughput, table, training_step
from benchmarks.gpu_report import __main__ as command
from benchmarks.gpu_report import (
    ceilings,
    checks,
    gate,
    kernels,
    programs,
    runner,
    section,
    sections,
    shard,
    small,
    state,
    summary,
    targets,
    wheels,
)
from benchmarks.gpu_report.ceilings import Ceilings
from benchmarks.gpu_report.gate import TRITON
from benchmarks.gpu_report.run import Run
from benchmarks.gpu_report.state import State
from benchmarks.kernels import cases, operations
from benchmarks.kernels.cases import Case
from dllm_kernels.testing import assert_no_worse

CPU = torch.device("cpu")
TESTS = Path(__file__).parent
NOT_ON_GPUS = {
    "kernels/test_align_tokens.py",  # an operation of the CPU
    "kernels/test_extension.py",  # the C++ extension
    "kernels/test_offline.py",  # compilation for GPUs that are not there
    "kernels/test_testing.py",  # the rule of accuracy itself
    "kernels/test_tune.py",  # what is kept of tuning
}
JUNIT = """<testsuites><testsuite><testcase name="one"/><testcase name="two"><skipped/></testcase>
<testcase name="three"><failure message="assert 1 == 2&#10;more"/></testcase></testsuite></testsuites>"""

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="rehearsed on machines without a GPU"),
]


def named(name: str) -> sections.Section:
    return next(section for section in sections.SECTIONS if section.name == name)


def make_red(out: Path, file: str) -> None:
    """Store a failed test of this file."""
    (out / "tests").mkdir(parents=True, exist_ok=True)
    (out / "tests" / state.FILE).write_text(json.dumps({file: {"red": ["test_truth: assert 1 == 2"]}}))


@pytest.fixture
def dry(tmp_path):
    """A dry run of a section in this process."""

    def make(name: str, seconds: float = 60.0) -> Run:
        run = Run(named(name), tmp_path, time.monotonic() + seconds, dry=True)
        run.folder.mkdir(parents=True, exist_ok=True)
        return run

    return make


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> list[dict]:
    """Rows as a GPU would write them, for every operation, measured on tiny shapes on the CPU."""
    run, found = Run(named("kernels-sampling"), tmp_path_factory.mktemp("out"), time.monotonic() + 600, dry=True), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "REPEATS", 2)
        for case in dict.fromkeys(cases.tiny(case) for case in cases.on_gpus()):
            found.append(kernels.row_of(case, run, compiles=False) | {"ceilings": {"copy": 1e9, "product": 1e9}})
            found[-1]["floor_seconds"] = case.floor_seconds(1e9, 1e9)
    return found


@pytest.fixture
def rows(measured) -> list[dict]:
    """A copy of the measured rows that a test may change."""
    return copy.deepcopy(measured)


class TestDryRun:
    @pytest.mark.parametrize(
        "asked",
        [
            ["ceilings", "kernels-loss"],
            pytest.param(
                ["tests", "ceilings", "kernels-sampling", "kernels-loss", "sampling-8b", "sampling-cached", "training"],
                marks=pytest.mark.exhaustive,
            ),
        ],
        ids=["some", "all"],
    )
    def test_sections_run_and_nothing_is_timed(self, asked, tmp_path, capsys):
        assert command.main(["--out", str(tmp_path), "--section", *asked]) == 0
        printed = capsys.readouterr().out
        assert printed.startswith(command.DRY)
        written = {path.name for path in tmp_path.rglob("*.json")}
        assert written == ({state.STATE, state.FILE} if "tests" in asked else {state.STATE})
        text = (tmp_path / summary.FILE).read_text()
        assert summary.NOTHING in text and text.count("| done, not timed |") == len(asked)
        assert "tokens/s" not in "".join(path.read_text() for path in tmp_path.rglob(runner.LOG))
        assert command.main(["--out", str(tmp_path), "--section", *asked]) == 0
        assert capsys.readouterr().out.count("done before") == len(asked)

    def test_what_was_measured_is_not_replaced(self, tmp_path, capsys):
        State("ceilings", "done", "measured", False).write(tmp_path)
        assert command.main(["--out", str(tmp_path), "--section", "ceilings"]) == 2
        assert "a dry run would replace" in capsys.readouterr().err
        assert state.read(tmp_path, "ceilings").mode == "measured"

    def test_a_folder_that_cannot_be(self, tmp_path, capsys):
        (tmp_path / "file").write_text("")
        for out in ("file", "file/below"):
            assert command.main(["--out", str(tmp_path / out), "--section", "ceilings"]) == 2
        assert capsys.readouterr().err.count("gpu_report: [Errno") == 2

    def test_a_section_for_machines_without_a_gpu(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert command.main(["--out", str(tmp_path), "--section", "static"]) == 2
        assert "machines without a GPU" in capsys.readouterr().err

    def test_unknown_section(self, capsys):
        with pytest.raises(SystemExit):
            command.main(["--section", "kernels", "weather"])
        assert "must be among" in capsys.readouterr().err
        with pytest.raises(ValueError, match="got weather"):
            sections.chosen(["weather"])

    def test_budgets_add_up_to_nine_minutes(self):
        assert sum(each.seconds for each in sections.SECTIONS) <= sections.SECONDS == 9 * 60
        assert sum(each.limit(quick=True) for each in sections.SECTIONS) <= sections.SECONDS / 2


class TestMeasuring:
    """Measurements of a GPU report, with the CPU in place of the GPU."""

    @pytest.fixture
    def measuring(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Run, "device", property(lambda run: CPU))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(machine, "bandwidth", lambda device: {"read": 2e9, "copy": 1e9})
        monkeypatch.setattr(machine, "matmul_speed", lambda device, dtype: 1e10)

        def make(name: str, seconds: float = 600.0) -> Run:
            run = Run(named(name), tmp_path, time.monotonic() + seconds, quick=True)
            run.folder.mkdir(parents=True, exist_ok=True)
            return run

        return make

    def test_every_kind_of_section_writes_rows_that_make_a_report(self, measuring, tmp_path, monkeypatch):
        ceilings.run(measuring("ceilings"))
        found = [
            cases.tiny(Case("gumbel_argmax", 64, "llada-8b")),
            cases.tiny(Case("linear_cross_entropy", 64, "llada-8b")),
        ]
        monkeypatch.setattr(cases, "on_gpus", lambda: iter(found))
        monkeypatch.setattr(operations, "programs", functools.partial(_without_compiler, operations.programs))
        for name in ("kernels-sampling", "kernels-loss"):
            kernels.run(measuring(name))
        with programs.tiny_model(causal=False) as model:
            sizes = (
                "--prompt-length 6 --gen-length 4 --block-length 4 --steps 4 --device cpu --providers card ours-eager"
            )
            call = programs.Call("sampler_throughput", f"--model {model} {sizes}")
            monkeypatch.setitem(programs.CALLS, "sampling-8b", (call,))
            run = measuring("sampling-8b")
            programs.run(run)
            assert not run.failures and not run.left_out
            late = measuring("sampling-compiled", seconds=-1.0)
            programs.run(late)
            assert len(late.left_out) == 1
        written = summary.reportable(tmp_path)
        assert [row["kind"] for row in written] == ["ceilings", "kernel", "kernel", "sampler"]
        assert all(
            row["command"].startswith("python -m benchmarks.gpu_report --section kernels") for row in written[1:3]
        )
        assert written[1]["floor_seconds"] == 2 * 300 * 4 / 1e9
        assert set(written[2]["providers"]) >= {"ours", "eager", "full logits"}
        text = summary.write(tmp_path, [], dry=False)
        assert "Not in a table" not in text and "| gumbel_argmax | tiny, 2 x 300 float32, T 0 |" in text

    def test_gradients_count_to_the_memory_of_the_step_that_makes_them(self, measuring, monkeypatch):
        kept = []

        def step(inputs):
            kept.append(inputs.weight.grad is not None)
            inputs.weight.grad = torch.zeros_like(inputs.weight)

        monkeypatch.setattr(operations, "programs", lambda case, **how: {"ours": step})
        kernels.measured(cases.tiny(Case("linear_cross_entropy", 64, "llada-8b")), measuring("kernels-loss"), False)
        assert kept[: kernels.WARMUP + 2] == [False, True, False, True]

    def test_what_fails_in_a_later_round_has_no_time(self, measuring, monkeypatch):
        calls = iter(range(kernels.WARMUP + 3))
        monkeypatch.setattr(operations, "programs", lambda case, **how: {"ours": lambda inputs: next(calls)})
        case = cases.tiny(Case("gumbel_argmax", 64, "llada-8b"))
        found = kernels.measured(case, measuring("kernels-sampling"), False)
        assert "StopIteration" in found["ours"]["error"] and "seconds" not in found["ours"]

    def test_a_program_that_fails_is_told(self, measuring, monkeypatch):
        call = programs.Call("training_step", "--model nowhere --device cpu")
        monkeypatch.setitem(programs.CALLS, "training", (call,))
        run = measuring("training")
        programs.run(run)
        assert run.failures == ["training_step --model nowhere --device cpu: exit status 2"]

    def test_a_program_that_raises_keeps_no_other_out(self, measuring, monkeypatch):
        calls = [programs.Call(name, "--fails") for name in ("training_step", "cached_decoding")]
        monkeypatch.setitem(programs.CALLS, "training", calls)
        run, raised = measuring("training"), [torch.OutOfMemoryError("no memory"), SystemExit(2)]

        def main(words):
            assert "--budget" in words
            raise raised.pop(0)

        monkeypatch.setattr(programs, "main_of", lambda program: main)
        run.quick = False
        programs.run(run)
        reasons = ["OutOfMemoryError: no memory", "exit status 2"]
        wanted = [f"{call.program} --fails: {why}" for call, why in zip(calls, reasons, strict=True)]
        assert run.failures == wanted

    def test_programs_begin_no_round_after_their_budget(self, tmp_path, capsys):
        many = ["--repeats", "9", "--budget", "1e-9", "--device", "cpu", "--out", str(tmp_path)]
        with programs.tiny_model(causal=False) as model:
            words = "--batch 2 --length 16 --dtype float32 --attention eager --providers ours --model".split()
            assert training_step.main([*words, model, *many]) == 0
        words = programs.TINY["cached_decoding"].split()
        assert cached_decoding.main([*words, *many]) == 0
        runs = [each["seconds"]["runs"] for row in _rows(tmp_path) for each in row.get("providers", {}).values()]
        runs += [each["call_seconds"]["runs"] for row in _rows(tmp_path) for each in row.get("results", [])]
        assert runs == [1] * 5
        with pytest.raises(SystemExit):
            training_step.parse(["--budget", "0"])

    def test_checks_are_written_as_they_end(self, measuring, tmp_path, monkeypatch):
        said = [checks.Check(TRITON, [sys.executable, "-c", "raise SystemExit('broken')"])]
        said.append(checks.Check("compute-sanitizer truncation_floor", [sys.executable, "-c", ""]))
        monkeypatch.setattr(checks, "checks", lambda folder, dry: said)
        run = measuring("tests")
        checks.run(run)
        assert run.failures == [f"{TRITON}: exit status 1: broken"] == gate.failed_checks(tmp_path, "truncation_floor")
        assert gate.failed_checks(tmp_path, "masked_cross_entropy") == []
        assert not gate.tested(tmp_path, ["truncation_floor"])

    def test_a_section_that_began_is_red_until_it_ends(self, measuring, tmp_path, monkeypatch):
        stuck = checks.Check(TRITON, [sys.executable, "-c", "import time; time.sleep(60)"])
        monkeypatch.setattr(checks, "checks", lambda folder, dry: [stuck])
        checks.run(measuring("tests", seconds=0.2))
        assert "did not finish" in gate.failed_checks(tmp_path, "gumbel_argmax")[0]


def _rows(folder: Path) -> list[dict]:
    return [report.read_row(path) for path in folder.glob("*.json")]


def _without_compiler(programs_of, case, *, impl="auto", backend=None):
    """Only programs that are not compiled: compiling takes seconds and is tested elsewhere."""
    return programs_of(case, impl=impl)


class TestRunner:
    @pytest.fixture
    def ended(self, monkeypatch):
        """Sections end with given states, without running; the list of those that were started."""
        outcomes, started = {}, []

        def run_section(section, out, seconds, *, dry, quick):
            started.append((section.name, seconds))
            status = outcomes.get(section.name, "done")
            failures = ["it broke"] if status == "failed" else []
            return State(section.name, status, "dry" if dry else "measured", quick, seconds=10.0, failures=failures)

        monkeypatch.setattr(runner, "run_section", run_section)
        return outcomes, started

    def test_finished_sections_are_kept_and_failed_ones_run_again(self, ended, tmp_path, capsys):
        outcomes, started = ended
        outcomes["kernels-loss"] = "failed"
        asked = sections.chosen(["kernels", "training"])
        states = runner.run(asked, tmp_path)
        assert [state.fine for state in states] == [True, True, False, True]
        assert "failures: it broke" in capsys.readouterr().out
        started.clear()
        outcomes.clear()
        assert all(state.fine for state in runner.run(asked, tmp_path))
        assert [name for name, _ in started] == ["kernels-loss"]
        started.clear()
        runner.run(asked, tmp_path, again=True)
        assert len(started) == 4

    def test_a_dry_or_quick_run_does_not_stand_for_a_whole_one(self, ended, tmp_path):
        _, started = ended
        for how in ({"dry": True}, {"quick": True}, {}):
            started.clear()
            runner.run(sections.chosen(["ceilings"]), tmp_path, **how)
            assert len(started) == 1

    def test_a_whole_run_stands_for_a_quick_one(self, ended, tmp_path):
        _, started = ended
        for how in ({}, {"quick": True}):
            runner.run(sections.chosen(["ceilings"]), tmp_path, **how)
        assert len(started) == 1

    def test_sections_done_before_hand_on_their_seconds(self, ended, tmp_path):
        outcomes, started = ended
        outcomes["training"] = "failed"
        for _ in range(2):
            runner.run(sections.chosen(["ceilings", "training"]), tmp_path)
        assert started[-1] == ("training", sections.SECONDS)

    def test_words_after_the_notes(self, tmp_path):
        notes = {name: [] for name in runner.NOTES}
        log = tmp_path / runner.LOG
        log.write_text(f'{{"other": 1}}\n{json.dumps(notes)}\nresource_tracker: leaked semaphores\n{{broken\n')
        assert runner.notes_of(log) == notes
        log.write_text("Traceback\n[1]\n")
        assert runner.notes_of(log) is None

    def test_a_section_ends_with_its_report(self, tmp_path):
        """A report that was killed leaves no running process."""
        child = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(60)"
        part = f"""
import os, subprocess, sys, threading
from benchmarks.gpu_report import section
threading.Thread(target=section.end_with, args=(os.getppid(),), daemon=True).start()
subprocess.run([sys.executable, "-c", {child!r}])
"""
        whole = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {part!r}], start_new_session=True)
"""
        report_ = subprocess.Popen([sys.executable, "-c", whole], cwd=machine.ROOT, stdout=subprocess.PIPE, text=True)
        number = int(report_.stdout.readline())
        os.kill(number, 0)  # it runs
        report_.kill()
        report_.wait()
        assert report_.stdout.read() == ""  # the end of what it writes: it has ended, too, a minute too soon

    def test_seconds_that_are_left_over_are_handed_on(self, ended, tmp_path):
        _, started = ended
        runner.run(sections.SECTIONS, tmp_path)
        assert dict(started)["tests"] == 135 and dict(started)["ceilings"] == 15 + (135 - 10)
        assert dict(started)["kernels-sampling"] == 65 + (135 - 10) + (15 - 10)

    def test_a_section_asked_for_alone_has_all_the_seconds(self, ended, tmp_path):
        _, started = ended
        runner.run(sections.chosen(["tests"]), tmp_path / "whole")
        runner.run(sections.chosen(["tests"]), tmp_path / "quick", quick=True)
        assert started == [("tests", sections.SECONDS), ("tests", sections.SECONDS / 2)]

    def test_a_section_that_takes_too_long_is_stopped(self, tmp_path):
        ended = runner.run_section(named("ceilings"), tmp_path, 0.05, dry=True, quick=False)
        assert ended.status == "failed" and ended.reason == "stopped after 0 s" and not ended.fine

    def test_a_crash_is_told_and_ends_in_an_exit_status(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(runner.sys, "executable", "/bin/false")
        assert command.main(["--out", str(tmp_path), "--section", "ceilings"]) == 1
        assert state.read(tmp_path, "ceilings").reason == "exit status 1: no output"
        assert "| ceilings | failed, not timed |" in capsys.readouterr().out


class TestChecks:
    def test_every_test_for_gpus_stands_behind_something(self):
        behind = {file for files in gate.FILES.values() for file in files}
        files = {str(path.relative_to(TESTS)): path for path in TESTS.rglob("test_*.py")}
        marked = {name for name, path in files.items() if "mark.gpu" in path.read_text() and path != Path(__file__)}
        kernels = {name for name in files if name.startswith("kernels/")} - NOT_ON_GPUS
        assert marked | kernels <= behind <= set(files)
        assert set(gate.FILES) >= set(operations.OPERATIONS)
        assert {name for each in sections.SECTIONS for name in each.needs} <= set(gate.FILES)

    def test_what_pytest_wrote(self, tmp_path):
        junit = tmp_path / "a.xml"
        junit.write_text(JUNIT)
        found = checks.parsed(junit)
        assert found == {"passed": 1, "skipped": 1, "red": ["three: assert 1 == 2"]}

    def test_a_check_that_fails_or_hangs_is_red(self):
        failing = checks.Check("a", [sys.executable, "-c", "raise SystemExit('no such device')"])
        assert checks.outcome(failing, time.monotonic() + 60)["red"] == ["exit status 1: no such device"]
        hanging = checks.Check("a", [sys.executable, "-c", "import time; time.sleep(60)"])
        assert "did not finish" in checks.outcome(hanging, time.monotonic() + 0.1)["red"][0]
        assert "no time" in checks.outcome(hanging, time.monotonic() - 1)["red"][0]

    def test_shards_share_all_tests(self):
        hook = SimpleNamespace(pytest_deselected=lambda items: None)
        ran = []
        for number in (1, 2, 3):
            config, items = SimpleNamespace(getoption=lambda name, n=number: f"{n}/3", hook=hook), list("abcdefgh")
            shard.pytest_collection_modifyitems(config, items)
            ran += items
        assert sorted(ran) == list("abcdefgh")

    def test_shared_files_are_named_by_their_part(self, tmp_path):
        found = {check.name: check.command for check in checks.checks(tmp_path, dry=False)}
        assert {gate.file_of(name) for name in found} >= {file for files in gate.FILES.values() for file in files}
        assert "--shard=2/5" in found[f"{TRITON} 2/5"]
        make_red(tmp_path, f"{TRITON} 2/5")
        assert gate.failed_checks(tmp_path, "truncation_floor") == [f"{TRITON} 2/5: test_truth: assert 1 == 2"]

    def test_a_file_whose_tests_are_all_skipped_proves_nothing(self, tmp_path):
        junit = tmp_path / "a.xml"
        junit.write_text('<testsuite><testcase name="one"><skipped/></testcase></testsuite>')
        check = checks.Check("a", [sys.executable, "-c", ""], junit)
        assert checks.outcome(check, time.monotonic() + 60)["red"] == ["no test ran"]
        assert checks.outcome(check._replace(all_skipped=True), time.monotonic() + 60)["red"] == []

    def test_compute_sanitizer_where_it_is_installed(self, tmp_path, monkeypatch):
        before = checks.checks(tmp_path, dry=False)
        monkeypatch.setattr(checks.shutil, "which", lambda name: f"/opt/{name}")
        added = checks.checks(tmp_path, dry=False)[len(before) :]
        assert [check.name for check in added] == [f"compute-sanitizer {op}" for op in added_ops()]
        assert all(check.command[0] == "/opt/compute-sanitizer" for check in added)

    def test_red_tests_withhold_an_operation(self, dry, monkeypatch, tmp_path):
        make_red(tmp_path, "kernels/test_gumbel_argmax.py")
        rehearsed = []
        monkeypatch.setattr(kernels, "rehearse", rehearsed.append)
        run = dry("kernels-sampling")
        kernels.run(run)
        assert {case.op for case in rehearsed} == set(sections.SAMPLING_OPS) - {"gumbel_argmax"}
        assert run.withheld == ["gumbel_argmax: kernels/test_gumbel_argmax.py: test_truth: assert 1 == 2"]

    def test_red_tests_withhold_a_whole_section(self, monkeypatch, tmp_path, capsys):
        make_red(tmp_path, TRITON)
        monkeypatch.setattr(programs, "run", lambda run: pytest.fail("measured in spite of red tests"))
        assert section.main(["sampling-8b", str(tmp_path), "--seconds", "60", "--dry"]) == 1
        assert "test_truth" in json.loads(capsys.readouterr().out.splitlines()[-1])["withheld"][0]

    def test_red_tests_keep_rows_out_of_the_report(self, rows, tmp_path):
        for number, row in enumerate(rows):
            report.write_row(row, tmp_path / "kernels-sampling", str(number))
        assert {row["settings"]["op"] for row in summary.reportable(tmp_path)} == set(operations.OPERATIONS)
        make_red(tmp_path, "kernels/test_gumbel_argmax.py")
        found = {row["settings"]["op"] for row in summary.reportable(tmp_path)}
        assert found == set(operations.OPERATIONS) - {"gumbel_argmax"}

    def test_unknown_name(self, tmp_path):
        with pytest.raises(ValueError, match="got 'softmax'"):
            gate.failed_checks(tmp_path, "softmax")


def added_ops() -> tuple[str, ...]:
    return (*sections.SAMPLING_OPS, *sections.LOSS_OPS)


class TestPrograms:
    def test_what_stands_for_a_call_in_a_dry_run(self):
        for calls in programs.CALLS.values():
            for call in calls:
                words = programs.rehearsed(call)
                options = [word for word in words if word.startswith("--")]
                assert len(set(options)) == len(options)
                assert words[-2:] == ["--device", "cpu"] and "--model" not in words

    def test_programs_take_the_arguments(self, tmp_path):
        """Every program accepts the arguments of the report, apart from the device."""
        parsers = {"sampler_throughput": sampler_throughput, "cached_decoding": cached_decoding}
        parsers["training_step"] = training_step
        for calls in programs.CALLS.values():
            for call in calls:
                for words in (call.arguments, f"{call.arguments} {programs.QUICKLY[call.program]}"):
                    options = parsers[call.program].parse([*words.split(), "--device", "cpu", "--out", str(tmp_path)])
                    if call.program == "sampler_throughput":
                        assert sampler_throughput.cases_of(options)

    def test_cases_without_time_are_left_out_and_failures_told(self, dry, tmp_path):
        run = dry("sampling-8b")
        row = {"kind": "sampler", "date": "2026-01-01T00:00:00+00:00"}
        report.write_row(row | {"error": "TimeoutError: not started: the budget of 3 s was used up"}, run.folder, "b8")
        report.write_row(row | {"providers": {"card": {"error": "OutOfMemoryError: no"}}}, run.folder, "b1")
        wrong = programs.settle(run)
        assert wrong == run.failures == ["sampler-b1: card: OutOfMemoryError: no"]
        assert run.left_out == ["sampler-b8"] and len(list(run.folder.glob("*-b*.json"))) == 1

    def test_a_program_that_fails_says_why(self, monkeypatch):
        with pytest.raises(RuntimeError, match="steps 5 is not a multiple"):
            words = programs.rehearsed(programs.CALLS["sampling-8b"][0])
            programs.rehearse("sampler_throughput", [*words, "--gen-length", "8", "--steps", "5"])


class TestKernels:
    @pytest.mark.parametrize("op", cases.LOSSES)
    def test_the_losses_are_the_same(self, op):
        case = Case(op, 8, "tiny", "float32")
        inputs, gradients = operations.make_inputs(case, CPU), {}
        for name, program in operations.programs(case).items():
            if name != "torch":  # knows no row weights
                program(inputs)
                gradients[name] = (inputs.weight if op == "linear_cross_entropy" else inputs.logits).grad
        double = type(inputs)(*(x.detach().double() if x.is_floating_point() else x for x in inputs))
        for tensor in double:
            tensor.requires_grad_(tensor.is_floating_point())
        nll = torch.nn.functional.cross_entropy(
            double[0] @ double[1].T if op == "linear_cross_entropy" else double[0], inputs.targets, reduction="none"
        )
        (nll * double.row_weight).sum().backward()
        truth = {"gradient": (double.weight if op == "linear_cross_entropy" else double.logits).grad}
        plain = {"gradient": gradients["eager"]}
        for gradient in gradients.values():
            assert_no_worse({"gradient": gradient}, plain, truth)

    @pytest.mark.parametrize("op", ["gumbel_argmax", "linear_gumbel_argmax"])
    def test_the_samplers_are_the_same_without_noise(self, op):
        case = Case(op, 8, "tiny", "float32")
        inputs = operations.make_inputs(case, CPU)
        tokens = [program(inputs)[0].tolist() for program in operations.programs(case).values()]
        assert tokens == [tokens[0]] * len(tokens)

    def test_the_truncations_are_the_same(self):
        case = Case("truncation_floor", 4, "tiny", "float32")
        logits, found = operations.make_inputs(case, CPU), operations.programs(case)
        assert torch.equal(found["eager"](logits).isfinite(), logits >= found["ours"](logits)[:, None])

    def test_cases(self):
        found = list(cases.on_gpus())
        assert len(set(found)) == len(found) and {case.op for case in found} == set(operations.OPERATIONS)
        llada = Case("linear_cross_entropy", 4096, "llada-8b")
        assert llada.key == ("linear_cross_entropy", 4096, 4096, 126464, "bfloat16", 0.0)
        assert llada.flops == 6 * 4096 * 4096 * 126464
        head = Case("linear_gumbel_argmax", 64, "llada-8b")
        assert head.floor_seconds(4.8e12, 989e12) == pytest.approx(0.216e-3, rel=0.01)  # one read of the weight

    def test_small_calls(self, capsys):
        assert small.main(["position_noise", "gumbel_argmax"]) == 0
        assert "gumbel_argmax tiny, 2 x 300 float32, T 1" in capsys.readouterr().out
        with pytest.raises(ValueError, match="got softmax"):
            small.main(["softmax"])

    def test_no_time_left(self, dry):
        run = dry("kernels-loss", seconds=-1.0)
        kernels.run(run)
        assert "linear_cross_entropy tiny, 2 x 64 x 300 float32" in run.left_out and not run.withheld

    def test_stored_prediction(self, tmp_path):
        case, path = Case("gumbel_argmax", 64, "llada-8b", temperature=1.0), tmp_path / "predicted.json"
        assert kernels.predicted(case, path) == {}
        names = ("op", "rows", "hidden", "vocab", "dtype", "temperature")
        path.write_text(json.dumps({"rows": [dict(zip(names, case.key, strict=True), seconds=7e-6)]}))
        assert kernels.predicted(case, path) == {"predicted_seconds": 7e-6}
        assert kernels.predicted(Case("gumbel_argmax", 1, "llada-8b"), path) == {}

    def test_a_library_that_cannot_be_imported_keeps_no_other_out(self, monkeypatch):
        monkeypatch.setattr(peers, "installed", lambda package: True)
        found = peers.programs("linear_cross_entropy")
        assert set(found) == set(peers.PEERS["linear_cross_entropy"])
        monkeypatch.setitem(sys.modules, "benchmarks.peers.quack", None)
        with pytest.raises(ImportError):
            found["quack"](None, None, None, None)

    def test_adapters_are_where_they_are_looked_for(self):
        for op, libraries in peers.PEERS.items():
            assert op in operations.OPERATIONS
            for name, peer in libraries.items():
                tree = ast.parse((Path(peers.__file__).parent / f"{name}.py").read_text())
                assert peer.function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
                assert peer.package in wheels.WELCOME


class TestSummary:
    def test_tables_plots_and_targets(self, rows, tmp_path):
        for number, row in enumerate(rows):
            report.write_row(row | {"kind": "kernel"}, tmp_path / "kernels-sampling", str(number))
        ended = [State("kernels-sampling", "done", "measured", False, 12.0, left_out=["a case"])]
        State("tests", "done", "measured", False, commit="0123").write(tmp_path)
        text = summary.write(tmp_path, ended, dry=False)
        assert "| kernels-sampling | done | 12 | left out: a case |" in text
        for row in rows:
            assert f"| {row['settings']['op']} | {row['title']} |" in text
        assert (tmp_path / "kernel.png").read_bytes().startswith(b"\x89PNG")
        assert "| head and sampling | seconds / max(" in text
        assert "**The tests were run on commit 0123.**" in text
        assert "**The tests were not run behind kernels-sampling.**" in text

    def test_row_without_ours_is_told(self, rows, tmp_path):
        rows[0]["providers"]["ours"] = {"error": "RuntimeError: no"}
        report.write_row(rows[0], tmp_path / "kernels-sampling", "0")
        assert "Not in a table: a row has no measurement of ours" in summary.write(tmp_path, [], dry=False)

    @pytest.mark.parametrize(("share", "word"), [(0.86, "met"), (0.84, "missed")])
    def test_share_of_copy(self, share, word):
        case = Case("gumbel_argmax", 1024, "llada-8b")
        row = {
            "kind": "kernel",
            "title": case.title,
            "settings": {"op": case.op, "rows": 1024, "dtype": "bfloat16", "temperature": 0.0},
            "bytes": case.bytes,
            "ceilings": Ceilings(copy=4e12, product=7e14)._asdict(),
            "providers": {"ours": {"seconds": {"median": case.bytes / (share * 4e12)}}},
        }
        by_name = {verdict.target.what: verdict for verdict in targets.verdicts([row])}
        verdict = by_name["statistics at temperature 0"]
        assert verdict.word == word and verdict.worst.value == pytest.approx(share)
        assert by_name["statistics and noise, float32"].word == "not measured"

    def test_head_and_sampling_beside_other_ways_and_its_memory(self):
        seconds = {"ours": (2e-3, 65e6), "stored": (1.6e-3, 1e9), "eager": (9e-3, 1e9)}
        row = {
            "kind": "kernel",
            "title": "a head",
            "settings": {"op": "linear_gumbel_argmax"},
            "ceilings": {},
            "floor_seconds": 1.6e-3,
            "providers": {
                name: {"seconds": {"median": median}, "peak_bytes": peak} for name, (median, peak) in seconds.items()
            },
        }
        row["providers"]["compiled"] = {"error": "RuntimeError: no"}
        found = {verdict.target.what: verdict for verdict in targets.verdicts([row]) if verdict.worst}
        assert [verdict.worst.value for verdict in found.values()] == [1.25, 1.25, 65.0]
        assert [verdict.word for verdict in found.values()] == ["met", "missed", "missed"]
        assert found["head and sampling, against every other way"].worst.where == "a head, stored"

    def test_generate_and_cached_decoding(self):
        speeds = {"card": 10.0, "card-reduce-overhead": 40.0, "ours-eager": 20.0, "ours-graph": 70.0}
        settings = {"sampler": "generate", "model": "modernbert-large", "batch": 1, "temperature": 0.0}
        sampler = {
            "kind": "sampler",
            "settings": settings,
            "providers": {
                name: {"tokens_per_second": speed, "ms_per_step": {"median": 84 / speed}}
                for name, speed in speeds.items()
            },
        }
        settings = {"sampler": "fast-dllm-dual", "model": "llada-8b", "batch": 1, "temperature": 0.0}
        loops = {"card": (1.0, 64), "ours-eager": (3.0, 64), "ours-graph": (9.0, 63)}
        cached = {"kind": "sampler", "settings": settings}
        cached["providers"] = {k: {"tokens_per_second": speed, "forwards": n} for k, (speed, n) in loops.items()}
        found = [verdict for verdict in targets.verdicts([sampler, cached]) if verdict.worst]
        assert [verdict.worst.value for verdict in found] == [7.0, 1.75, 1.2, 3.0]
        assert [verdict.word for verdict in found] == ["met", "missed", "missed", "met"]


class TestTable:
    def test_committed_rows_of_every_kind(self):
        kinds = {"cached_decoding": "bd3lm cached", "cpu_head": "minilm bfloat16, 64 rows, T 1"}
        for kind, words in kinds.items():
            path = next(report.RESULTS.glob(f"*-{kind}-*.json"))
            assert words in table.table([report.read_row(path)])

    def test_a_pattern_in_chosen(self, tmp_path):
        (tmp_path / "gpu" / "kernels").mkdir(parents=True)
        for name in ("b.json", "a.json"):
            (tmp_path / "gpu" / "kernels" / name).write_text("{}")
        (tmp_path / "chosen.txt").write_text("gpu/*/*.json\n")
        assert [path.name for path in report.chosen(tmp_path)] == ["a.json", "b.json"]
        (tmp_path / "chosen.txt").write_text("cpu/*.json\n")
        with pytest.raises(ValueError, match="must fit a file"):
            report.chosen(tmp_path)


class TestWheels:
    def test_what_is_there_is_seen(self, tmp_path, monkeypatch):
        monkeypatch.setattr(wheels, "missing", lambda: [])
        python = wheels.environment(tmp_path, tmp_path / "venv", print)
        found = subprocess.run([python, "-c", "import pytest, rich; print('seen')"], capture_output=True, text=True)
        assert found.stdout == "seen\n", found.stderr

    def test_missing_wheels(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(wheels, "missing", lambda: ["dllm-welcome", "dllm-needed"])
        monkeypatch.setitem(wheels.NEEDED, "dllm_needed", "dllm-needed")
        with pytest.raises(RuntimeError, match="dllm-needed is needed"):
            wheels.environment(tmp_path, tmp_path / "venv", print)
        assert "dllm-welcome: not installed" in capsys.readouterr().out
        with pytest.raises(ValueError, match="must be a folder"):
            wheels.environment(tmp_path / "nowhere", tmp_path / "venv", print)
