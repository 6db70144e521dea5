"""Which implementation serves a call: ``auto`` chooses, an explicit name never falls back."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os

import torch

IMPLEMENTATIONS = ("auto", "reference", "triton", "cpu")

_log = logging.getLogger("dllm_kernels")
_logged: set[str] = set()


def choose(impl: str, device: torch.device) -> str:
    """The implementation for tensors on `device`: "reference", "triton" or "cpu".

    Raises:
        ValueError: `impl` is no implementation, or serves other devices.
        RuntimeError: an explicitly named implementation is not available; the message says what is missing.

    Example:
        >>> choose("reference", torch.device("cpu"))
        'reference'
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")
    if impl == "auto":
        name, reason = pick(device)
        if name == "reference":
            log_once(f"{device.type} tensors are served by the reference implementation: {reason}")
        return name
    if impl == "triton":
        if device.type != "cuda" and not interpreting():
            raise ValueError(
                f"impl='triton' expects CUDA tensors (or TRITON_INTERPRET=1 for tests), got tensors on {device}"
            )
        if missing := why_not_triton():
            raise RuntimeError(f"impl='triton' cannot run: {missing}")
    if impl == "cpu":
        if device.type != "cpu":
            raise ValueError(f"impl='cpu' expects CPU tensors, got tensors on {device}")
        if missing := why_not_cpu():
            raise RuntimeError(f"impl='cpu' cannot run: {missing}")
    return impl


# torch.compile calls `choose` and keeps its answer. torch.compiler.assume_constant_result does no more than this, but
# imports the whole compiler for it, and Triton.
choose._dynamo_marked_constant = True


def imported(operation: str, impl: str, device: torch.device) -> str:
    """The name of the module, imported by now, that implements an operation for tensors on `device`: torch.compile does
    not trace imports, keeps this answer, and finds the module in sys.modules.

    Raises:
        ValueError, RuntimeError: as :func:`choose`.

    Example:
        >>> imported("int8_linear", "reference", torch.device("cpu"))
        'dllm_kernels.int8_linear.reference'
    """
    return importlib.import_module(f"dllm_kernels.{operation}.{choose(impl, device)}").__name__


imported._dynamo_marked_constant = True


def pick(device: torch.device) -> tuple[str, str]:
    """What ``auto`` takes for `device`, and why: CUDA -> triton, CPU -> cpu, where they are available.

    Example:
        >>> name, reason = pick(torch.device("meta"))
        >>> name
        'reference'
    """
    if device.type == "cuda":
        missing = why_not_triton()
        return ("reference", missing) if missing else ("triton", "CUDA tensors and triton is installed")
    if device.type == "cpu":
        missing = why_not_cpu()
        return ("reference", missing) if missing else ("cpu", "CPU tensors and the C++ extension is built")
    return "reference", f"no kernel serves {device.type} tensors"


def interpreting() -> bool:
    """Whether Triton kernels run in Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "y", "yes", "t", "true", "on")


def why_not_triton() -> str | None:
    """None when Triton can be imported, else what is missing."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed (pip install triton; Linux only)"
    return None


def why_not_cpu() -> str | None:
    """None when the C++ extension is built and loaded (building it now if need be), else what is missing."""
    from dllm_kernels import _extension

    return _extension.load()


def log_once(message: str) -> None:
    """Log a warning the first time it comes up in this process."""
    if message not in _logged:
        _logged.add(message)
        _log.warning(message)
