"""Tests of the GPU report on a machine without a GPU: its order and budgets, what is kept, what tests say of rows."""

from __future__ import annotations

import ast
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import cached_decoding, files, machine, peers, report, sampler_throughput, table, training_step
from benchmarks.gpu_report import __main__ as command
from benchmarks.gpu_report import (
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
    timetable,
)
from benchmarks.gpu_report.gate import TRITON
from benchmarks.gpu_report.items import Item, OutOfTime, Session
from benchmarks.gpu_report.sections import PLANS, SECTIONS
from benchmarks.gpu_report.state import DONE, FAILED, LEFT_OUT, RUNNING, Result, State
from benchmarks.kernels import cases, operations
from benchmarks.kernels.cases import Case
from dllm_kernels.testing import assert_no_worse

CPU = torch.device("cpu")
TESTS = Path(__file__).parent
NOT_ON_GPUS = {
    "kernels/test_align_tokens.py",  # an operation of the CPU
    "kernels/test_attention_kernel.py",  # likewise
    "kernels/test_dropout.py",  # likewise
    "kernels/test_extension.py",  # the C++ extension
    "kernels/test_int8_experts.py",  # an operation of the CPU
    "kernels/test_offline.py",  # compilation for GPUs that are not there
    "kernels/test_swiglu_experts.py",  # an operation of the CPU
    "kernels/test_testing.py",  # the rule of accuracy itself
    "kernels/test_tune.py",  # what is kept of tuning
}
GUMBEL = Case("gumbel_argmax", 64, "llada-8b")

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="rehearsed on machines without a GPU"),
]


def planned(plan: str) -> dict:
    return command.planned(sections.chosen(PLANS[plan][0]))


def write_checks(out: Path, sources: str, **changed: Result) -> None:
    """Store results of the tests behind gumbel_argmax: done, apart from those that are named."""
    names = [part for file in gate.FILES["gumbel_argmax"] for part in gate.parts(file)]
    found = {name: Result(DONE, sources=sources) for name in names} | changed
    State("kernel-tests", "measured", items=found).write(out)


def write_kernel_row(out: Path, sources: str, **changed: object) -> Path:
    row = {"kind": "kernel", "date": "2026-01-01T00:00:00+00:00", "sources": sources, "settings": {"op": GUMBEL.op}}
    return report.write_row(row | changed, out / "kernels", "gumbel")


class TestTimetable:
    def test_the_two_calls_fit_and_the_order_is_that_of_importance(self):
        for plan, names in {"first": ["kernels", "kernel-tests"], "second": ["sampling", "program-tests"]}.items():
            slots = timetable.plan(planned(plan), PLANS[plan][1], timetable.Durations(Path("nowhere")))
            assert [slot.section for slot in slots] == names and not any(slot.left_out for slot in slots)
            assert slots[-1].end <= PLANS[plan][1] - timetable.END
            assert "Everything fits" in timetable.told(slots, PLANS[plan][1])
        assert PLANS["first"][1] <= 240 and PLANS["second"][1] <= 300
        assert next(iter(planned("first").values()))[0].name == "ceilings"
        last = [name for name in PLANS["all"][0] if "compiled" in name]
        assert PLANS["all"][0][-len(last) :] == tuple(last) and "sanitizer" not in PLANS["all"][0]

    def test_what_does_not_fit_is_that_of_the_last_sections(self):
        slots = timetable.plan(planned("first"), 150, timetable.Durations(Path("nowhere")))
        assert not slots[0].left_out and len(slots[1].left_out) == slots[1].items
        assert f"{slots[1].items} items do not fit" in timetable.told(slots, 150)
        assert all(slot.left_out for slot in timetable.plan(planned("first"), 60, timetable.Durations(Path("no"))))

    def test_measured_seconds_replace_reckoned_ones(self, tmp_path):
        slow = {"ceilings": Result(DONE, seconds=50.0), "gumbel_argmax": Result(FAILED, seconds=9.0)}
        State("kernels", "measured", startup=20.0, items=slow).write(tmp_path)
        State("training", "dry", items={"modernbert-large, 16 x 1024": Result(DONE, seconds=1.0)}).write(tmp_path)
        durations = timetable.Durations(tmp_path, results=tmp_path / "none")
        assert durations.measured == {("kernels", "ceilings"): 50.0} and durations.startup == {"kernels": 20.0}
        slots = timetable.plan(planned("first"), 400, durations)
        reckoned = timetable.plan(planned("first"), 400, timetable.Durations(tmp_path / "none"))
        assert slots[0].measured == 1 and slots[0].end - reckoned[0].end == pytest.approx(50 - 3 + 20 - 10)

    def test_more_time_is_shared_in_proportion(self):
        todo = {SECTIONS[0]: [Item("a", 82.0, None)], SECTIONS[2]: [Item("b", 36.0, None)]}  # 92 and 46 with the start
        durations = timetable.Durations(Path("nowhere"))
        assert [durations.share(todo, left) for left in (300.0, 120.0, 50.0, -1.0)] == pytest.approx([200, 100, 50, 0])


