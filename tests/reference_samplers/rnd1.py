"""RND1: one block, logits shifted to the right, the lowest entropy of the tempered and filtered law first."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.reference_samplers.row import Look, Reading, Trace, new_row
from tests.reference_samplers.rules import surest


class _TopKFirst:
    """A model whose logits below the k-th largest of a position are -inf: what top-p then finds is the law of RND1."""

    def __init__(self, model, top_k: int):
        self.model, self.top_k = model, top_k

    def __call__(self, input_ids: Tensor):
        out = self.model(input_ids=input_ids)
        smallest = out.logits.topk(self.top_k).values[..., -1:]
        out.logits = out.logits.masked_fill(out.logits < smallest, -torch.inf)
        return out


def rnd1(
    model,
    prompt,
    *,
    mask_id: int,
    seed: int = 0,
    max_new_tokens: int | None = None,
    max_length: int | None = 256,
    steps: int = 256,
    temperature: float = 0.1,
    greedy: bool = False,
    top_k: int | None = None,
    top_p: float | None = None,
    last_token: int | None = None,
    right_shift_logits: bool = True,
    eos_token_id: int | None = None,
    eot_token_id: int | None = None,
) -> Trace:
    """Complete one prompt.

    After the step with s steps to go int(m s / S) of the m masks are left, a float32 product; steps without a commit
    are dropped. The rank is sum p ln p of softmax(l / T), filtered, T = 1 for temperature 0. greedy: the proposal is
    argmax l, and the temperature is left to the rank. top_k: before top_p, whose mass is that of the k.

    last_token: what the last column holds; it is not generated. None: every column is.
    """
    row = new_row(
        model if top_k is None else _TopKFirst(model, top_k),
        prompt,
        max_new_tokens=max_new_tokens,
        max_length=max_length,
        mask_id=mask_id,
        seed=seed,
        eos_token_id=eos_token_id,
        eot_token_id=eot_token_id,
        reading=Reading(
            temperature=temperature,
            top_p=top_p,
            tempered=True,
            right_shift_logits=right_shift_logits,
        ),
    )
    if last_token is not None:
        row.canvas[-1] = last_token
        row.given[-1] = True
        row.history[0] = row.canvas.clone()
    for step, k in enumerate(_counts(len(row.masks()), steps)):
        if row.finished:
            break
        look = row.look(0, step, len(row.canvas))
        row.commit(_greedy(look) if greedy else look, surest(look.neg_entropy, look.eligible, k))
    return row.trace()


def _counts(m: int, steps: int) -> list[int]:
    """What each step commits, without zeros: the product m s / S is float32, as m is an integer tensor."""
    left = [m, *(int(torch.tensor([m]) * (s / steps)) for s in reversed(range(steps)))]
    return [k for k in (left[i] - left[i + 1] for i in range(steps)) if k > 0]


def _greedy(look: Look) -> Look:
    """The look with the likeliest tokens proposed: the lowest of them on ties."""
    return look._replace(proposal=look.law.argmax(1), scores=lambda: look.law64)
