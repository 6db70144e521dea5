"""Schedulers: alpha(t) of masked diffusion, the share of tokens not masked at time t; kappa(t) of Edit Flows."""

from dllm.core.schedulers.alpha import (
    BaseAlphaScheduler,
    CosineAlphaScheduler,
    LinearAlphaScheduler,
    get_alpha_scheduler_class,
    make_alpha_scheduler,
)
from dllm.core.schedulers.kappa import (
    BaseKappaScheduler,
    CosineKappaScheduler,
    CubicKappaScheduler,
    LinearKappaScheduler,
    get_kappa_scheduler_class,
    make_kappa_scheduler,
)

__all__ = [
    "BaseAlphaScheduler",
    "BaseKappaScheduler",
    "CosineAlphaScheduler",
    "CosineKappaScheduler",
    "CubicKappaScheduler",
    "LinearAlphaScheduler",
    "LinearKappaScheduler",
    "get_alpha_scheduler_class",
    "get_kappa_scheduler_class",
    "make_alpha_scheduler",
    "make_kappa_scheduler",
]