class TestGate:
    def test_green_red_and_unproven(self, tmp_path):
        said = functools.partial(gate.verdict, ["gumbel_argmax"], "now")
        assert said({})["state"] == "unproven" and f"{TRITON} 1/5: not run yet" in said({})["why"]
        write_checks(tmp_path, "now")
        assert said(gate.results(tmp_path)) == {"state": "green", "why": []}
        late = Result(LEFT_OUT, why=["did not end within 9 s"], sources="now")
        write_checks(tmp_path, "now", **{f"{TRITON} 2/5": late})
        unproven = {"state": "unproven", "why": [f"{TRITON} 2/5: did not end within 9 s"]}
        assert said(gate.results(tmp_path)) == unproven
        wrong = Result(FAILED, why=["test_truth: assert 1 == 2"], sources="now")
        write_checks(tmp_path, "now", **{f"{TRITON} 2/5": late, f"{TRITON} 3/5": wrong})
        red = {"state": "red", "why": [f"{TRITON} 3/5: test_truth: assert 1 == 2"]}
        assert said(gate.results(tmp_path)) == red
        assert gate.verdict(["masked_cross_entropy"], "now", gate.results(tmp_path))["state"] == "unproven"
        sanitized = {"compute-sanitizer gumbel_argmax": Result(FAILED, why=["exit status 86"], sources="now")}
        write_checks(tmp_path, "now", **sanitized)
        assert said(gate.results(tmp_path))["state"] == "red"

    def test_tests_of_other_sources_prove_nothing(self, tmp_path):
        write_checks(tmp_path, "before", **{TRITON: Result(FAILED, why=["wrong"], sources="before")})
        said = gate.verdict(["gumbel_argmax"], "now", gate.results(tmp_path))
        assert said["state"] == "unproven" and said["why"][0].endswith("ran on other sources")

    def test_rows_are_stamped_whenever_their_tests_ran(self, tmp_path):
        path = write_kernel_row(tmp_path, "now")

        def state_now() -> str:
            gate.stamp_all(tmp_path)
            return files.read_json(path)["tests"]["state"]

        assert state_now() == "unproven"
        write_checks(tmp_path, "now")
        assert state_now() == "green"
        write_checks(tmp_path, "after a fix of something else")
        assert state_now() == "green"
        write_checks(tmp_path, "now", **{f"{TRITON} 1/5": Result(FAILED, why=["wrong"], sources="now")})
        assert state_now() == "red"

    def test_what_stands_behind_a_row(self):
        assert gate.behind({"kind": "ceilings"}) == () and gate.verdict((), None, {})["state"] == "none"
        assert set(gate.behind({"kind": "training_step"})) == {*sections.LOSS_OPS, "training"}
        assert set(gate.behind({"kind": "sampler"})) == {*sections.SAMPLING_OPS, "sampling"}

    def test_every_test_for_gpus_stands_behind_something(self):
        behind = {file for found in gate.FILES.values() for file in found}
        there = {str(path.relative_to(TESTS)): path for path in TESTS.rglob("test_*.py")}
        marked = {name for name, path in there.items() if "mark.gpu" in path.read_text() and path != Path(__file__)}
        of_kernels = {name for name in there if name.startswith("kernels/")} - NOT_ON_GPUS
        assert marked | of_kernels <= behind <= set(there) and set(gate.SHARED) <= behind
        assert set(gate.FILES) >= set(operations.OPERATIONS) == {*sections.SAMPLING_OPS, *sections.LOSS_OPS}


