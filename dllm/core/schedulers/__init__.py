"""Schedules: how much of a text is still there at time t (alpha) or already there (kappa)."""

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
