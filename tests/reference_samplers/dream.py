"""Dream: one block, logits shifted to the right, confidences of the tempered and filtered law."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dllm.core.schedulers import BaseAlphaScheduler, LinearAlphaScheduler
from dllm_kernels import philox
from tests.reference_samplers.row import Look, Reading, Row, Trace, new_row
from tests.reference_samplers.rules import FAR, Choice, Confidence, surest
from tests.reference_samplers.schedules import schedule_b, time_grid


def dream(
    model,
    prompt,
    *,
    mask_id: int,
    seed: int = 0,
    max_new_tokens: int | None = 20,
    max_length: int | None = None,
    steps: int = 512,
    eps: float = 1e-3,
    alg: str = "origin",
    alg_temp: float | None = 0.0,
    temperature: float = 1.0,
    top_p: float | None = 1.0,
    top_k: int | None = 50,
    schedule: str = "time",
    stochastic_transfer: bool = False,
    scheduler: BaseAlphaScheduler | None = None,
    right_shift_logits: bool = True,
    eos_token_id: int | None = None,
    **reading,
) -> Trace:
    """Complete one prompt.

    alg: "origin": at step i of the time grid every mask is committed where its coin u < 1 - s/t; all at the last step.
        The step of the noise is i; the loop ends when no mask is left.
        "maskgit_plus": the k with the largest p[proposal]; "topk_margin": p1 - p2; "entropy": sum p ln(p + 1e-10).
    alg_temp: above 0, k positions are drawn from softmax(confidence / alg_temp) without replacement: the k largest
        confidence / alg_temp + g.
    schedule: where the k come from. "time" (Dream's own): int(m (1 - s/t)), m the masks that the row has now, all at
        the last step. "B" (dLLM 0.1): schedule B of the masks at the start, Binomial with `stochastic_transfer`. Steps
        with k = 0 are dropped in both. "origin" has coins in place of counts, the same under either.
    """
    assert alg in ("origin", "maskgit_plus", "topk_margin", "entropy") and schedule in ("time", "B")
    row = new_row(
        model,
        prompt,
        max_new_tokens=max_new_tokens,
        max_length=max_length,
        mask_id=mask_id,
        seed=seed,
        eos_token_id=eos_token_id,
        reading=Reading(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            tempered=True,
            right_shift_logits=right_shift_logits,
            **reading,
        ),
    )
    if alg == "origin":
        return _by_coins(row, time_grid(steps, eps))
    if schedule == "time":
        counts = _counts_by_time(row, time_grid(steps, eps))
    else:
        drawn_with = dict(seed=seed, start=row.generated_from) if stochastic_transfer else {}
        counts = schedule_b(len(row.masks()), steps, scheduler or LinearAlphaScheduler(), **drawn_with)
    for step, k in enumerate(counts):
        if row.finished:
            break
        look = row.look(0, step, len(row.canvas))
        row.commit(look, surest(_rank(row, look, alg, alg_temp), look.eligible, k))
    return row.trace()


def _by_coins(row: Row, leaving: list[float]) -> Trace:
    for step, probability in enumerate(leaving):
        if row.finished or not row.masks():
            break
        look = row.look(0, step, len(row.canvas))
        u = row.uniform(step).value
        row.commit(look, Choice([p for p in look.eligible if u[p] < probability], FAR))  # the same bits everywhere
    return row.trace()


def _counts_by_time(row: Row, leaving: list[float]) -> Iterator[int]:
    """Lazy: each count is taken of the masks that the row has by then."""
    for probability in leaving:
        m = torch.tensor(float(len(row.masks())))
        k = int(m * probability)  # one float32 product
        if k > 0:
            yield k


def _rank(row: Row, look: Look, alg: str, alg_temp: float | None) -> Confidence:
    if alg == "maskgit_plus" and not alg_temp:
        return look.surety  # as logarithms, which tell apart what is 1 as a float32 probability
    number = Confidence(_number(look.law, look.proposal, alg), _number(look.law64, look.proposal, alg))
    if not alg_temp:
        return number
    address = row.noise.seed, torch.tensor(0), torch.arange(len(row.canvas)), torch.tensor(look.step)
    w, partner, *_ = philox.words(*address, philox.RANDOM_CONFIDENCE)
    g = philox.gumbel_from_words(w, partner)
    return Confidence(number.value / alg_temp + g, number.exact / alg_temp + g.double())


def _number(law: Tensor, proposal: Tensor, alg: str) -> Tensor:
    """Dream's confidence [L] of log-probabilities [L, V]: a number, not its logarithm."""
    p = law.exp()
    if alg == "maskgit_plus":
        return p.gather(1, proposal[:, None]).squeeze(1)
    if alg == "topk_margin":
        likeliest = p.topk(2, dim=1).values
        return likeliest[:, 0] - likeliest[:, 1]
    return (p * (p + 1e-10).log()).sum(1)