class TestSection:
    """Work on items of a section, which write rows."""

    @pytest.fixture
    def work(self, tmp_path, monkeypatch):
        """Run a section with these items, as its process would; the state that it leaves and the names that ran."""

        def make(*items: Item, seconds: float = 100.0, at_once: int = 1, sources: str = "now"):
            ran = []

            def recorded(item: Item, session: Session) -> list[str]:
                ran.append(item.name)
                return item.run(session)

            known = [item._replace(run=functools.partial(recorded, item)) for item in items]
            module = SimpleNamespace(AT_ONCE=at_once, items=lambda name, dry: known, prepare=lambda: None)
            monkeypatch.setattr(section, "module_of", lambda name: module)
            monkeypatch.setattr(state, "sources", lambda: sources)
            try:
                section.main(["kernels", str(tmp_path), f"--seconds={seconds}"])
            except SystemExit as error:
                assert error.code == section.LOST_GPU
            return state.read(tmp_path, "kernels"), ran

        return make

    def item(self, name: str, result: object = (), seconds: float = 1.0) -> Item:
        def run(session: Session) -> list[str]:
            if isinstance(result, BaseException):
                raise result
            settings = {"op": GUMBEL.op, "name": name}
            row = {"kind": "kernel", "date": "2026-01-01T00:00:00+00:00", "settings": settings}
            report.write_row(row, session.folder, f"{name}{time.monotonic_ns()}")
            return list(result)

        return Item(name, seconds, run)

    def test_failures_keep_no_other_out_and_only_what_is_not_done_runs_again(self, work, tmp_path):
        items = [self.item("a"), self.item("b", ["wrong"]), self.item("c", ValueError("no")), self.item("d")]
        items.append(self.item("late", OutOfTime("did not end")))
        found, _ = work(*items)
        assert [result.status for result in found.items.values()] == [DONE, FAILED, FAILED, DONE, LEFT_OUT]
        assert found.items["c"].why == ["ValueError: no"] and not found.fine
        found, ran = work(self.item("a"), self.item("b"), self.item("c"), self.item("d"), self.item("late"))
        assert ran == ["b", "c", "late"] and found.fine
        assert [row["settings"]["name"] for row in state.rows(tmp_path, "kernels")] == ["a", "b", "c", "d", "late"]

    def test_what_there_is_no_time_for_is_left_out_and_taken_up(self, work):
        items = [self.item("a", seconds=500.0), self.item("b", seconds=500.0), self.item("c")]
        found, ran = work(*items)
        assert ran == ["a", "c"] and found.items["b"] == Result(LEFT_OUT, why=["not started"])
        assert work(*items)[1] == ["b"]

    def test_rows_are_stamped_and_say_what_ran(self, work, tmp_path, monkeypatch):
        monkeypatch.setenv(section.CUDNN, "1")
        write_checks(tmp_path, "now")
        work(self.item("a"))
        (row,) = state.rows(tmp_path, "kernels")
        assert row["tests"] == {"state": "green", "why": []} and row["sources"] == "now"
        assert row["attention"][section.CUDNN] == "1"

    def test_after_a_fix_rows_that_are_not_green_are_measured_again(self, work, tmp_path):
        items = [self.item("green"), self.item("red")]
        work(*items)
        green, red = state.row_files(tmp_path / "kernels")
        files.write_json(green, files.read_json(green) | {"tests": {"state": "green", "why": []}})
        assert work(*items)[1] == []
        assert work(*items, sources="fixed")[1] == ["red"] and green.exists() and not red.exists()

    def test_a_lost_gpu_ends_the_process(self, work, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        broken = torch.AcceleratorError("an illegal memory access was encountered")
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: (_ for _ in ()).throw(broken))
        found, _ = work(self.item("a"), self.item("b"))
        assert found.items["a"].status == FAILED and "illegal memory access" in found.items["a"].why[0]
        assert found.items["b"].status == LEFT_OUT

    def test_several_at_once_and_red_ones_first(self, work, tmp_path):
        State("kernels", "measured", items={"red": Result(FAILED)}).write(tmp_path)
        found, ran = work(*(self.item(name) for name in "ab"), self.item("red"), at_once=2)
        assert "red" in ran[:2] and found.fine  # two begin at once

    def test_a_row_with_an_error_replaces_none_without(self, tmp_path):
        good = write_kernel_row(tmp_path, "now", providers={"ours": {"seconds": {}}})
        date = "2026-02-01T00:00:00+00:00"
        worse = write_kernel_row(tmp_path, "now", providers={"ours": {"error": "no"}}, date=date)
        state.drop_replaced(tmp_path / "kernels")
        assert good.exists() and not worse.exists()
        better = write_kernel_row(tmp_path, "now", providers={"ours": {"seconds": {}}}, date=date)
        state.drop_replaced(tmp_path / "kernels")
        assert state.row_files(tmp_path / "kernels") == [better]


