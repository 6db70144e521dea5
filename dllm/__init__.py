"""Masked-diffusion language models: sampling, training, chat and evaluation on kernels of their own.

Importing `dllm` loads nothing; a part is loaded when it is first used:

    >>> import dllm
    >>> dllm.fast.__name__
    'dllm.fast'
"""

import importlib
from typing import Any

_PARTS = ("core", "data", "fast", "models", "pipelines", "utils")


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return importlib.import_module(f"dllm.{name}")
    if name == "__version__":
        return importlib.import_module("dllm_kernels").__version__
    raise AttributeError(f"module 'dllm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PARTS, "__version__"])
