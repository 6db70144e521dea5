"""Every Triton kernel compiles for real GPUs, here and now, without one."""

import json
import os
import subprocess
import sys

import pytest

from dllm_kernels import _impl

pytestmark = pytest.mark.skipif(_impl.why_not_triton() is not None, reason=str(_impl.why_not_triton()))

TARGETS = {"sm_80", "sm_90", "sm_100", "gfx942"}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The command's rows, from an empty cache: nothing is taken from an earlier run."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "dllm_kernels.offline", "--json"],
        capture_output=True,
        text=True,
        timeout=900,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_target_compiles_the_same(compiled):
    names = {
        target: {(row["kernel"], row["configuration"]) for row in compiled if row["target"] == target}
        for target in TARGETS
    }
    assert {row["target"] for row in compiled} == TARGETS
    assert all(names[target] == names["sm_90"] for target in TARGETS)
    kernels = {"chunk_kernel", "combine_kernel", "floor_kernel", "row_kernel", "scale_kernel", "transfer_kernel"}
    assert {kernel for kernel, _ in names["sm_90"]} == kernels
    assert len(names["sm_90"]) > 30


def test_no_spills(compiled):
    spilled = [row for row in compiled if row["spills"] and row["target"] in ("sm_90", "sm_100")]
    assert not spilled


def test_occupancy_is_bounded_by_nothing_but_the_work(compiled):
    """The pass over the vocabulary runs at half the threads of an SM or more (64 registers; every option at once, two
    fifths and 80), and exchanges nothing through shared memory but what its reductions need, where rows are aligned."""
    for row in compiled:
        if row["kernel"] == "chunk_kernel" and row["target"].startswith("sm") and "ragged" not in row["configuration"]:
            most = 80 if "every option" in row["configuration"] else 64
            assert row["registers"] <= most and row["shared"] <= 64, row


def test_the_table_and_a_bad_target():
    command = [sys.executable, "-m", "dllm_kernels.offline"]
    bad = subprocess.run([*command, "--target", "sm_12"], capture_output=True, text=True)
    assert bad.returncode == 2 and "invalid choice: 'sm_12'" in bad.stderr


def test_compiling_under_the_interpreter_says_what_to_unset(monkeypatch):
    from dllm_kernels import offline

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="unset it"):
        offline.compile_all("sm_90")