class TestRunner:
    @pytest.fixture
    def ends(self, monkeypatch):
        """Processes of a section that leave these states: (items, exit status, whether they were stopped)."""

        def make(*ends: tuple):
            left = list(ends)

            def process(name: str, out: Path, *_: object, dry: bool) -> tuple[int, bool]:
                items, status, stopped = left.pop(0)
                before = state.in_mode(out, name, dry=dry).items
                State(name, "measured", items=before | items).write(out)
                (out / name / runner.LOG).write_text("CUDA error: misaligned address\n")
                return status, stopped

            monkeypatch.setattr(runner, "_process", process)
            return left

        return make

    def test_after_a_crash_another_process_goes_on(self, ends, tmp_path):
        later = time.time() + 99
        crash = {"a": Result(DONE, ended=later), "b": Result(RUNNING), "c": Result(LEFT_OUT)}
        left = ends((crash, -11, False), ({"c": Result(DONE, ended=later)}, 0, False))
        found = runner.run_section("kernels", tmp_path, 100, dry=False)
        assert not left and [each.status for each in found.items.values()] == [DONE, FAILED, DONE]
        assert found.items["b"].why == ["exit status -11: CUDA error: misaligned address"]

    def test_what_was_stopped_is_left_out_and_not_failed(self, ends, tmp_path):
        ends(({"a": Result(RUNNING), "b": Result(LEFT_OUT)}, 0, True))
        found = runner.run_section("kernels", tmp_path, 100, dry=False)
        assert set(found.having(LEFT_OUT)) == {"a", "b"} and found.reason == "stopped after 100 s"

    def test_a_section_that_cannot_begin_is_started_once(self, ends, tmp_path):
        left = ends(({"a": Result(LEFT_OUT)}, 1, False), ({}, 1, False))
        found = runner.run_section("kernels", tmp_path, 100, dry=False)
        assert len(left) == 1 and found.reason.startswith("exit status 1")

    def test_cudnn_comes_last_unless_the_caller_says_otherwise(self, monkeypatch):
        monkeypatch.delenv(section.CUDNN, raising=False)
        assert runner.environment(dry=False)[section.CUDNN] == "1"
        monkeypatch.setenv(section.CUDNN, "0")
        assert runner.environment(dry=False)[section.CUDNN] == "0"

    def test_a_section_ends_with_its_report(self):
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


class TestCommand:
    def test_a_dry_run_that_is_stopped_and_repeated(self, tmp_path, capsys):
        words = ["--section", "kernels", "--dry", "--out", str(tmp_path)]
        whole = [sys.executable, "-m", "benchmarks.gpu_report", *words]
        running = subprocess.Popen(whole, cwd=machine.ROOT, stdout=subprocess.PIPE, text=True)
        while not (found := state.read(tmp_path, "kernels")) or not found.having(DONE):
            assert running.poll() is None
            time.sleep(0.05)
        running.send_signal(signal.SIGTERM)
        printed = running.communicate()[0]
        assert running.returncode == 128 + signal.SIGTERM and "left out" in printed
        done = state.read(tmp_path, "kernels").having(DONE)
        assert 0 < len(done) < 86 and not state.read(tmp_path, "kernels").having(FAILED)
        assert command.main(words) == 0
        printed = capsys.readouterr().out
        assert printed.startswith(command.DRY) and f"kernels: {86 - len(done)} items" in printed
        assert {path.name for path in tmp_path.rglob("*.json")} == {state.STATE}
        text = (tmp_path / summary.FILE).read_text()
        assert summary.NOTHING in text and "| kernels | 86 done, not timed |" in text
        assert command.main(words) == 0
        assert "done before" in capsys.readouterr().out

    @pytest.mark.exhaustive
    def test_a_dry_run_of_everything(self, tmp_path):
        assert command.main(["--dry", "--out", str(tmp_path)]) == 0
        assert "tokens/s" not in "".join(path.read_text() for path in tmp_path.rglob(runner.LOG))

    def test_invalid_options(self, tmp_path, capsys, monkeypatch):
        assert command.main(["--out", str(tmp_path)]) == 2
        State("kernels", "measured").write(tmp_path)
        assert command.main(["--dry", "--out", str(tmp_path)]) == 2
        (tmp_path / "file").write_text("")
        assert command.main(["--dry", "--out", str(tmp_path / "file")]) == 2
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(checks.shutil, "which", lambda name: None)
        assert command.main(["--section", "sanitizer", "--out", str(tmp_path)]) == 2
        said = capsys.readouterr().err.splitlines()
        wanted = ["no CUDA device", "a dry run would replace", "[Errno", "needs compute-sanitizer on the PATH"]
        assert all(words in line for words, line in zip(wanted, said, strict=True))
        for words in (["--section", "kernels", "weather"], ["--seconds", "0"], ["third"]):
            with pytest.raises(SystemExit):
                command.parse(words)


