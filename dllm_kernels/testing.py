"""What tests and benchmarks share: a float64 truth, an error budget derived from it, poisoned memory, input makers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm_kernels.gumbel_argmax import GumbelArgmax
from dllm_kernels.gumbel_argmax.reference import gumbel_argmax as reference_gumbel_argmax
from dllm_kernels.truncation_floor.reference import truncation_floor as reference_truncation_floor

STATISTICS = ("log_prob", "margin", "neg_entropy", "lse")


def make_logits(
    rows: int, vocab_size: int, *, scale: float = 3.0, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Tensor:
    """Normal logits [rows, vocab_size] on the CPU, rounded to `dtype`; a scale of 3 is like an untrained head's,
    30 like a saturated model's.

    Example:
        >>> make_logits(2, 5, dtype=torch.bfloat16).shape
        torch.Size([2, 5])
    """
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, vocab_size, generator=generator) * scale).to(dtype)


def make_noise(rows: int, temperature: float | Tensor, *, seed: int = 0) -> dict[str, float | Tensor]:
    """Keyword arguments of :func:`dllm_kernels.gumbel_argmax` that address each row's noise: seeds with all 64 bits in
    use, positions and steps that differ.

    Example:
        >>> sorted(make_noise(2, 1.0))
        ['positions', 'seeds', 'step', 'temperature']
    """
    generator = torch.Generator().manual_seed(seed)
    draw = {"size": (rows,), "generator": generator}
    return {
        "temperature": temperature,
        "seeds": torch.randint(-(2**63), 2**63 - 1, **draw),
        "positions": torch.randint(0, 4096, **draw),
        "step": torch.randint(0, 1024, **draw),
    }


def true_gumbel_argmax(
    logits: Tensor, *, statistics: str = "raw", top_k: int | None = None, top_p: float | None = None, **arguments
) -> GumbelArgmax:
    """The reference on float64 copies of `logits`; `arguments` as the public function takes them, per-row ones [R].

    Example:
        >>> true_gumbel_argmax(torch.zeros(1, 4)).lse
        tensor([1.3863], dtype=torch.float64)
    """
    x = logits.cpu().double()
    shared = {name: arguments.get(name) for name in ("temperature", "suppress", "rows", "count")}
    floor = (
        None if top_k is None and top_p is None else reference_truncation_floor(x, top_k=top_k, top_p=top_p, **shared)
    )
    return GumbelArgmax(*reference_gumbel_argmax(x, tempered=statistics == "tempered", floor=floor, **arguments))


def measured_logits(
    logits: Tensor,
    *,
    statistics: str = "raw",
    temperature: Tensor | None = None,
    suppress: Tensor | None = None,
    begin_suppress: Tensor | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    **_: object,
) -> Tensor:
    """float32 logits whose softmax the statistics describe, as anybody would form them; options as in the public
    function.

    Example:
        >>> measured_logits(torch.tensor([[1.0, 2.0]]), suppress=torch.tensor([True, False]))
        tensor([[-inf, 2.]])
    """
    x = logits.float()
    if suppress is not None:
        x = x.masked_fill(suppress, -torch.inf)
    floor = reference_truncation_floor(logits.double(), temperature, top_k, top_p, suppress)
    x = x.masked_fill(x.double() < floor[:, None], -torch.inf)
    if begin_suppress is not None:
        x = x.masked_fill(begin_suppress, -torch.inf)
    return x / torch.where(temperature > 0, temperature, 1.0)[:, None] if statistics == "tempered" else x


def plain_statistics(logits: Tensor, token: Tensor) -> dict[str, Tensor]:
    """The same statistics as anybody would compute them in float32 PyTorch: the yardstick of the error budget.

    Example:
        >>> plain_statistics(torch.zeros(1, 4), torch.tensor([0]))["log_prob"]
        tensor([-1.3863])
    """
    log_p = torch.log_softmax(logits.float(), dim=-1)
    p = log_p.exp()
    two = p.topk(min(2, p.shape[-1]), dim=-1).values
    return {
        "log_prob": log_p.gather(-1, token[:, None]).squeeze(-1),
        "margin": two[:, 0] - (two[:, 1] if two.shape[-1] > 1 else 0.0),
        "neg_entropy": torch.special.entr(p).sum(-1).neg(),
        "lse": logits.float().logsumexp(-1),
    }


def assert_within_budget(got: GumbelArgmax, logits: Tensor, **arguments) -> None:
    """Every statistic's largest error against float64 is at most twice that of plain PyTorch.

    Errors are measured in units of one float32 ulp of the quantity's scale (at least 1, the scale at which the
    exponentials were rounded), and plain PyTorch is granted one such ulp even where it happened to be exact.

    Example:
        >>> from dllm_kernels import gumbel_argmax
        >>> logits = make_logits(4, 1000)
        >>> assert_within_budget(gumbel_argmax(logits), logits)
    """
    truth = true_gumbel_argmax(logits, **arguments)
    plain = plain_statistics(measured_logits(logits.cpu(), **arguments), truth.token)
    _assert_statistics(got, plain, truth, granted=torch.tensor(0.0))


def make_head(
    rows: int, width: int, vocab_size: int, *, scale: float = 3.0, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """hidden [rows, width], weight [vocab_size, width] and bias [vocab_size] whose logits have a standard deviation of
    about `scale`.

    Example:
        >>> [x.shape[0] for x in make_head(2, 3, 5)]
        [2, 5, 5]
    """
    generator = torch.Generator().manual_seed(seed)
    shapes, scales = ((rows, width), (vocab_size, width), (vocab_size,)), (1.0, scale / width**0.5, scale / 3)
    return tuple((torch.randn(s, generator=generator) * by).to(dtype) for s, by in zip(shapes, scales, strict=True))


def true_linear_gumbel_argmax(hidden: Tensor, weight: Tensor, bias: Tensor | None = None, **arguments) -> GumbelArgmax:
    """:func:`true_gumbel_argmax` of the head's logits, multiplied in float64.

    Example:
        >>> true_linear_gumbel_argmax(torch.zeros(1, 2), torch.zeros(4, 2)).lse
        tensor([1.3863], dtype=torch.float64)
    """
    return true_gumbel_argmax(_true_logits(hidden, weight, bias), **arguments)


def assert_head_within_budget(
    got: GumbelArgmax, hidden: Tensor, weight: Tensor, bias: Tensor | None = None, **arguments
) -> None:
    """As :func:`assert_within_budget`, beside plain PyTorch's F.linear in the same dtype and statistics of its result.

    A product's errors fall on single logits, and one of them is a statistic's. So plain PyTorch is granted the largest
    error of its logits where its statistics happened to be nearer. Where a near tie makes another token of `got` than
    the truth's, its log-probability is not compared.

    Example:
        >>> from dllm_kernels import linear_gumbel_argmax
        >>> head = make_head(4, 8, 100)
        >>> assert_head_within_budget(linear_gumbel_argmax(*head), *head)
    """
    truth = true_linear_gumbel_argmax(hidden, weight, bias, **arguments)
    logits = F.linear(hidden, weight, bias).cpu()
    plain = plain_statistics(measured_logits(logits, **arguments), truth.token)
    log_prob = torch.where(got.token.cpu() == truth.token, got.log_prob.cpu().double(), truth.log_prob)
    error = (logits.double() - _true_logits(hidden, weight, bias)).abs().max()
    _assert_statistics(got._replace(log_prob=log_prob), plain, truth, granted=error)


def _true_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(*(None if x is None else x.cpu().double() for x in (hidden, weight, bias)))


def _assert_statistics(got: GumbelArgmax, plain: Mapping[str, Tensor], truth: GumbelArgmax, granted: Tensor) -> None:
    for name in STATISTICS:
        true = getattr(truth, name)
        scale = true.abs().clamp(min=1.0)
        error, of_plain = (
            torch.where(x == true, 0.0, (x - true).abs())  # -inf may be right
            for x in (getattr(got, name).cpu().double(), plain[name].double())
        )
        of_plain = (
            torch.where(of_plain == 0, 0.0, of_plain / scale).max().clamp(min=torch.finfo(torch.float32).eps) * scale
        )
        budget = 2 * torch.maximum(of_plain, granted)
        if not (error <= budget).all():
            row = int((error / budget).argmax())
            raise AssertionError(
                f"{name}: error {error[row]:.3g} in row {row}, budget {budget[row]:.3g} (twice plain PyTorch's)"
            )


def near_ties(got: Tensor, expected: Tensor, scores: Tensor) -> int:
    """How many tokens differ; raises where a difference is more than a near tie.

    Two implementations may differ where the float64 scores [R, V] of the two tokens are within 4 float32 ulp.

    Example:
        >>> near_ties(torch.tensor([0]), torch.tensor([0]), torch.zeros(1, 2))
        0
    """
    different = (got != expected).nonzero().flatten().tolist()
    for row in different:
        a, b = scores[row, got[row]].item(), scores[row, expected[row]].item()
        bound = 4 * torch.finfo(torch.float32).eps * max(abs(a), abs(b), 1.0)
        if not abs(a - b) <= bound:
            raise AssertionError(f"row {row}: token {int(got[row])} (score {a}) for {int(expected[row])} (score {b})")
    return len(different)


def make_rows(rows: int, vocab_size: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """targets [rows] and row_weight [rows]: every third row without a weight, and a label that is none; the others with
    weights 1/t from 1 to 1000.

    Example:
        >>> make_rows(3, 5)[1][0]
        tensor(0.)
    """
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(vocab_size, (rows,), generator=generator)
    weight = 1000.0 ** torch.rand(rows, generator=generator)
    unused = torch.arange(rows) % 3 == 0
    return targets.masked_fill(unused, -100), weight.masked_fill(unused, 0.0)


def plain_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    row_weight: Tensor,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """loss, nll as anybody would compute them, upcasting the logits: the yardstick of the error budget.

    Example:
        >>> plain_cross_entropy(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([2.0]))[0]
        tensor(1.3863)
    """
    l = logits.float() if softcap is None else softcap * torch.tanh(logits.float() / softcap)
    used = row_weight != 0
    nll = F.cross_entropy(l, targets.where(used, 0), reduction="none", label_smoothing=label_smoothing)
    if z_loss:
        nll = nll + z_loss * l.logsumexp(-1).square()
    nll = torch.where(used, nll, 0.0)
    return (row_weight * nll).sum(), nll


def assert_no_worse(got: Mapping[str, Tensor], plain: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> None:
    """Every result's largest error against float64 is at most twice that of plain PyTorch.

    Errors count relative to the largest entry of their row (of a matrix) or of all (of a vector), and plain PyTorch is
    granted one ulp of the result's dtype even where it happened to be exact.

    Example:
        >>> one = {"x": torch.ones(2)}
        >>> assert_no_worse(one, one, one)
    """
    for name, true in truth.items():
        scale = true.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        error, of_plain = (((x[name].cpu().double() - true).abs() / scale).max() for x in (got, plain))
        budget = 2 * of_plain.clamp(min=torch.finfo(got[name].dtype).eps)
        if not error <= budget:
            raise AssertionError(f"{name}: error {error:.3g}, budget {budget:.3g} (twice plain PyTorch's)")


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """torch.empty and its kin hand out NaN (floats) and -7 (integers), so that what is read unwritten shows.

    Example:
        >>> with poisoned_memory():
        ...     torch.empty(1)
        tensor([nan])
    """
    original = {name: getattr(torch, name) for name in ("empty", "empty_like", "empty_strided")}

    def poisoned(make):
        def wrapper(*args, **kwargs):
            fresh = make(*args, **kwargs)
            if fresh.dtype == torch.bool:
                return fresh
            return fresh.fill_(float("nan") if fresh.is_floating_point() else -7)

        return wrapper

    try:
        for name, make in original.items():
            setattr(torch, name, poisoned(make))
        yield
    finally:
        for name, make in original.items():
            setattr(torch, name, make)
