"""What tests and benchmarks share: a float64 truth, an error budget derived from it, poisoned memory, input makers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dllm_kernels import draw
from dllm_kernels.gumbel_argmax import GumbelArgmax
from dllm_kernels.gumbel_argmax.reference import gumbel_argmax as reference_gumbel_argmax
from dllm_kernels.linear_expected_embedding import ExpectedEmbedding
from dllm_kernels.linear_expected_embedding.reference import linear_expected_embedding as reference_expected_embedding
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
    """Every statistic's error against float64 is at most twice that of plain PyTorch: the rule of
    :func:`assert_no_worse`. Errors count relative to the statistic, or to 1 where it is less: there exponentials are
    rounded.

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


def true_expected_embedding(
    hidden: Tensor, weight: Tensor, bias: Tensor | None = None, *, statistics: str = "tempered", **arguments
) -> ExpectedEmbedding:
    """The reference of :func:`dllm_kernels.linear_expected_embedding` on float64 copies; per-row arguments are [R].

    Example:
        >>> true_expected_embedding(torch.zeros(1, 2), torch.eye(2)).embedding
        tensor([[0.5000, 0.5000]], dtype=torch.float64)
    """
    head = (None if x is None else x.double() for x in (hidden, weight, bias))
    *sampled, embedding = reference_expected_embedding(*head, tempered=statistics == "tempered", **arguments)
    return ExpectedEmbedding(GumbelArgmax(*sampled), embedding)


def plain_expected_embedding(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    temperature: Tensor | float = 0.0,
    softcap: float | None = None,
) -> Tensor:
    """softmax(l / T) @ weight as anybody would form it, of float32 logits and probabilities in the weight's dtype: the
    yardstick of the error budget.

    Example:
        >>> plain_expected_embedding(torch.zeros(1, 2), torch.eye(2))
        tensor([[0.5000, 0.5000]])
    """
    l = F.linear(hidden, weight, bias).float()
    l = l if softcap is None else softcap * torch.tanh(l / softcap)
    T = torch.as_tensor(temperature, dtype=torch.float32).expand(len(l))
    return (l / torch.where(T > 0, T, 1.0)[:, None]).softmax(-1).to(weight.dtype) @ weight


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
    ulp, none = torch.finfo(torch.float32).eps, torch.zeros(1, dtype=torch.float64)
    for name in STATISTICS:
        true = getattr(truth, name)
        scale = true.abs().clamp(min=1.0)
        error, of_plain = (
            torch.where(x == true, 0.0, (x - true).abs() / scale)  # -inf may be right
            for x in (getattr(got, name).cpu().double(), plain[name].double())
        )
        _assert_size(name, error, of_plain[None], none, ulp, granted / scale)


def draw_scores(logits: Tensor, temperature: float | Tensor, seeds: Tensor, positions: Tensor, step: Tensor) -> Tensor:
    """How near each token was to being drawn, [R, V]: no change of the logits by less than half of what a token's score
    lies below the largest draws it. Arguments as in :func:`dllm_kernels.draw.draw`.

    The score of the best tile, less the larger of what the token's tile lies below it and the token below the best of
    its tile; where T is 0 the logit.

    Example:
        >>> where = [torch.tensor([x]) for x in (7, 0, 0)]
        >>> draw_scores(torch.tensor([[0.0, 3.0]]), 0.0, *where)
        tensor([[0., 3.]])
    """
    T = draw.clamped(torch.as_tensor(temperature, dtype=torch.float32, device=logits.device).expand(len(logits)))
    noisy, T = T > 0, torch.where(T > 0, T, 1.0).to(logits.dtype)[:, None]
    where = [x.expand(len(logits)) for x in (seeds, positions, step)]
    tiles, l = draw.in_tiles(logits)
    tile = draw.tile_score(l, T, draw.tile_noise(tiles, *where))
    noise = draw.token_noise(draw.tokens_of(tiles).flatten(), *where).view(l.shape)
    token = draw.token_score(l, T[..., None], noise)
    best = tile.amax(-1)[:, None, None]
    behind = torch.maximum(best - tile[..., None], token.amax(-1, keepdim=True) - token)
    score = torch.where(l > -torch.inf, best - behind, -torch.inf).flatten(1)
    order = draw.tokens_of(tiles).flatten().argsort()[: logits.shape[1]]
    return torch.where(noisy[:, None], score[:, order], logits)


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
        _assert_size(name, error, torch.stack(of_plain), known, torch.finfo(got[name].dtype).eps, entries=entries)


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


def _assert_size(
    name: str,
    error: Tensor,
    of_plain: Tensor,
    rounding: Tensor,
    ulp: float,
    granted: Tensor | None = None,
    entries: bool = True,
) -> None:
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