class TestChecks:
    @pytest.fixture
    def session(self, tmp_path):
        (tmp_path / "kernel-tests").mkdir()
        return lambda seconds=60.0: Session("kernel-tests", tmp_path, time.monotonic() + seconds)

    def test_what_pytest_wrote(self, tmp_path):
        junit = tmp_path / "a.xml"
        junit.write_text(
            '<testsuites><testsuite><testcase name="one"/><testcase name="two"><skipped/></testcase>'
            '<testcase name="three"><failure message="assert 1 == 2&#10;more"/></testcase></testsuite></testsuites>'
        )
        assert checks.parsed(junit) == (1, ["three: assert 1 == 2"])

    def test_what_fails_is_red_and_what_hangs_unproven(self, session):
        def command_of(code: str) -> checks.Check:
            return checks.Check("a", [sys.executable, "-c", code])

        assert checks.outcome(command_of("raise SystemExit('no such device')"), session()) == [
            "exit status 1: no such device"
        ]
        with pytest.raises(OutOfTime, match="did not end within"):
            checks.outcome(command_of("import time; time.sleep(60)"), session(0.2))
        hanging = command_of("import time; print('a.py::test_b FAILED [1%]', flush=True); time.sleep(60)")
        assert checks.outcome(hanging, session(2.0))[0] == "test_b: failed"

    def test_a_file_whose_tests_are_all_skipped_proves_nothing(self, session):
        written = '<testsuite><testcase name="one"><skipped/></testcase></testsuite>'
        code = f"import sys; open(sys.argv[1].partition('=')[2], 'w').write({written!r})"
        check = checks.Check("a", [sys.executable, "-c", code], "a.xml")
        assert checks.outcome(check, session()) == ["no test ran"]
        assert checks.outcome(check._replace(all_skipped=True), session()) == []

    def test_parts_share_all_tests_and_neighbours_stay_together(self):
        hook = SimpleNamespace(pytest_deselected=lambda items: None)
        ran = []
        for number in (1, 2, 3):
            config, items = SimpleNamespace(getoption=lambda name, n=number: f"{n}/3", hook=hook), list("abcdefgh")
            shard.pytest_collection_modifyitems(config, items)
            ran.append("".join(items))
        assert ran == ["ab", "cde", "fgh"]

    def test_the_checks_of_the_sections(self):
        found = {name: checks._checks(name) for name in ("kernel-tests", "program-tests", "compiled-tests")}
        names = {name: [check.name for check in each] for name, each in found.items()}
        behind = [part for of_name in gate.FILES.values() for file in of_name for part in gate.parts(file)]
        assert set(names["kernel-tests"] + names["program-tests"]) == set(behind)
        commands = {check.name: check.command for each in found.values() for check in each}
        assert "--shard=2/5" in commands[f"{TRITON} 2/5"] and "gpu" not in commands[f"{TRITON} 2/5"]
        assert f"not {checks.COMPILED}" in commands["fast/test_gpu.py 4/4"]
        assert f"def {checks.COMPILED}(" in (TESTS / "fast/test_gpu.py").read_text()
        sanitized = checks.items("sanitizer", dry=False)[0].run.args[0].command
        assert sanitized[:5] == ["compute-sanitizer", "--tool", "memcheck", "--report-api-errors", "no"]


