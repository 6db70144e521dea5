"""Gumbel-argmax with confidence: the sampled token of each row of logits and how sure the model is of it."""

from __future__ import annotations

import importlib
from typing import NamedTuple

import torch
from torch import Tensor

from dllm_kernels import _checks, _impl, philox
from dllm_kernels.logits import softcapped
from dllm_kernels.truncation_floor.api import cuts

STATISTICS = ("raw", "tempered")


class GumbelArgmax(NamedTuple):
    """The result of one pass over each row of logits. Every field has one entry per chosen row, [N].

    p is softmax(logits), or softmax(logits / T) where statistics at the temperature were asked for; l its exponents.

    token: int64, the sampled token id; -1 where the row has no finite logit or was left out by `count`.
    log_prob: float32, log p of the token, nats; -inf where token is -1.
    margin: float32, probability of the likeliest token minus that of the second likeliest; 0 where token is -1.
    neg_entropy: float32, sum over tokens of p log p, nats, at most 0; -inf where token is -1.
    lse: float32, log sum exp l; -inf where token is -1.
    argmax: int64, the token that temperature 0 gives, of the same logits: the lowest of those with the largest logit.
    """

    token: Tensor
    log_prob: Tensor
    margin: Tensor
    neg_entropy: Tensor
    lse: Tensor
    argmax: Tensor


def gumbel_argmax(
    logits: Tensor,
    *,
    temperature: float | Tensor = 0.0,
    seeds: int | Tensor | None = None,
    positions: int | Tensor | None = None,
    step: int | Tensor = 0,
    suppress: Tensor | None = None,
    begin_suppress: Tensor | None = None,
    statistics: str = "raw",
    softcap: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    rows: Tensor | None = None,
    count: Tensor | None = None,
    impl: str = "auto",
) -> GumbelArgmax:
    r"""Draw a token from softmax(logits / temperature) and measure softmax(logits), in one pass over the vocabulary.

    .. math::
        tile = \arg\max_t \Bigl(T \log \sum_{v \in t} e^{l_v / T} + T\, G_t\Bigr), \qquad
        token = \arg\max_{v \in tile} (l_v + T g_v) \\
        log\_prob = (l_{token} - \max l) - \log \sum_v e^{l_v - \max l}

    A tile is 16 tokens; G and g are Gumbel noise addressed by (seed, tile or token, position, step). Together the two
    maxima draw from softmax(l / T), from a sixteenth of the noise that one Gumbel a token takes; formulae, proof and
    order of every addition: :mod:`dllm_kernels.draw`. So a draw is a function of its arguments alone, the same in any
    batch, on any device, in any implementation. At temperature 0 the token is the argmax. Ties go to the lowest tile
    and token. NaN counts as -inf and +inf as the largest finite float32. Arithmetic is float32 whatever the dtype of
    the logits. Nothing is read back to the host.

    Args:
        logits: [R, V], float32, bfloat16 or float16; rows may have any stride, a row's tokens are adjacent.
        temperature: number or tensor, one for all or [R]. A number must be from 0 to 1e30; in a tensor
            (whose values are not looked at on the host) what is not above 0 means 0. Above 0, a T below 1e-30 counts
            as 1e-30 and one above 1e30 as 1e30.
        seeds: integer or int64 tensor, one for all or [R]: the seed of the sample that each row belongs to.
            Needed unless `temperature` is the number 0.
        positions: integer or tensor, one for all or [R]: each row's position in its canvas. Needed like `seeds`.
        step: integer or tensor, one for all or [R]: the denoising step.
        suppress: bool [V], true where a token must not be chosen; its logit counts as -inf everywhere.
        begin_suppress: bool [V], true where a token may be chosen, but with log_prob -inf: its logit counts as -inf in
            the statistics. If no other token is left, log_prob, neg_entropy and lse are -inf and margin is 0.
        statistics: "raw", of softmax(logits), or "tempered", of softmax(logits / T) (of softmax(logits) where T is 0).
        softcap: None, or c: every logit l counts as c tanh(l / c) in float32, before all else, as in Gemma; -inf stays.
            Logits beyond about 8.7 c become equal, and the lowest token of them is the argmax. With `top_k` or `top_p`
            all R rows are capped beforehand, in float32 copies.
        top_k, top_p: None, or which tokens are kept, as :func:`dllm_kernels.truncation_floor` has it: the `top_k` with
            the largest logits and of softmax(logits / T) (of softmax(logits) where T is 0) those above which there is
            at most `top_p`. The others' logits count as -inf everywhere, also in raw statistics.
        rows: int64 [N], the rows to look at, in this order; the result equals the full result indexed by `rows`.
            A number outside [0, R) gives token -1.
        count: one-element integer tensor on the device: only the first `count` of the chosen rows are read; the
            rest get token -1.
        impl: "auto", "reference", "triton" or "cpu"; an explicit one never falls back.

    Returns:
        :class:`GumbelArgmax`, fields of shape [N], or [R] without `rows`.

    Raises:
        TypeError, ValueError: an argument breaks a rule above; nothing has run.
        RuntimeError: the implementation asked for is not available.

    Source: the Gumbel-max trick as in the model-card loops of LLaDA (arXiv:2502.09992) and BERT-chat, in two levels.

    Example:
        >>> logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 2.0]])
        >>> gumbel_argmax(logits).token
        tensor([1, 0])
        >>> drawn = gumbel_argmax(logits, temperature=1.0, seeds=7, positions=torch.tensor([0, 1]))
        >>> drawn.token.shape, drawn.log_prob.dtype
        (torch.Size([2]), torch.float32)
    """
    _checks.logits(logits)
    device, (n_rows, vocab_size) = logits.device, logits.shape
    noise = check_noise(temperature, seeds, positions, step, n_rows, device)
    options = check_statistics(suppress, begin_suppress, statistics, noise, vocab_size, device)
    if rows is not None:
        _checks.tensor("rows", rows, dtypes=(torch.int64,), shape=("N",), device=device)
    if count is not None:
        count = _checks.per_row("count", count, 1, torch.int64, device)
    softcap = _checks.softcap(softcap)
    top_k, top_p = cuts(top_k, top_p, vocab_size)
    if softcap is not None and (top_k is not None or top_p is not None):
        logits, softcap = softcapped(logits.detach(), softcap), None
    impl = _impl.choose(impl, device)
    chosen = {"rows": rows, "count": count}
    floor = None
    if top_k is not None or top_p is not None:
        module = importlib.import_module(f"dllm_kernels.truncation_floor.{impl}")
        cut = {"temperature": noise["temperature"], "top_k": top_k, "top_p": top_p, "suppress": suppress}
        floor = module.truncation_floor(logits, **cut, **chosen)
    module = importlib.import_module(f"dllm_kernels.gumbel_argmax.{impl}")
    return GumbelArgmax(*module.gumbel_argmax(logits, **noise, **options, **chosen, softcap=softcap, floor=floor))


