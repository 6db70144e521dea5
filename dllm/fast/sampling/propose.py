"""Sample a token and its confidence for each position that a step may commit. Logits exist for few rows at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm.fast.head.split import SplitModel, guide
from dllm.fast.sampling.state import Policy
from dllm_kernels import (
    Candidates,
    GumbelArgmax,
    gumbel_argmax,
    linear_gumbel_argmax,
    position_noise,
    truncation_floor,
)

# GPU libraries switch algorithms for very few rows, and the last bits with them: the head always gets a multiple of
# this many rows. On CPUs a row's bits are the same in any number of rows; vectors hold 16.
ROW_MULTIPLE = {"cpu": 16, "cuda": 64}
# Rows of logits that exist at once where the head is more than a matrix product: what a CPU's cache holds; on a GPU few
# enough to keep memory small.
HEAD_ROWS = {"cpu": 64, "cuda": 1024}


class Proposed(NamedTuple):
    """Tokens for N candidates.

    token: int64 [N].
    rank: float32 [N], what orders them.
    uniform: float32 [N], a number in [0, 1) that decides each by itself under the "bernoulli" rule, else None.
    log_prob: float32 [N], of the tokens, of the distribution that confidence is taken from.
    """

    token: Tensor
    rank: Tensor
    uniform: Tensor | None
    log_prob: Tensor


def propose(
    split: SplitModel,
    hidden: list[Tensor],
    candidates: Candidates,
    policy: Policy,
    suppress: Tensor | None,
    begin_suppress: Tensor | None,
) -> Proposed:
    """Sample a token for each candidate.

    Args:
        split: of the model.
        hidden: [M, H], the head's input, one for each canvas (two under guidance).
        candidates: which of the M are read.
        policy: of the call.
        suppress, begin_suppress: of the state.
    """
    hidden = [states.index_select(0, candidates.index) for states in hidden]
    options = dict(
        temperature=policy.temperature if candidates.temperature is None else candidates.temperature,
        statistics="tempered" if policy.tempered else "raw",
        top_k=policy.top_k,
        top_p=policy.top_p,
        impl=policy.impl,
    )
    suppressed = dict(suppress=suppress, begin_suppress=begin_suppress)
    sampled = _sample(split, hidden, candidates, policy.cfg_scale, suppressed, options, top_k_first=policy.top_k_first)
    log_prob = sampled.log_prob
    if policy.greedy and policy.temperature > 0:  # the filters keep the most probable token, so they need not be read
        untempered = options | dict(temperature=0.0, top_k=None, top_p=None)
        likeliest = _sample(split, hidden, candidates, policy.cfg_scale, suppressed, untempered)
        sampled = sampled._replace(token=likeliest.token)
        log_prob = likeliest.log_prob
    if policy.rule == "bernoulli":
        uniform = position_noise(candidates.seed, candidates.position, candidates.step, impl=policy.impl)
        return Proposed(sampled.token, -uniform, uniform, log_prob)
    return Proposed(sampled.token, _rank(sampled, candidates, policy), None, log_prob)


def _rank(sampled: GumbelArgmax, candidates: Candidates, policy: Policy) -> Tensor:
    """What orders the sampled tokens, float32 [N]; see :class:`Policy`."""
    if policy.confidence == "random":
        return position_noise(candidates.seed, candidates.position, candidates.step, impl=policy.impl)
    rank = sampled.log_prob.exp() if policy.confidence == "probability" else getattr(sampled, policy.confidence)
    if policy.order_temperature > 0:
        # the k largest of c / T + g, g Gumbel noise, are k draws without replacement from softmax(c / T)
        noise = position_noise(candidates.seed, candidates.position, candidates.step, law="gumbel", impl=policy.impl)
        rank = rank / policy.order_temperature + noise
    return rank


def _sample(
    split: SplitModel,
    hidden: list[Tensor],
    candidates: Candidates,
    cfg_scale: float,
    suppressed: dict[str, Tensor | None],
    options: dict[str, object],
    *,
    top_k_first: bool = False,
) -> GumbelArgmax:
    """The sampled tokens of rows of hidden states [N, H] and their statistics, in one pass over the vocabulary.

    With `top_k_first`, and both top_k and top_p, the logits below the top_k exist as -inf before top_p is applied.
    """
    head = split.head
    nested = top_k_first and options["top_k"] is not None and options["top_p"] is not None
    quantized = split.kind == "int8"
    if (quantized or (split.kind == "linear" and head.weight.dtype != torch.float64)) and not nested:
        dtype = hidden[0].dtype if quantized else head.weight.dtype
        return linear_gumbel_argmax(
            *(hidden[0].to(dtype), head.weight, head.bias),
            weight_scale=head.scale if quantized else None,
            unconditional=hidden[1].to(dtype) if len(hidden) == 2 else None,
            cfg_scale=cfg_scale if len(hidden) == 2 else 0.0,
            seeds=candidates.seed,
            positions=candidates.position,
            step=candidates.step,
            count=candidates.count,
            **_padded_to(len(head.weight), suppressed),
            **options,
        )
    chunk, found = HEAD_ROWS.get(candidates.index.device.type, HEAD_ROWS["cuda"]), []
    for begin in range(0, len(candidates.index), chunk):
        part = slice(begin, begin + chunk)
        logits = split.logits(hidden[0][part])
        if len(hidden) == 2:
            logits = guide(logits, split.logits(hidden[1][part]), cfg_scale)
        logits = logits.float() if logits.dtype == torch.float64 else logits
        tables, filters = _padded_to(logits.shape[-1], suppressed), options
        if isinstance(options["temperature"], Tensor):
            filters = options | {"temperature": options["temperature"][part]}
        if nested:
            cut = dict(top_k=options["top_k"], suppress=tables["suppress"], impl=options["impl"])
            logits = logits.masked_fill(logits < truncation_floor(logits, **cut)[:, None], -torch.inf)
            filters = filters | {"top_k": None}
        found.append(
            gumbel_argmax(
                logits,
                seeds=candidates.seed[part],
                positions=candidates.position[part],
                step=candidates.step[part],
                count=candidates.count - begin,
                **tables,
                **filters,
            )
        )
    return GumbelArgmax(*map(torch.cat, zip(*found, strict=True)))


def _padded_to(width: int, tables: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    """Tables of tokens [V] cut or padded to the logits' width, which may differ from the embedding's."""
    return {
        name: table if table is None or len(table) == width else F.pad(table, (0, width - len(table)))
        for name, table in tables.items()
    }