class TestPrograms:
    def test_programs_take_the_arguments(self, tmp_path):
        """Every program accepts the arguments of the report, and those of its rehearsal, apart from the device."""
        parsers = {"sampler_throughput": sampler_throughput, "cached_decoding": cached_decoding}
        parsers["training_step"] = training_step
        for calls in programs.CALLS.values():
            assert len({call.name for call in calls}) == len(calls)
            for call in calls:
                for words in (call.arguments.split(), programs.rehearsed(call)):
                    options = parsers[call.program].parse([*words, "--device", "cpu", "--out", str(tmp_path)])
                    if call.program == "sampler_throughput":
                        assert len(sampler_throughput.cases_of(options)) == 1
                if call.program == "cached_decoding":
                    assert options.model is None and options.layers == 2

    def test_calls_share_a_model(self, tmp_path, monkeypatch):
        made = []
        monkeypatch.setattr(programs.models, "load", lambda name, *_, **how: made.append(name) or SimpleNamespace())
        last = programs.LastModel()
        found = [last.load(name, torch.float32, CPU, seed=0) for name in ("a", "a", "b")]
        assert made == ["a", "b"] and found[0] is found[1]
        last.free()
        last.load("b", torch.float32, CPU, seed=0)
        assert made == ["a", "b", "b"]

    def test_a_program_that_fails_says_why(self):
        with pytest.raises(RuntimeError, match="steps 5 is not a multiple"):
            words = programs.rehearsed(programs.CALLS["sampling-more"][0])
            programs.rehearse("sampler_throughput", [*words, "--gen-length", "8", "--steps", "5"])

    def test_programs_begin_no_round_after_their_budget(self, tmp_path, monkeypatch):
        nothing = {"ours": {"peak_bytes": None, "peak_how": "not measured"}}  # tests/test_benchmarks.py measures it
        monkeypatch.setattr(training_step, "memory_elsewhere", lambda arguments: nothing)
        many = ["--repeats", "9", "--budget", "1e-9", "--device", "cpu", "--out", str(tmp_path)]
        with programs.tiny_model(causal=False) as model:
            words = "--batch 2 --length 16 --dtype float32 --attention eager --providers ours --model".split()
            assert training_step.main([*words, model, *many]) == 0
        assert cached_decoding.main([*programs.TINY["cached_decoding"].split(), *many]) == 0
        rows = [report.read_row(path) for path in tmp_path.glob("*.json")]
        runs = [each["seconds"]["runs"] for row in rows for each in row.get("providers", {}).values()]
        runs += [each["call_seconds"]["runs"] for row in rows for each in row.get("results", [])]
        assert runs == [1] * 5
        with pytest.raises(SystemExit):
            training_step.parse(["--budget", "0"])


