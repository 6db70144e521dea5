"""The machine of a measurement: its hardware, versions of packages, and measured speeds of memory and products."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

from benchmarks import timing

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "triton", "transformers", "dllm")


def describe(device: torch.device) -> dict[str, object]:
    """Processor, cores, threads and free memory, and the GPU where `device` is one."""
    facts: dict[str, object] = {
        "device": device.type,
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "vector": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": _bfloat16_instructions(),
        "system": f"{platform.system()} {platform.machine()}",
        "free_memory_bytes": free_memory(torch.device("cpu")),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
        }
    return facts


def short_name(facts: dict[str, object]) -> str:
    """A name for tables: the GPU, or the processor with its number of threads."""
    return str(facts["gpu"]) if "gpu" in facts else f"{facts['cpu']}, {facts['threads']} threads"


def versions() -> dict[str, str | None]:
    """Versions of Python, CUDA and the packages that speed depends on; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def commit() -> str | None:
    """The commit of this checkout, with "+changes" where the working tree differs; None outside a git checkout."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + (
            "+changes" if _git("--no-optional-locks", "status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`; on a CPU also bounded by the control group."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    bounds = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    meminfo, limit, used = (
        Path("/proc/meminfo"),
        Path("/sys/fs/cgroup/memory.max"),
        Path("/sys/fs/cgroup/memory.current"),
    )
    if meminfo.exists():
        available = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
        bounds.append(int(available.split()[1]) * 1024)
    if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
        bounds.append(int(text) - int(used.read_text()))
    return min(bounds)


def bandwidth(device: torch.device, repeats: int = 5, n_bytes: int | None = None) -> dict[str, float]:
    """Measured memory speed in bytes per second: "read", the best of three reductions, and "copy".

    The buffer (`n_bytes`) is far larger than the last-level cache. A copy counts bytes read and bytes written.
    """
    n_bytes = n_bytes or (2**29 if device.type == "cpu" else 2**31)
    source = torch.ones(n_bytes // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    reads = (source.sum, source.amax, lambda: torch.dot(source, source))
    read = min(timing.median_seconds(call, device, repeats=repeats) for call in reads)
    copy = timing.median_seconds(lambda: target.copy_(source), device, repeats=repeats)
    return {"read": n_bytes / read, "copy": 2 * n_bytes / copy}


def matmul_speed(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """Measured FLOP/s of a square matrix product in `dtype`."""
    size = size or (8192 if device.type == "cuda" else 1024)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / timing.median_seconds(lambda: a @ b, device)


def _git(*arguments: str) -> str:
    call = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return call.stdout.strip()


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _bfloat16_instructions() -> list[str]:
    """This processor's instructions for bfloat16 products; without any, bfloat16 is slower than float32."""
    return [flag for flag in ("avx512_bf16", "amx_bf16") if flag in (_cpuinfo("flags") or "").split()]


def _cpuinfo(key: str) -> str | None:
    """The first value of a field of /proc/cpuinfo."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)
