"""Masked-diffusion language models: sampling, training, chat and evaluation on kernels of their own.

Importing `dllm` loads no other package; a part is loaded when it is first used:

    >>> import dllm
    >>> dllm.fast.__name__
    'dllm.fast'

It also registers the official model types with the auto classes of transformers, at once if transformers has loaded
them, else when it does.
"""

import importlib
from typing import Any

from dllm.after_import import after_import

_PARTS = ("core", "data", "fast", "models", "pipelines", "utils")

after_import(
    "transformers.models.auto.configuration_auto",
    lambda module: importlib.import_module("dllm.auto_classes").register_configurations(module),
)
after_import(
    "transformers.models.auto.modeling_auto",
    lambda module: importlib.import_module("dllm.auto_classes").register_models(module),
)


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return importlib.import_module(f"dllm.{name}")
    if name == "__version__":
        return importlib.import_module("dllm_kernels").__version__
    raise AttributeError(f"module 'dllm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PARTS, "__version__"])
