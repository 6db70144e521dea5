"""Schedules against their formulae in plain Python, their derivatives against finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from dllm.core import schedulers
from dllm.core.schedulers import (
    BaseAlphaScheduler,
    BaseKappaScheduler,
    CosineAlphaScheduler,
    CubicKappaScheduler,
    LinearAlphaScheduler,
    get_alpha_scheduler_class,
    get_kappa_scheduler_class,
    make_alpha_scheduler,
    make_kappa_scheduler,
)

ALPHA = {"linear": lambda t: 1 - t, "cosine": lambda t: 1 - math.cos(math.pi / 2 * (1 - t))}
KAPPA = {
    "linear": lambda t: t,
    "cosine": lambda t: 1 - math.cos(math.pi / 2 * t),
    "cubic": lambda t: 2 * t**3 - 3 * t**2 + 2 * t,
}
TIMES = [0.0, 1e-3, 0.25, 0.5, 0.75, 0.999, 1.0]
STEP = 1e-6


def slope(f, t):
    """Central difference; at the ends of [0, 1] one of the formula continued."""
    return (f(t + STEP) - f(t - STEP)) / (2 * STEP)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("name", ALPHA)
def test_alpha(name, t):
    scheduler, alpha = make_alpha_scheduler(name), ALPHA[name]
    assert scheduler(t) == scheduler.alpha(t) == pytest.approx(alpha(t), abs=1e-15)
    assert scheduler.alpha_derivative(t) == pytest.approx(slope(alpha, t), abs=1e-8)
    assert scheduler.weight(t) == pytest.approx(-slope(alpha, t) / (1 - alpha(t) + 1e-6), rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("name", KAPPA)
def test_kappa(name, t):
    scheduler, kappa = make_kappa_scheduler(name), KAPPA[name]
    assert scheduler(t) == scheduler.kappa(t) == pytest.approx(kappa(t), abs=1e-15)
    assert scheduler.kappa_derivative(t) == pytest.approx(slope(kappa, t), abs=1e-8)
    if t < 1:
        assert scheduler.weight(t) == pytest.approx(slope(kappa, t) / (1 - kappa(t)), rel=1e-6, abs=1e-7)


def test_ends():
    """Nothing is masked at 0 and everything at 1; nothing shows at 0 and everything at 1."""
    for name in ALPHA:
        assert make_alpha_scheduler(name)(0.0) == pytest.approx(1, abs=1e-15)
        assert make_alpha_scheduler(name)(1.0) == 0
    for name in KAPPA:
        assert make_kappa_scheduler(name)(0.0) == 0
        assert make_kappa_scheduler(name)(1.0) == pytest.approx(1, abs=1e-15)
    assert make_kappa_scheduler("linear").weight(1.0) == math.inf


def test_cubic_options():
    t, a, b = 0.3, 2.0, 0.5
    expected = (a + 1) * t**3 - (a + b + 1) * t**2 + (b + 1) * t
    assert CubicKappaScheduler(a=a, b=b)(t) == pytest.approx(expected, abs=1e-15)
    assert make_kappa_scheduler("cubic", a=a, b=b) == CubicKappaScheduler(a, b)


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_linear_alpha_spreads_the_masks_evenly(steps):
    """From (S - j) / S to (S - j - 1) / S a masked token is revealed with probability 1 / (S - j)."""
    for j in range(steps):
        t, s = (steps - j) / steps, (steps - j - 1) / steps
        assert 1 - LinearAlphaScheduler().reverse_mask_prob(s, t) == pytest.approx(1 / (steps - j), abs=1e-15)


def test_numbers_give_numbers_and_tensors_tensors():
    scheduler = CosineAlphaScheduler()
    for method in (scheduler, scheduler.alpha, scheduler.alpha_derivative, scheduler.weight):
        assert type(method(1)) is float
        for dtype in (torch.float32, torch.float64):
            value = method(torch.full((2, 3), 0.25, dtype=dtype))
            assert value.shape == (2, 3) and value.dtype == dtype
            assert torch.allclose(value, torch.tensor(method(0.25), dtype=dtype))
    assert scheduler.reverse_mask_prob(torch.tensor([0.1, 0.2]), torch.tensor(0.5)).shape == (2,)
    assert torch.is_tensor(scheduler.reverse_mask_prob(0.1, torch.tensor(0.5)))


@pytest.mark.parametrize("scheduler", [LinearAlphaScheduler(), CubicKappaScheduler()])
@pytest.mark.parametrize("t", [-1e-9, 1.0000001, math.nan, math.inf])
def test_times_outside(scheduler, t):
    for wrong in (t, torch.tensor([0.5, t], dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"t must lie in \[0, 1\], got"):
            scheduler(wrong)
        with pytest.raises(ValueError, match=r"t must lie in \[0, 1\], got"):
            scheduler.weight(wrong)


def test_what_is_no_time():
    for wrong in ("0.5", None, True, torch.tensor(1)):
        with pytest.raises(TypeError, match=r"t must be"):
            LinearAlphaScheduler()(wrong)
    for s, t in ((0.5, 0.5), (0.6, 0.5), (0.0, 0.0)):
        with pytest.raises(ValueError, match="s must be less than t"):
            LinearAlphaScheduler().reverse_mask_prob(s, t)


@pytest.mark.parametrize("name", ["LinearAlphaScheduler", "linearalphascheduler", "LINEAR", "linear"])
def test_names(name):
    assert get_alpha_scheduler_class(name) is LinearAlphaScheduler
    assert make_alpha_scheduler(name) == LinearAlphaScheduler()


@pytest.mark.parametrize("name", ["sqrt", "", None, "linearkappascheduler"])
def test_unknown_names_list_the_known(name):
    with pytest.raises(ValueError, match=r"CosineAlphaScheduler, LinearAlphaScheduler"):
        get_alpha_scheduler_class(name)
    with pytest.raises(ValueError, match=r"CosineKappaScheduler, CubicKappaScheduler, LinearKappaScheduler"):
        get_kappa_scheduler_class(name and name.replace("kappa", "alpha"))
    with pytest.raises(TypeError):
        make_alpha_scheduler("linear", a=1.0)


def test_a_subclass_is_known_by_its_name(monkeypatch):
    for base in (BaseAlphaScheduler, BaseKappaScheduler):
        monkeypatch.setattr(base, "__registry__", dict(base.__registry__))

    class SquareAlphaScheduler(BaseAlphaScheduler):
        def _alpha(self, t):
            return 1 - t**2

        def _alpha_derivative(self, t):
            return -2 * t

    assert make_alpha_scheduler("square").weight(1.0) == pytest.approx(2, rel=1e-5)
    assert "SquareAlphaScheduler" not in BaseKappaScheduler.__registry__
    with pytest.raises(TypeError):
        BaseAlphaScheduler()


def test_public_names():
    assert all(hasattr(schedulers, name) for name in schedulers.__all__)
