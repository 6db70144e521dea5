"""Tuning: what is kept is read where it is valid and ignored, with a word, where it is not; a dry run needs no GPU."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dllm_kernels import _impl

if _impl.why_not_triton():
    pytest.skip(_impl.why_not_triton(), allow_module_level=True)

import torch

import dllm_kernels
from dllm_kernels import _tuned, _tuning, offline, tune

GPU = "NVIDIA H200"
WIDE = _tuning.GumbelArgmaxShape(16384, 128, 1)


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
    monkeypatch.setattr(_tuning, "_found", lambda: _tuned.read(GPU))


def keep(**choices):
    return _tuned.write(GPU, choices, [])


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


def test_later_choices_join_earlier_ones(cache):
    keep(fused_rows=32)
    keep(truncation_floor=512)
    assert _tuned.read(GPU) == {"fused_rows": 32, "truncation_floor": 512}


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
    spoil(file, made_for=_tuned.made_for(GPU) | {part: "another"})
    with caplog.at_level(logging.WARNING, logger="dllm_kernels"):
        assert [_tuning.truncation_floor() for _ in range(3)] == [(1024, 32)] * 3
    (said,) = caplog.messages
    assert f"another {part} " in said and "python -m dllm_kernels.tune" in said


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"made_for": {}, "choices": {}}', '{"made_for": 1, "choices": 2}'])
def test_a_broken_file_is_ignored(cache, on_gpu, caplog, text):
    _tuned.path(GPU).parent.mkdir(parents=True)
    _tuned.path(GPU).write_text(text)
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
    assert _tuned.fingerprint(copy) == _tuned.fingerprint(package)
    before = _tuned.fingerprint(copy)
    for file in ("gumbel_argmax/triton.py", "philox_triton.py", "_tuning.py"):
        with (copy / file).open("a") as source:
            source.write("# one more line\n")
        assert _tuned.fingerprint(copy) != before
        before = _tuned.fingerprint(copy)


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
    """Whatever is chosen, the entries of the fused head cover the rows as the table does."""
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
    assert len(lines) == 1 + 8 + 3 and "BLOCK_V=16384 COLUMNS=256" in done.stdout


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
