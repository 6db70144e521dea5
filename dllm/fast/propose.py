"""Proposals: a token for each position that may be committed, and what ranks it. Logits never exist for all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm.fast.head import HeadTap, guide
from dllm.fast.passes import Bodies
from dllm_kernels import GumbelArgmax, gumbel_argmax, linear_gumbel_argmax, position_noise

if TYPE_CHECKING:
    from dllm.fast.denoise import Policy

# On GPUs libraries switch algorithms for very few rows and the last bits with them: the head always sees multiples of
# this. On CPUs a row's bits are the same in any number of rows, of which vectors hold 16.
ROW_MULTIPLE = {"cpu": 16, "cuda": 64}
# Rows of logits that exist at once where the head is more than a product: what a CPU's cache keeps, and on a GPU few
# enough to keep memory small.
HEAD_ROWS = {"cpu": 64, "cuda": 1024}


class Listed(NamedTuple):
    """Positions that may be committed, [N] each: their row, the row's own position, its seed and its step; the first
    `count` (int64 [1]) are real."""

    row: Tensor
    position: Tensor
    seed: Tensor
    step: Tensor
    count: Tensor


def propose(
    tap: HeadTap,
    bodies: Bodies,
    listed: Listed,
    policy: Policy,
    suppress: Tensor | None,
    begin_suppress: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Token [N], what ranks it [N], and a uniform number [N] where the policy flips coins, of the listed positions.

    `bodies` hold the outputs of a forward for one canvas, or for two under guidance.
    """
    reads = (listed.position - 1).clamp(min=0) if policy.right_shift else listed.position
    # what stands behind the real ones in the list need not have run
    index = (bodies.base[listed.row] + reads).clamp(0, len(bodies.hidden[0]) - 1)
    hidden = [body.index_select(0, index) for body in bodies.hidden]
    options = dict(
        temperature=policy.temperature,
        statistics="tempered" if policy.tempered else "raw",
        top_k=policy.top_k,
        top_p=policy.top_p,
        impl=policy.impl,
    )
    never = dict(suppress=suppress, begin_suppress=begin_suppress)
    drawn = _draw(tap, hidden, listed, policy.cfg_scale, never, options)
    if policy.rule == "coin":
        coin = position_noise(listed.seed, listed.position, listed.step, impl=policy.impl)
        return drawn.token, -coin, coin
    return drawn.token, _rank(drawn, listed, policy), None


def _rank(drawn: GumbelArgmax, listed: Listed, policy: Policy) -> Tensor:
    """The number by which proposals are ranked, float32 [N]; see :class:`Policy`."""
    if policy.confidence == "random":
        return position_noise(listed.seed, listed.position, listed.step, impl=policy.impl)
    rank = drawn.log_prob.exp() if policy.confidence == "probability" else getattr(drawn, policy.confidence)
    if policy.order_temperature > 0:
        # the k largest of c / T + g, g Gumbel noise, are k draws without replacement from softmax(c / T)
        noise = position_noise(listed.seed, listed.position, listed.step, law="gumbel", impl=policy.impl)
        rank = rank / policy.order_temperature + noise
    return rank


def _draw(
    tap: HeadTap,
    hidden: list[Tensor],
    listed: Listed,
    cfg_scale: float,
    never: dict[str, Tensor | None],
    options: dict[str, object],
) -> GumbelArgmax:
    """What one pass over the vocabulary tells of rows of hidden states [N, H]."""
    head = tap.head
    if tap.kind == "linear" and head.weight.dtype != torch.float64:
        return linear_gumbel_argmax(
            *(hidden[0].to(head.weight.dtype), head.weight, head.bias),
            unconditional=hidden[1].to(head.weight.dtype) if len(hidden) == 2 else None,
            cfg_scale=cfg_scale if len(hidden) == 2 else 0.0,
            seeds=listed.seed,
            positions=listed.position,
            step=listed.step,
            count=listed.count,
            **_as_wide(never, len(head.weight)),
            **options,
        )
    chunk, found = HEAD_ROWS.get(listed.row.device.type, HEAD_ROWS["cuda"]), []
    for begin in range(0, len(listed.row), chunk):
        part = slice(begin, begin + chunk)
        logits = tap.logits(hidden[0][part])
        if len(hidden) == 2:
            logits = guide(logits, tap.logits(hidden[1][part]), cfg_scale)
        found.append(
            gumbel_argmax(
                logits.float() if logits.dtype == torch.float64 else logits,
                seeds=listed.seed[part],
                positions=listed.position[part],
                step=listed.step[part],
                count=listed.count - begin,
                **_as_wide(never, logits.shape[-1]),
                **options,
            )
        )
    return GumbelArgmax(*map(torch.cat, zip(*found, strict=True)))


def _as_wide(lookups: dict[str, Tensor | None], width: int) -> dict[str, Tensor | None]:
    """Tables of tokens [V] as wide as the logits, which a model may cut or pad to another width than its embedding."""
    return {
        name: table if table is None or len(table) == width else F.pad(table, (0, width - len(table)))
        for name, table in lookups.items()
    }
