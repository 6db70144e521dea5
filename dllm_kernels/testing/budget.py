"""The rule of all tests of accuracy: an error against float64 is at most twice that of plain PyTorch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn


def assert_no_worse(
    got: Mapping[str, Tensor],
    plain: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]],
    truth: Mapping[str, Tensor],
    *,
    rounding: Mapping[str, Tensor] | None = None,
    entries: bool = True,
) -> None:
    r"""The rule of all tests of accuracy: an error against float64 is at most twice that of plain PyTorch.

    Plain PyTorch's error is a random variable: another machine adds in another order. One draw of it, or the largest of
    a few, is a coin toss, so its size sigma is what is doubled. Errors count relative to the largest entry of their row
    (of a matrix) or of all (of a vector). Of the n entries of a result two statistics are held to the rule:

    .. math::
        \sigma = \max(\mathrm{rms}(e_{plain}),\ \mathrm{rms}(rounding),\ \epsilon / \sqrt{12}) \\
        \mathrm{rms}(e) \le 2 \sigma (1 + 3 / \sqrt{2 n}) \\
        \max |e| \le 2 \max(\max |e_{plain}|,\ \epsilon,\ \sqrt{2 \ln 2n}\, \max(rms(e_{plain}), rounding))

    The first finds what is wrong everywhere. The rms of n draws is off by sigma / sqrt(2 n), and three times that is
    allowed. The second finds a single wrong entry: sqrt(2 ln 2n) sigma is what the largest of n normal draws comes to.
    epsilon / sqrt(12) is the rms of one rounding, epsilon the ulp of a result's dtype: plain PyTorch is granted them
    even where it happened to be exact.

    Few entries, or entries that share one error as all logits of a hidden state do, tell little about sigma. Then
    `rounding` tells it, from many draws that are the same on every machine: see :func:`operand_rounding`.

    Entries whose errors differ in size, such as gradients of rows with weights from 1 to 1000, tell little either: a
    few of the n decide both statistics. Then `plain` may be D draws, each computed with its sums in another order.
    rms(e_plain) and max |e_plain| above are the largest over the draws. A result as good as plain PyTorch is one more
    draw. It has the largest error of all D + 1 with probability 1 / (D + 1), whatever the distribution is, and one
    twice as large as all others more rarely.

    Args:
        got, truth: results by name, those of `truth` float64.
        plain: the same of plain PyTorch, or draws of them.
        rounding: float64, of the shapes of `truth`: the rms error of each entry, where it is known.
        entries: whether single entries are judged besides their rms. Without `rounding` they cannot be where their
            errors differ in size, as in a row of all gradients of a model: a few decide what the largest is.

    Raises:
        AssertionError: a statistic is larger.

    Example:
        >>> one = {"x": torch.ones(2)}
        >>> assert_no_worse(one, one, one)
    """
    for name, true in truth.items():
        if true.numel() == 0:
            continue
        scale = true.abs().reshape(true.shape or (1,)).amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        known = (rounding[name] / scale) if rounding is not None else torch.zeros(1)
        draws = [plain] if isinstance(plain, Mapping) else plain
        error, *of_plain = ((x[name].cpu().double() - true).abs() / scale for x in (got, *draws))
        assert_size(name, error, torch.stack(of_plain), known, torch.finfo(got[name].dtype).eps, entries=entries)


def operand_rounding(
    compute: Callable[[], Mapping[str, Tensor]],
    operands: Iterable[Tensor],
    dtype: torch.dtype = torch.float32,
    draws: int = 8,
) -> dict[str, Tensor]:
    r"""The rms error that an ulp in every operand makes of each result: what any order of the sums may cost.

    A sum of products :math:`\sum_k x_k w_k` in floating point is the exact one of operands :math:`w_k (1 + \delta_k)`
    with deltas of about an ulp (its backward error; Higham, Accuracy and Stability of Numerical Algorithms, 3.1). With
    independent deltas it errs by ulp x sqrt(number of terms) x size of the terms. So every operand is changed by
    independent deltas, uniform in [-epsilon, epsilon], and the exact results change as rounding would change them,
    through all that is computed from them. Drawn in float64, that is the same on every machine.

    Args:
        compute: results by name, in float64, of the operands as they are when it is called.
        operands: float64, such as a model's parameters; changed in place, and afterwards as they were.
        dtype: whose epsilon.
        draws: of all operands.

    Returns:
        By name, a float64 tensor of the result's shape.

    Example:
        >>> x = torch.ones(2, dtype=torch.float64)
        >>> 0 < operand_rounding(lambda: {"sum": x.sum()}, [x])["sum"] < 2 * torch.finfo(torch.float32).eps
        tensor(True)
    """
    operands = list(operands)
    if not all(x.dtype == torch.float64 for x in operands):
        raise TypeError("operands must be float64")
    kept, generator = [x.detach().clone() for x in operands], torch.Generator().manual_seed(0)
    exact = {name: x.detach().clone() for name, x in compute().items()}
    squares = {name: torch.zeros_like(x) for name, x in exact.items()}
    try:
        for _ in range(draws):
            with torch.no_grad():
                for x, as_it_was in zip(operands, kept, strict=True):
                    delta = torch.rand(x.shape, generator=generator, dtype=torch.float64) * 2 - 1
                    x.copy_(as_it_was * (1 + torch.finfo(dtype).eps * delta))
            for name, x in compute().items():
                squares[name] += (x.detach() - exact[name]) ** 2
    finally:
        with torch.no_grad():
            for x, as_it_was in zip(operands, kept, strict=True):
                x.copy_(as_it_was)
    return {name: (x / draws).sqrt() for name, x in squares.items()}


def assert_model_no_worse(
    got: Mapping[str, Tensor],
    compute: Callable[[nn.Module], Mapping[str, Tensor]],
    model: nn.Module,
    *,
    dtype: torch.dtype | None = None,
    draws: int = 4,
) -> None:
    """:func:`assert_no_worse` of what `compute` returns of a copy of the model: plain PyTorch's at the model's dtype,
    the truth at float64, and the errors of rounded parameters (:func:`operand_rounding`).

    Args:
        got: results by name.
        compute: of a model that it may change, the same results as anybody would compute them.
        model: left as it is.
        dtype: that products are computed in where it is not the model's, as under autocast.
        draws: of all parameters.

    Example:
        >>> layer, x = nn.Linear(8, 8), torch.ones(1, 8)
        >>> def compute(layer):
        ...     return {"y": layer(x.to(layer.weight.dtype))}
        >>> assert_model_no_worse(compute(layer), compute, layer)
    """
    exact = copy.deepcopy(model).double()

    def true() -> Mapping[str, Tensor]:
        return {name: x.detach().double() for name, x in compute(copy.deepcopy(exact)).items()}

    dtype = next(model.parameters()).dtype if dtype is None else dtype
    plain = {name: x.detach() for name, x in compute(copy.deepcopy(model)).items()}
    rounding = operand_rounding(true, exact.parameters(), dtype, draws)
    got = {name: x.detach() for name, x in got.items()}
    assert got.keys() == plain.keys() and all(got[name].shape == plain[name].shape for name in got)
    assert_no_worse(got, plain, true(), rounding=rounding)


def assert_sum_no_worse(got: float, plain: Tensor, truth: Tensor) -> None:
    """The sum of `truth`, float64 [n], by the rule of :func:`assert_no_worse`: twice what it costs plain PyTorch, whose
    terms' errors may not cancel, and one rounding of the sum.

    Example:
        >>> assert_sum_no_worse(3.0, torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]))
    """
    exact = float(truth.sum())
    budget = 2 * (float((plain - truth).abs().sum()) + torch.finfo(torch.float32).eps * abs(exact))
    if not abs(got - exact) <= budget:
        raise AssertionError(f"sum: error {abs(got - exact):.3g}, budget {budget:.3g} (twice plain PyTorch's)")


def largest_allowed(of_plain: Tensor, ulp: float) -> float:
    """Twice the largest error that plain PyTorch, whose errors are `of_plain` [n], may be expected to make: the second
    statistic of :func:`assert_no_worse`.

    Example:
        >>> largest_allowed(torch.zeros(3), 0.5)
        1.0
    """
    zero = torch.zeros(1, dtype=torch.float64)
    return float(_allowed(of_plain.double().abs()[None], zero, ulp, zero)[1])


def _allowed(of_plain: Tensor, rounding: Tensor, ulp: float, granted: Tensor) -> tuple[Tensor, Tensor]:
    """What the rms of n errors may be, and what each of them. `of_plain`: [draws, ...] with n entries each; `granted`:
    errors that plain PyTorch may make in any entry."""
    n, typical = of_plain[0].numel(), torch.stack([_rms(draw) for draw in of_plain]).max()
    sigma = torch.stack([typical, _rms(rounding), granted.max(), torch.tensor(ulp / 12**0.5).double()]).max()
    expected = (2 * math.log(2 * n)) ** 0.5 * torch.maximum(typical, rounding.max())
    largest = torch.maximum(of_plain.max(), expected).clamp(min=ulp)
    return 2 * sigma * (1 + 3 / (2 * n) ** 0.5), 2 * torch.maximum(largest, granted)


def assert_size(
    name: str,
    error: Tensor,
    of_plain: Tensor,
    rounding: Tensor,
    ulp: float,
    granted: Tensor | None = None,
    entries: bool = True,
) -> None:
    """Check one result by the rule of :func:`assert_no_worse`.

    Args:
        name: of the result.
        error: of its entries.
        of_plain: the same of D draws of plain PyTorch, [D, ...].
        rounding: the rms error of each entry, where it is known.
        ulp: of the result's dtype.
        granted: errors that plain PyTorch may make in any entry.
        entries: whether single entries are judged besides their rms.

    Raises:
        AssertionError: a statistic is larger.
    """
    if error.numel() == 0:
        return
    granted = torch.zeros(1, dtype=torch.float64) if granted is None else granted
    rms, each = _allowed(of_plain, rounding, ulp, granted)
    entry = int((error / each).argmax()) if not error.isnan().any() else int(error.isnan().flatten().int().argmax())
    judged = [("rms error", _rms(error), rms)]
    if entries:
        judged.append((f"error of entry {entry}", error.flatten()[entry], each.expand_as(error).flatten()[entry]))
    for kind, size, budget in judged:
        if not size <= budget:
            raise AssertionError(f"{name}: {kind} {size:.3g}, budget {budget:.3g} (twice plain PyTorch's)")


def _rms(x: Tensor) -> Tensor:
    return x.double().square().mean().sqrt()