def check_noise(
    temperature: object, seeds: object, positions: object, step: object, rows: int, device: torch.device
) -> dict[str, Tensor | None]:
    """temperature, seeds, positions and step of so many rows, checked, [R] each; all None at the temperature 0.

    Example:
        >>> check_noise(0.5, 7, 0, 0, 2, torch.device("cpu"))["temperature"]
        tensor([0.5000, 0.5000])
    """
    if not isinstance(temperature, Tensor):
        if temperature == 0:
            return {"temperature": None, "seeds": None, "positions": None, "step": None}
        temperature = _checks.finite_at_least_zero("temperature", temperature)
    if seeds is None or positions is None:
        raise ValueError(f"temperature {temperature} needs seeds and positions: noise is addressed by them")
    return {
        "temperature": _checks.per_row("temperature", temperature, rows, torch.float32, device),
        "seeds": _checks.per_row("seeds", philox.as_int64(seeds), rows, torch.int64, device),
        "positions": _checks.per_row("positions", positions, rows, torch.int64, device),
        "step": _checks.per_row("step", step, rows, torch.int64, device),
    }


def check_statistics(
    suppress: object,
    begin_suppress: object,
    statistics: object,
    noise: dict[str, Tensor | None],
    vocab_size: int,
    device: torch.device,
) -> dict[str, Tensor | bool | None]:
    """suppress, begin_suppress and whether statistics are tempered, checked; `noise` as :func:`check_noise` returns it.

    Example:
        >>> check_statistics(None, None, "tempered", {"temperature": None}, 5, torch.device("cpu"))["tempered"]
        False
    """
    for name, flags in (("suppress", suppress), ("begin_suppress", begin_suppress)):
        if flags is not None:
            _checks.tensor(name, flags, dtypes=(torch.bool,), shape=(vocab_size,), device=device)
    if statistics not in STATISTICS:
        raise ValueError(f"statistics must be one of {', '.join(STATISTICS)}, got {statistics!r}")
    tempered = statistics == "tempered" and noise["temperature"] is not None
    return {"suppress": suppress, "begin_suppress": begin_suppress, "tempered": tempered}
