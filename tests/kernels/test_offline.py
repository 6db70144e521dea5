"""Every Triton kernel compiles for real GPUs, here and now, without one."""

import json
import os
import subprocess
import sys

import pytest

from dllm_kernels import _impl, offline

pytestmark = pytest.mark.skipif(_impl.why_not_triton() is not None, reason=str(_impl.why_not_triton()))

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
VOCABULARY = ("chunk", "combine", "floor", "row", "scale", "tile", "weight")
INT8 = ("product", "quantize")
WINDOW = ("advance", "count", "list", "noise", "place", "transfer")
KERNELS = {f"{name}_kernel" for name in (*VOCABULARY, *INT8, *WINDOW)}
# What `make test` compiles: for sm_90 every flag of every kernel, on and off; for AMD, whose compiler is another, every
# kernel once; for the others the fused head, whose matrix instructions are their own. Kernels that draw noise take
# longest, so for sm_90 flags are compiled without noise, and with noise a few at a time.
CHUNK = (
    "float32 noise",
    "bfloat16 noise tempered softcap",
    "every option",
    *(f"bfloat16 {flag}" for flag in ("ragged", "count", "floor", "top")),
)
ROWS = ("bfloat16 loss", "bfloat16 scaled")
HEAD = ("head, 32 rows count", "bfloat16 head, 32 rows noise rows", "int8 head, 32 rows")
HEADS = (
    *HEAD,
    "head, 16 rows",
    "float16 head, 32 rows noise suppress",
    "float32 head, 32 rows noise suppress",
)
ONCE = (
    *HEAD,
    "float32 head, 32 rows noise suppress",
    "int8 layer, 16 rows",
    "bfloat16 noise tempered softcap",
    "bfloat16 weights",
    "bfloat16 top_p",
    "bfloat16 loss and gradient ragged",
    "bfloat16 scaled",
)
WINDOWS = ("k window 1", "window 64", "window 8192")  # of one warp, and of most
SOME = {
    "sm_90": (*CHUNK, *ROWS, *HEADS, "int8 layer", "weights", *WINDOWS, "noise of positions"),
    "gfx942": (*ONCE, "k window 64", "window 64, every option", "noise of positions, gumbel"),
    "sm_80": HEAD,
    "sm_100": HEAD,
}
COMPILE = """
import json, sys
from dllm_kernels import offline

some = json.loads(sys.argv[1])
rows = [row._asdict() for target, names in some.items() for row in offline.compile_all(target, names)]
print(json.dumps(rows))
"""


