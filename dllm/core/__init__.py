"""Diffusion: schedulers, corruption (noising), samplers, trainers, likelihood, evaluation.

Submodules are imported on first use.
"""

import importlib
from typing import Any

_PARTS = ("eval", "likelihood", "noising", "problems", "rewards", "samplers", "schedulers", "trainers")


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return importlib.import_module(f"dllm.core.{name}")
    raise AttributeError(f"module 'dllm.core' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PARTS])
