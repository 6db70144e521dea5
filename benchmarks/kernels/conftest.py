"""Fixtures of the kernel benchmarks: `pytest benchmarks/kernels`, with pytest-benchmark.

Every case reads its inputs from a cold cache. `extra_info` of a case holds the least bytes to move, the resulting bytes
per second, and their share of this machine's measured memory speed (a copy on a GPU, a read on a CPU). For matrix
products it holds useful FLOPs, their share of the measured speed of a square product, and peak memory.
`--benchmark-json FILE` writes all of it to a file.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import pytest
import torch

from benchmarks import machine, peers, timing
from benchmarks.kernels import operations
from benchmarks.kernels.cases import Case

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
CACHE_BYTES = {"cpu": 2**27, "cuda": 0}  # on a GPU the timer flushes the cache itself
SUMMARY = pytest.StashKey[list[tuple[str, dict[str, object]]]]()


def pytest_configure(config: pytest.Config) -> None:
    """Collect functions bench_* of files bench_*.py."""
    config.addinivalue_line("python_files", "bench_*.py")
    config.addinivalue_line("python_functions", "bench_*")


@pytest.fixture(params=DEVICES, scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device of this machine."""
    return torch.device(request.param)


@functools.cache
def ceiling(device: torch.device) -> float:
    """Measured bytes per second: of a copy on a GPU, of a read on a CPU."""
    return machine.bandwidth(device)["copy" if device.type == "cuda" else "read"]


@functools.cache
def product_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Measured FLOP/s of a square matrix product."""
    return machine.matmul_speed(device, dtype)


@pytest.fixture
def measure(request: pytest.FixtureRequest, benchmark, device: torch.device) -> Callable[..., None]:
    """A function that times `call(input)` on the inputs in turn and records its share of the machine's speed.

    `measure(call, inputs, n_bytes)` records bytes per second; `measure(call, inputs, flops=f, dtype=d)` records FLOP/s
    and peak memory.
    """

    def run(
        call: Callable[[object], object],
        inputs: Sequence[object],
        n_bytes: int | None = None,
        *,
        flops: float | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        turns = itertools.cycle(inputs)

        def synchronised(value: object) -> None:
            call(value)
            timing.synchronize(device)

        benchmark.pedantic(synchronised, setup=lambda: ((next(turns),), {}), rounds=20, warmup_rounds=3)
        if benchmark.disabled:  # one call of each case is enough
            return
        seconds = timing.median_seconds(lambda: call(next(turns)), device, repeats=20)
        info = {"device": device.type, "cold_seconds": seconds}
        if n_bytes is not None:
            info |= {
                "bytes": n_bytes,
                "gigabytes_per_second": n_bytes / seconds / 1e9,
                "fraction_of_measured_memory_speed": n_bytes / seconds / ceiling(device),
            }
        if flops is not None:
            given = next(turns)
            operations.free_gradients(given)
            with timing.PeakMemory(device) as memory:
                synchronised(given)
            info |= {
                "flops": flops,
                "fraction_of_measured_product_speed": flops / seconds / product_ceiling(device, dtype),
                "peak_bytes": memory.bytes,
            }
        benchmark.extra_info |= info
        request.config.stash.setdefault(SUMMARY, []).append((benchmark.name, info))

    return run


@pytest.fixture
def measure_case(measure: Callable[..., None], device: torch.device) -> Callable[[Case, str], None]:
    """A function `measure_case(case, program)` that measures one program on one case, on cold inputs."""

    def run(case: Case, program: str) -> None:
        programs = operations.programs(case, backend="inductor" if program == "compiled" else None)
        if program not in programs:
            pytest.skip(f"{program} is not installed, or does not do this")
        if device.type == "cpu" and program in peers.PEERS.get(case.op, {}):
            pytest.skip(f"{program} runs on GPUs")
        copies = max(1, CACHE_BYTES[device.type] // case.bytes) if case.vocab and not case.hidden else 1
        inputs = [operations.make_inputs(case, device) for _ in range(copies)]
        if case.op == "linear_cross_entropy":
            measure(programs[program], inputs, flops=case.flops, dtype=case.torch_dtype)
        else:
            measure(programs[program], inputs, case.bytes, flops=case.flops or None, dtype=case.torch_dtype)

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print below pytest-benchmark's table each case's bytes or FLOPs and its share of the machine's speed."""
    summary = config.stash.get(SUMMARY, [])
    if not summary:
        return
    terminalreporter.section("on cold inputs")
    for name, info in summary:
        line = f"{name:75} {1e6 * info['cold_seconds']:>10.1f} us"
        if "bytes" in info:
            share = info["fraction_of_measured_memory_speed"]
            line += f" {info['bytes']:>12,} B {info['gigabytes_per_second']:>8.2f} GB/s {share:>6.1%}"
        if "flops" in info:
            peak = "" if info["peak_bytes"] is None else f" peak {info['peak_bytes'] / 1e6:,.0f} MB"
            line += f" {info['fraction_of_measured_product_speed']:>6.1%} of product speed{peak}"
        terminalreporter.write_line(line)
