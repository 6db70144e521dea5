"""A2D: autoregressive models of the Qwen and Llama families that became diffusion models.

`python -m dllm.pipelines.a2d.convert` makes one of a causal checkpoint. The names below are imported on first use, so
that this program begins at once.
"""

import importlib
from typing import Any

_MODULES = {
    "dllm.core.samplers": ("BD3LMSampler", "BD3LMSamplerConfig", "MDLMSampler", "MDLMSamplerConfig"),
    "dllm.core.trainers": ("BD3LMConfig", "BD3LMTrainer", "MDLMConfig", "MDLMTrainer"),
    "dllm.pipelines.a2d.models": (
        "A2DLlamaConfig",
        "A2DLlamaLMHeadModel",
        "A2DQwen2Config",
        "A2DQwen2LMHeadModel",
        "A2DQwen3Config",
        "A2DQwen3LMHeadModel",
    ),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'dllm.pipelines.a2d' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
