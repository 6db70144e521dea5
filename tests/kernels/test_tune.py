"""Tuning: what is kept is read where it is valid and ignored, with a word, where it is not; a dry run needs no GPU."""

from __future__ import annotations

import functools
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dllm_kernels import _impl

if _impl.why_not_triton():
    pytest.skip(_impl.why_not_triton(), allow_module_level=True)

import torch

import dllm_kernels
from dllm_kernels import _tuning, _tuning_cache, _workloads, draw, offline, tune

GPU = "NVIDIA H200"
WIDE = _tuning.GumbelArgmaxShape(32768, 128, 1)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty folder for what is kept, and a process that has logged nothing."""
    monkeypatch.setenv("DLLM_CACHE", str(tmp_path))
    monkeypatch.delenv("DLLM_TUNING", raising=False)
    monkeypatch.setattr(_impl, "_logged", set())
    return tmp_path


@pytest.fixture
def on_gpu(monkeypatch):
    """The tables as an H200 would be served from them."""
    monkeypatch.setattr(_tuning, "_target", lambda: ("sm_90", 32))
    monkeypatch.setattr(_tuning, "_found", lambda: _tuning_cache.read(GPU))


def keep(**choices):
    for table, choice in choices.items():
        file = _tuning_cache.write(GPU, table, choice, [{"table": table, "relative": 0.9}])
    return file


def spoil(file: Path, **changes):
    document = json.loads(file.read_text())
    file.write_text(json.dumps(document | changes))


def test_what_is_kept_goes_before_the_table(cache, on_gpu):
    written = _tuning.gumbel_argmax(126464)
    keep(gumbel_argmax=WIDE, fused_head_32=(128, 4), transfer_tokens=_tuning.CANDIDATES["transfer_tokens"][1])
    assert written[0] != WIDE and _tuning.gumbel_argmax(126464) == (WIDE, 4)
    assert _tuning.fused_head(20, torch.bfloat16)[1] == {"num_warps": 4, "num_stages": 4}
    assert _tuning.transfer_tokens(512) == (512, 4)
    assert _tuning.truncation_floor() == (1024, 32)  # nothing was kept for it


@pytest.mark.parametrize(
    ("vocab", "dtype", "vector"),
    [
        (126464, torch.bfloat16, 16),  # two rows on each multiprocessor would not stay in L2
        (50368, torch.bfloat16, 8),
        (2**16, torch.bfloat16, 8),
        (2**16 + 16, torch.bfloat16, 16),
        (50368, torch.float32, 8),
        (2**15, torch.float32, 4),
    ],
)
def test_short_rows_are_read_by_two_programs_a_multiprocessor(on_gpu, cache, vocab, dtype, vector):
    assert _tuning.masked_cross_entropy(dtype, vocab, plain=True) == (1024, vector, 32)
    keep(masked_cross_entropy=(512, 16))  # what is measured is the most that a thread loads
    assert _tuning.masked_cross_entropy(dtype, vocab, plain=True) == (512, 16 // dtype.itemsize, 16)


def test_later_choices_join_earlier_ones(cache):
    keep(fused_rows=32)
    keep(truncation_floor=512)
    assert _tuning_cache.read(GPU) == {"fused_rows": 32, "truncation_floor": 512}


def test_a_table_that_is_as_fast_by_now_is_taken_again(cache):
    keep(fused_rows=32, truncation_floor=512)
    file = keep(fused_rows=None)
    assert _tuning_cache.read(GPU) == {"truncation_floor": 512}
    assert [row["table"] for row in json.loads(file.read_text())["measured"]] == ["truncation_floor", "fused_rows"]


def test_processes_that_tune_at_once_lose_nothing(cache):
    write = "import sys; from dllm_kernels import _tuning_cache; _tuning_cache.write(sys.argv[1], sys.argv[2], 1, [])"
    tables = ["fused_rows", "truncation_floor", "gumbel_argmax"]
    started = [subprocess.Popen([sys.executable, "-c", write, GPU, table]) for table in tables]
    assert [process.wait() for process in started] == [0] * 3
    assert _tuning_cache.read(GPU) == dict.fromkeys(tables, 1)
    assert {path.suffix for path in _tuning_cache.path(GPU).parent.iterdir()} == {".json", ".lock"}


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DLLM_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError):
        _tuning_cache.check_writable(GPU)


def test_the_environment_switches_it_off(cache, on_gpu, monkeypatch):
    keep(truncation_floor=512)
    monkeypatch.setenv("DLLM_TUNING", "off")
    assert _tuning.truncation_floor() == (1024, 32)
    monkeypatch.setenv("DLLM_TUNING", "on")
    assert _tuning.truncation_floor() == (512, 16)
    monkeypatch.setenv("DLLM_TUNING", "no")
    with pytest.raises(ValueError, match="on or off, got 'no'"):
        _tuning.truncation_floor()


@pytest.mark.parametrize("part", ["gpu", "torch", "triton", "driver", "sources"], ids="another-{}".format)
def test_what_was_measured_with_something_else_is_ignored(cache, on_gpu, caplog, part):
    file = keep(truncation_floor=512)
    spoil(file, made_for=_tuning_cache.made_for(GPU) | {part: "another"})
    with caplog.at_level(logging.WARNING, logger="dllm_kernels"):
        assert [_tuning.truncation_floor() for _ in range(3)] == [(1024, 32)] * 3
    (said,) = caplog.messages
    assert f"another {part} " in said and "python -m dllm_kernels.tune" in said


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"made_for": {}, "choices": {}}', '{"made_for": 1, "choices": 2}'])
def test_a_broken_file_is_ignored(cache, on_gpu, caplog, text):
    _tuning_cache.path(GPU).parent.mkdir(parents=True)
    _tuning_cache.path(GPU).write_text(text)
    with caplog.at_level(logging.WARNING, logger="dllm_kernels"):
        assert _tuning.truncation_floor() == (1024, 32)
    assert len(caplog.messages) == 1 and "ignored" in caplog.messages[0]


@pytest.mark.parametrize("choice", [333, "fast", None, [1, 2]])
def test_a_choice_that_nobody_would_measure_is_ignored(cache, on_gpu, caplog, choice):
    keep(truncation_floor=choice)
    with caplog.at_level(logging.WARNING, logger="dllm_kernels"):
        assert _tuning.truncation_floor() == (1024, 32)
    assert len(caplog.messages) == (choice is not None)


def test_the_key_changes_with_the_sources(tmp_path):
    package = Path(dllm_kernels.__file__).parent
    copy = tmp_path / "dllm_kernels"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__", "csrc"))
    assert _tuning_cache.fingerprint(copy) == _tuning_cache.fingerprint(package)
    before = _tuning_cache.fingerprint(copy)
    kernels = ("gumbel_argmax/triton.py", "gumbel_argmax/columns_triton.py", "philox_triton.py", "draw_triton.py")
    for file in (*kernels, "_tuning.py"):
        with (copy / file).open("a") as source:
            source.write("# one more line\n")
        assert _tuning_cache.fingerprint(copy) != before
        before = _tuning_cache.fingerprint(copy)


def test_a_stand_in_for_a_gpu_takes_the_tables(cache, monkeypatch):
    """Offline compilation shows what is written down, whatever was kept for the GPU of this machine."""
    monkeypatch.setattr(_impl, "interpreting", lambda: False)
    monkeypatch.setattr(_tuning, "_kept", lambda device: pytest.fail("the kept choices were read"))
    with offline._compiling_for("sm_90"):
        assert _tuning.truncation_floor() == (1024, 32)
        with _tuning.using({"truncation_floor": 256}):
            assert _tuning.truncation_floor() == (256, 8)
        assert _tuning.truncation_floor() == (1024, 32)


def test_no_candidate_looks_at_rows():
    """Whatever is chosen."""
    for choice in _tuning.CANDIDATES["transfer_tokens"]:
        assert [widest for widest, _ in choice] == [widest for widest, _ in _tuning._TRANSFER_TOKENS["default"]]
    for shape in _tuning.CANDIDATES["gumbel_argmax"]:
        assert shape.BLOCK_V % (16 * shape.COLUMNS) == 0


@pytest.mark.parametrize("table", [table for tables in tune.TABLES.values() for table in tables])
def test_every_table_has_candidates_and_work(table):
    assert len(set(_tuning.CANDIDATES[table])) > 1
    names = [work.name for work in tune.works(table)]
    assert names and len(set(names)) == len(names)


def command(*arguments, **environment):
    words = [sys.executable, "-m", "dllm_kernels.tune", *arguments]
    clean = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return subprocess.run(
        words, capture_output=True, text=True, timeout=900, env={**clean, "CUDA_VISIBLE_DEVICES": "", **environment}
    )


def test_without_a_gpu_it_says_so():
    done = command("--op", "transfer_tokens")
    assert done.returncode == 1 and "there is no GPU here; --dry-run" in done.stderr


def test_a_dry_run_lists_the_candidates():
    done = command("--dry-run", "--op", "gumbel_argmax", "truncation_floor")
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert len(lines) == 1 + 6 + 3 and "BLOCK_V=16384 COLUMNS=64" in done.stdout


def test_a_dry_run_with_a_target_compiles_them():
    done = command("--dry-run", "--target", "sm_90", "--op", "truncation_floor")
    assert done.returncode == 0, done.stderr
    assert [line.split()[-1] for line in done.stdout.splitlines()[1:]] == ["compiles"] * 3


def test_what_spills_or_does_not_fit_is_out(monkeypatch):
    def compiled(call, target):
        return {"hash": offline.Compiled("tile_kernel", "", target, 8, 255, spills, shared, "")}

    monkeypatch.setattr(offline, "compile_call", compiled)
    spills, shared = 8, 0
    assert tune.why_out("truncation_floor", "sm_90") == "tile_kernel spills 8 bytes"
    spills, shared = 0, 227 * 1024 + 1
    assert "shared memory" in tune.why_out("truncation_floor", "sm_90")
    spills, shared = 0, 227 * 1024
    assert tune.why_out("truncation_floor", "sm_90") == ""


def test_only_what_is_faster_than_noise_wins():
    rows = [
        tune.Row("a", 1, 0.99, ""),
        tune.Row("b", 1, 0.9, ""),
        tune.Row("b", 2, 0.8, ""),
        tune.Row("b", 3, None, "x"),
    ]
    assert tune.winners(rows) == {"b": 2}


def test_a_candidate_is_held_against_the_table_though_both_write_to_one_buffer(cache, monkeypatch):
    buffer = torch.zeros(4)

    def make(device):
        return lambda: (buffer.fill_(_tuning.truncation_floor()[0] // 512),)  # 256 threads give another result

    work = _workloads.Work("a shape", make, _workloads._same_bits)
    monkeypatch.setattr(tune, "works", lambda table: [work])
    monkeypatch.setattr(tune, "why_out", lambda table, target: "")
    monkeypatch.setattr(tune, "_seconds", lambda call: 1.0)
    monkeypatch.setattr(_tuning, "_target", lambda: ("sm_90", 32))
    found = {row.choice: row for row in tune.tune("truncation_floor", "sm_90")}
    assert found[256].note == found[512].note == "other results on a shape" and found[1024].relative == 1.0


def test_a_candidate_that_cannot_be_launched_is_out():
    from triton import OutOfResources

    def call():
        raise OutOfResources(300, 200, "shared memory")

    work = _workloads.Work("a shape", lambda device: call, _workloads._same_bits)
    assert "cannot be launched" in tune._disagreement([(work, call)], [()])


class TestNearTies:
    """Two tokens whose logits differ by far, and whose noise makes up for it: 0 and 1 of one tile, 0 and 4 of two."""

    vocab = 300

    def call(self, other: int, gap: float):
        """One row of one hidden column; tokens 0 and `other` lead, `gap` between their scores or their tiles'."""
        per_row = torch.zeros(1, dtype=torch.int64)
        noise = dict(temperature=torch.ones(1), seeds=per_row, positions=per_row, step=per_row)
        of_two = draw.token_noise if other == 1 else draw.tile_noise
        first, second = of_two(torch.arange(2), per_row, per_row, per_row)[0].tolist()
        weight = torch.full((self.vocab, 1), -50.0, dtype=torch.float64)
        weight[0], weight[other] = 20.0, 20.0 + first - second - gap
        return functools.partial(lambda *_: None, torch.ones(1, 1), weight, **noise), weight

    def agree(self, other: int, gap: float) -> bool:
        call, _ = self.call(other, gap)
        got, expected = ((torch.tensor([token]), torch.tensor([-float(token)])) for token in (0, other))
        return _workloads._same_tokens_but_near_ties(got, expected, call)

    @pytest.mark.parametrize("other", [1, 4])
    def test_what_rounding_turns_around_agrees_whatever_the_probabilities(self, other):
        _, weight = self.call(other, 0.0)
        assert abs(weight[0] - weight[other]) > 0.1  # so their probabilities differ
        eps = torch.finfo(torch.bfloat16).eps
        assert self.agree(other, 0.0) and self.agree(other, 0.9 * eps * 18) and not self.agree(other, 2 * eps * 22)
        call, _ = self.call(other, 0.0)
        third = (torch.tensor([2]),)  # of the first tile, and far behind
        assert not _workloads._same_tokens_but_near_ties(third, (torch.tensor([0]),), call)

    def test_no_token_is_no_near_tie(self):
        call, _ = self.call(1, 0.0)
        none = (torch.tensor([-1]),)
        assert not _workloads._same_tokens_but_near_ties(none, none, call)


def test_another_gradient_is_another_result():
    nll, gradient = torch.ones(2), torch.tensor([[0.5, -0.25], [1e-6, 0.0]], dtype=torch.bfloat16)
    right = (nll, gradient, nll, nll.double())
    neighbor, other = gradient.clone(), gradient.clone()
    neighbor[0, 0] *= 1 + torch.finfo(torch.bfloat16).eps
    other[1, 0] *= 2
    assert _workloads._no_worse((nll, neighbor, nll, nll.double()), right, None)
    assert not _workloads._no_worse((nll, other, nll, nll.double()), right, None)


def test_only_the_call_lies_between_the_events(monkeypatch):
    """On a clock that every operation moves on: memory is overwritten before the first event of each pair."""
    clock = 0.0

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = clock

        def elapsed_time(self, end):
            return end.at - self.at

    def take(milliseconds):
        nonlocal clock
        clock += milliseconds

    monkeypatch.setattr(tune, "_flush", lambda: SimpleNamespace(zero_=lambda: take(100.0)))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert tune._seconds(lambda: take(3.0)) == pytest.approx(0.003)
    assert clock == pytest.approx(tune.REPEATS * 103.0)