@pytest.fixture(
    scope="module",
    params=[pytest.param(False, id="sm_90"), pytest.param(True, id="every-target", marks=pytest.mark.exhaustive)],
)
def compiled(request, tmp_path_factory):
    """The rows of the command, or of some in one process, from an empty cache: nothing is taken from an earlier run."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")), "CUDA_VISIBLE_DEVICES": ""}
    every = ("-m", "dllm_kernels.offline", "--json", "--target", *TARGETS)
    command = [sys.executable, *(every if request.param else ("-c", COMPILE, json.dumps(SOME)))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_target_compiles_the_same(compiled, request):
    names = {
        target: {(row["kernel"], row["configuration"]) for row in compiled if row["target"] == target}
        for target in TARGETS
    }
    assert {row["target"] for row in compiled} == set(TARGETS)
    configurations = {target: {configuration for _, configuration in names[target]} for target in TARGETS}
    assert all(configurations["sm_80"] <= configurations[target] <= configurations["sm_90"] for target in TARGETS)
    assert all({kernel for kernel, _ in names[target]} == KERNELS for target in ("sm_90", "gfx942"))
    assert len(names["sm_90"]) > 30
    assert (names["sm_80"] == names["sm_90"]) == request.node.callspec.params["compiled"]


def test_no_spills(compiled):
    spilled = [row for row in compiled if row["spills"] and row["target"] in ("sm_90", "sm_100")]
    assert not spilled


def test_the_fused_head_fits_and_uses_the_matrix_units(compiled):
    """Of each target: in half precision its newest matrix instructions, no spills, and not more than its shared memory;
    two programs of aligned rows fit the registers and shared memory of an sm_90."""
    units = {"sm_80": "mma", "sm_90": "wgmma", "sm_100": "tcgen05", "gfx942": "mfma"}
    shared = {"sm_80": 163, "sm_90": 227, "sm_100": 227, "gfx942": 64}  # KiB a program may have
    heads = [row for row in compiled if row["kernel"] == "tile_kernel"]
    of_sm_90 = {row["configuration"] for row in heads if row["target"] == "sm_90"}
    assert all(any(name in configuration for configuration in of_sm_90) for name in HEADS) and len(of_sm_90) >= 10
    assert {row["target"] for row in heads} == set(TARGETS)
    for row in heads:
        in_half = "float32" not in row["configuration"]
        assert not row["spills"] and row["shared"] <= 1024 * shared[row["target"]], row
        newest = "mma" if row["target"] == "sm_100" and "int8" in row["configuration"] else units[row["target"]]
        assert not in_half or row["matrix"] == newest, row
        if row["target"] == "sm_90" and in_half and "ragged" not in row["configuration"]:
            assert row["registers"] <= 128 and 2 * (row["shared"] + 1024) <= 1024 * 228, row


CACHED = """
import torch
from dllm_kernels import offline
from dllm_kernels.masked_cross_entropy import triton as kernels

logits = torch.empty(8, 126464, device="meta", dtype=torch.bfloat16)
targets, weight = torch.empty(8, device="meta", dtype=torch.int64), torch.empty(8, device="meta")
for gradient in (logits, None):
    with offline._compiling_for("sm_90") as compiled:
        kernels.masked_cross_entropy(logits, targets, weight, weight, gradient, 0.0, 0.0, None)
    print("evict_last" in compiled[0].asm["ptx"], "evict_first" in compiled[0].asm["ptx"])
"""


def test_logits_stay_in_cache_only_for_a_gradient():
    """The first pass marks them as the last to leave where a second one follows, and as the first where none does."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", CACHED], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines() == ["True True", "False True"], done.stderr


def test_occupancy_is_bounded_by_nothing_but_the_work(compiled):
    """The pass over the vocabulary runs at half the threads of an SM or more (64 registers; every option at once, two
    fifths and 80), and exchanges nothing through shared memory but what its reductions need, where rows are aligned."""
    for row in compiled:
        if row["kernel"] == "chunk_kernel" and row["target"].startswith("sm") and "ragged" not in row["configuration"]:
            most = 96 if "noise" in row["configuration"] else 80 if "every option" in row["configuration"] else 64
            assert row["registers"] <= most and row["shared"] <= 64, row


def test_a_bad_target(capsys):
    with pytest.raises(SystemExit) as end:
        offline.main(["--target", "sm_12"])
    assert end.value.code == 2 and "invalid choice: 'sm_12'" in capsys.readouterr().err


def test_rows_of_the_command_as_json(monkeypatch, capfd):
    """From a process in which the interpreter is on: the command starts another."""
    words = ["--target", "sm_90", "--named", "scaled", "--json"]
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(sys, "argv", ["dllm_kernels.offline", *words])
    assert offline.main(words) == 0
    out, err = capfd.readouterr()
    rows = [(row["target"], row["kernel"], row["configuration"]) for row in json.loads(out)]
    assert rows == [("sm_90", "scale_kernel", f"{dtype} scaled") for dtype in ("float32", "bfloat16", "float16")]
    assert err.splitlines()[-1] == "sm_90: 3 kernels compiled"


def test_compiling_under_the_interpreter_says_what_to_unset(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="unset it"):
        offline.compile_all("sm_90")
