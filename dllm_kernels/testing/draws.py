"""The truth of a draw and its statistics in float64, the same in plain PyTorch, and whether a result is near enough."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm_kernels import draw
from dllm_kernels.gumbel_argmax import GumbelArgmax
from dllm_kernels.gumbel_argmax.reference import gumbel_argmax as reference_gumbel_argmax
from dllm_kernels.linear_expected_embedding import ExpectedEmbedding
from dllm_kernels.linear_expected_embedding.reference import linear_expected_embedding as reference_expected_embedding
from dllm_kernels.testing.budget import assert_size
from dllm_kernels.truncation_floor.reference import truncation_floor as reference_truncation_floor

STATISTICS = ("log_prob", "margin", "neg_entropy", "lse")


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
    """Check every statistic's error against float64 by the rule of :func:`~dllm_kernels.testing.assert_no_worse`.

    Errors are relative to the statistic, or to 1 where it is less, since there exponentials are rounded.

    Example:
        >>> from dllm_kernels import gumbel_argmax
        >>> from dllm_kernels.testing import make_logits
        >>> logits = make_logits(4, 1000)
        >>> assert_within_budget(gumbel_argmax(logits), logits)
    """
    truth = true_gumbel_argmax(logits, **arguments)
    plain = plain_statistics(measured_logits(logits.cpu(), **arguments), truth.token)
    _assert_statistics(got, plain, truth, granted=torch.tensor(0.0))


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
    """Check the statistics of a head as :func:`assert_within_budget` does; plain PyTorch is F.linear in the same dtype.

    A product's errors fall on single logits, and one of them is a statistic's. So plain PyTorch is granted the largest
    error of its logits where its statistics happened to be nearer. Where a near tie makes another token of `got` than
    the truth's, its log-probability is not compared.

    Example:
        >>> from dllm_kernels import linear_gumbel_argmax
        >>> from dllm_kernels.testing import make_head
        >>> head = make_head(4, 8, 100)
        >>> assert_head_within_budget(linear_gumbel_argmax(*head), *head)
    """
    truth = true_linear_gumbel_argmax(hidden, weight, bias, **arguments)
    logits = F.linear(hidden, weight, bias).cpu()
    plain = plain_statistics(measured_logits(logits, **arguments), truth.token)
    log_prob = torch.where(got.token.cpu() == truth.token, got.log_prob.cpu().double(), truth.log_prob)
    error = (logits.double() - _true_logits(hidden, weight, bias)).abs().max()
    _assert_statistics(got._replace(log_prob=log_prob), plain, truth, granted=error)


def draw_scores(logits: Tensor, temperature: float | Tensor, seeds: Tensor, positions: Tensor, step: Tensor) -> Tensor:
    """How near each token was to being drawn, [R, V]. A token whose score lies d below the largest is not drawn unless
    a logit changes by d / 2 or more. Arguments as in :func:`dllm_kernels.draw.draw`.

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
        assert_size(name, error, of_plain[None], none, ulp, granted / scale)
