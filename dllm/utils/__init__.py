"""Names that scripts for dLLM 0.1 import. Nothing lives here: every name is imported from where it lives, when used."""

import importlib
from typing import Any

_HOMES = {"TrainingArguments": "dllm.configs"}
_PARTS = ("configs",)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _PARTS:
        return importlib.import_module(f"dllm.utils.{name}")
    raise AttributeError(f"module 'dllm.utils' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_PARTS])
