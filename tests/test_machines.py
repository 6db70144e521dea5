"""The tests that numbers decide, on machines that are not at hand: in processes held to the instructions of older CPUs.

oneDNN, ATen and MKL read their limits from the environment. The C++ extension is compiled without what is newer.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from dllm_kernels import _extension
from tests.compiler import quick

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="limits of x86-64"),
    pytest.mark.skipif(_extension.find_compiler() is None, reason="no C++ compiler"),
]


class Machine(NamedTuple):
    """What the environment says, the flags of the extension's compiler, and what a CPU must have to be held to it."""

    onednn: str
    aten: str
    mkl: str
    flags: str
    needs: str


NO_TILES = "-mno-amx-tile -mno-amx-bf16"
MACHINES = {
    "SSE4": Machine("SSE41", "default", "SSE4_2", f"{NO_TILES} -mno-avx512f -mno-avx2 -mno-fma -mno-avx", "sse4_1"),
    "AVX2": Machine("AVX2", "avx2", "AVX2", f"{NO_TILES} -mno-avx512f", "avx2"),
    "AVX-512": Machine("AVX512_CORE", "avx512", "AVX512", f"{NO_TILES} -mno-avx512bf16", "avx512f"),
    "AVX-512 BF16": Machine("AVX512_CORE_BF16", "avx512", "AVX512", NO_TILES, "avx512_bf16"),
    "AMX": Machine("AVX512_CORE_AMX", "avx512", "AVX512", "", "amx_bf16"),
}
FEW = (
    "kernels/test_gumbel_argmax.py::test_greedy",
    "kernels/test_gumbel_argmax.py::test_sampled",
    "kernels/test_draw.py::test_the_kernel_with_every_option",
    "kernels/test_testing.py",
    "fast/test_head.py",
    "fast/test_bfloat16_batches.py::test_samplers",
    "fast/test_masked_loss.py::test_linear_head",
    "test_reference_cached.py::test_kept_columns_are_those_of_transformers_cache",
    "kernels/test_linear_gumbel_argmax.py::test_a_row_is_the_same_in_any_batch",
    "kernels/test_linear_gumbel_argmax.py::test_products_err_no_more_than_plain_pytorch",
    "kernels/test_linear_expected_embedding.py::test_against_the_truth",
    "kernels/test_softcap.py::test_the_kernel_draws_the_references_tokens",
    "kernels/test_masked_cross_entropy.py::test_a_target_that_is_nearly_certain",
)
MANY = (
    *(f"kernels/test_{name}.py" for name in ("draw", "gumbel_argmax", "linear_cross_entropy", "linear_gumbel_argmax")),
    *(f"kernels/test_{name}.py" for name in ("linear_expected_embedding", "softcap")),
    *(f"kernels/test_{name}.py" for name in ("masked_cross_entropy", "position_noise", "testing", "truncation_floor")),
    *(f"fast/test_{name}.py" for name in ("bfloat16_batches", "generate", "head", "masked_loss", "patch")),
    *(f"core/test_{name}.py" for name in ("bd3lm", "lora", "mdlm", "memory")),
    *(f"samplers/test_{name}.py" for name in ("against_judges", "batches", "cached_judges", "corners")),
    *("data/test_packing.py", "test_bidirectional.py", "test_reference_cached.py", "tools/test_merge.py"),
)


def run(name: str, tests: tuple[str, ...], threads: int, compiler: str) -> None:
    machine = MACHINES[name]
    if machine.needs not in Path("/proc/cpuinfo").read_text().split():
        pytest.skip(f"this CPU has no {machine.needs}")
    limits = dict(
        ONEDNN_MAX_CPU_ISA=machine.onednn,
        ATEN_CPU_CAPABILITY=machine.aten,
        MKL_ENABLE_INSTRUCTIONS=machine.mkl,
        CXX=compiler,
        OMP_NUM_THREADS=str(threads),
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | limits
    check = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    held = subprocess.run([sys.executable, "-c", check], env=environment, capture_output=True, text=True)
    assert held.stdout.strip().lower() == machine.aten, held.stderr
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{test}" for test in tests)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels of the GPU would run instead")
def test_avx2(tmp_path):
    run("AVX2", FEW, 1, quick(tmp_path, MACHINES["AVX2"].flags))


@pytest.mark.exhaustive
@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels of the GPU would run instead")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", MACHINES)
def test_every_machine(name, threads):
    run(name, MANY, threads, f"{_extension.find_compiler()} {MACHINES[name].flags}")
