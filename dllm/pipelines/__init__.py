"""The names that scripts of dLLM 0.1 import, family by family, and what is special to one family.

A family is imported on first use. A name that this package does not have is an ImportError.
"""

import importlib
from typing import Any

__all__ = [
    "a2d",
    "bert",
    "dream",
    "editflow",
    "fastdllm",
    "llada",
    "llada2",
    "llada21",
    "nemotron_diffusion",
    "rl",
    "rnd1",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"dllm.pipelines.{name}")
    raise AttributeError(f"module 'dllm.pipelines' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