class TestMeasuring:
    """Measurements of a GPU report, with the CPU in place of the GPU."""

    @pytest.fixture
    def session(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Session, "device", property(lambda session: CPU))
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(machine, "bandwidth", lambda device: {"read": 2e9, "copy": 1e9})
        monkeypatch.setattr(machine, "matmul_speed", lambda device, dtype: 1e10)
        monkeypatch.setattr(kernels, "REPEATS", 2)

        def make(name: str) -> Session:
            found = Session(name, tmp_path, time.monotonic() + 600)
            found.folder.mkdir(parents=True, exist_ok=True)
            return found

        return make

    def test_rows_of_every_kind_make_a_report(self, session, tmp_path, capsys):
        kernel = session("kernels")
        assert kernels.measure_ceilings(kernel) == []
        for case in dict.fromkeys(cases.tiny(case) for case in cases.on_gpus()):
            assert kernels.run(case, kernel) == []
        with programs.tiny_model(causal=False) as model:
            sizes = "--prompt-length 6 --gen-length 4 --block-length 4 --steps 4 --repeats 1 --device cpu"
            words = f"--model {model} {sizes} --providers card ours-eager"
            call = programs.Call("tiny", "sampler_throughput", words, 1.0)
            assert programs.run(call, programs.LastModel(), session("sampling")) == []
        wrong = programs.Call("none", "training_step", "--model nowhere --device cpu", 1.0)
        assert programs.run(wrong, programs.LastModel(), session("training")) == ["exit status 2"]
        red = {f"{TRITON} 1/5": Result(FAILED, why=["test_truth: assert 1 | 2"], sources="now")}
        write_checks(tmp_path, "now", **red)
        for path in state.row_files(kernel.folder):
            files.write_json(path, files.read_json(path) | {"sources": "now"})
        gate.stamp_all(tmp_path)
        text = summary.write(tmp_path, dry=False)
        assert "Not in a table" not in text and "| gumbel_argmax | tiny, 2 x 300 float32, T 0 |" in text
        assert f"red: {TRITON} 1/5: test_truth: assert 1 \\| 2 |" in text and f"| {TRITON} 1/5 | red |" in text
        assert (tmp_path / "kernel.png").read_bytes().startswith(b"\x89PNG")
        heads = [line for line in text.splitlines() if line.startswith("| head and sampling | seconds / max(")]
        assert heads and heads[0].endswith("| red: kernels/test_triton.py 1/5: test_truth: assert 1 \\| 2 |")
        sampler = next(line for line in text.splitlines() if "tmp" in line and line.startswith("| "))
        assert sampler.endswith("| unproven |")
        row = next(row for row in state.rows(tmp_path, "kernels") if row["kind"] == "kernel")
        assert row["command"] == "python -m benchmarks.gpu_report --section kernels" and row["floor_seconds"] > 0
        assert not {"compiled", *peers.PEERS["gumbel_argmax"]} & set(row["providers"])

    def test_a_row_without_ours_is_told(self, session, tmp_path, monkeypatch):
        def fails(inputs: object) -> None:
            raise RuntimeError("no kernel image")

        monkeypatch.setattr(operations, "programs", lambda case, **how: {"ours": fails, "eager": lambda inputs: None})
        assert kernels.run(cases.tiny(GUMBEL), session("kernels")) == ["RuntimeError: no kernel image"]
        assert "Not in a table: a row has no measurement of ours" in summary.write(tmp_path, dry=False)

    def test_gradients_count_to_the_memory_of_the_step_that_makes_them(self, session, monkeypatch):
        kept = []

        def step(inputs):
            kept.append(inputs.weight.grad is not None)
            inputs.weight.grad = torch.zeros_like(inputs.weight)

        monkeypatch.setattr(operations, "programs", lambda case, **how: {"ours": step})
        case = cases.tiny(Case("linear_cross_entropy", 64, "llada-8b"))
        kernels.measured(case, session("kernels"), others=False, compiles=False)
        assert kept[: kernels.WARMUP + 2] == [False, True, False, True]

    def test_what_fails_in_a_later_round_has_no_time(self, session, monkeypatch):
        calls = iter(range(kernels.WARMUP + 2))
        monkeypatch.setattr(operations, "programs", lambda case, **how: {"ours": lambda inputs: next(calls)})
        found = kernels.measured(cases.tiny(GUMBEL), session("kernels"), others=False, compiles=False)
        assert "StopIteration" in found["ours"]["error"] and "seconds" not in found["ours"]


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

    def test_what_compiles_is_measured_apart(self, monkeypatch):
        slow = kernels.items("kernels-compiled", dry=False)
        assert [item.run.keywords["compiles"] for item in slow].count(True) == 7
        monkeypatch.setattr(peers, "installed", lambda package: True)
        assert len(kernels.items("kernels-compiled", dry=False)) > len(slow)
        for others, wanted in ((False, {"ours", "eager"}), (True, {"ours", "eager", "compiled", "flashinfer"})):
            case = Case("gumbel_argmax", 1, "tiny", temperature=1.0)
            assert set(kernels.programs_of(case, others=others, backend="eager")) == wanted

    def test_small_calls(self, capsys):
        assert small.main(["position_noise", "gumbel_argmax"]) == 0
        assert "gumbel_argmax tiny, 2 x 300 float32, T 1" in capsys.readouterr().out
        with pytest.raises(ValueError, match="got softmax"):
            small.main(["softmax"])

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


class TestTargets:
    @pytest.mark.parametrize(("share", "word"), [(0.86, "met"), (0.84, "missed")])
    def test_share_of_copy(self, share, word):
        case = Case("gumbel_argmax", 1024, "llada-8b")
        row = {
            "kind": "kernel",
            "title": case.title,
            "settings": {"op": case.op, "rows": 1024, "dtype": "bfloat16", "temperature": 0.0},
            "bytes": case.bytes,
            "ceilings": kernels.Ceilings(copy=4e12, product=7e14)._asdict(),
            "providers": {"ours": {"seconds": {"median": case.bytes / (share * 4e12)}}},
        }
        by_name = {verdict.target.what: verdict for verdict in targets.verdicts([row])}
        verdict = by_name["statistics at temperature 0"]
        assert verdict.word == word and verdict.worst.value == pytest.approx(share) and verdict.worst.row is row
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
