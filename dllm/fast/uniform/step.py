"""The decisions of one step of uniform diffusion, as DiffusionGemma takes them: a token for every position of a canvas,
which of them the next forward reads, and the embedding that it expects.

There is no mask token. What is not accepted is drawn again from the whole vocabulary, and nothing is ever committed:
the result of a canvas is the argmax of its last step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dllm_kernels import linear_expected_embedding, linear_gumbel_argmax, philox, transfer_tokens


class CanvasStep(NamedTuple):
    """What a step says of B canvases of L positions.

    token: int64 [B, L], drawn from p = softmax(l / T); -1 where no logit is finite.
    argmax: int64 [B, L], the likeliest token, the lowest of equals.
    neg_entropy: float32 [B, L], sum p log p, nats.
    accepted: bool [B, L].
    embedding: [B, L, H], sum_v p_v E_v in the dtype of the head; None where it was not asked for.
    """

    token: Tensor
    argmax: Tensor
    neg_entropy: Tensor
    accepted: Tensor
    embedding: Tensor | None


def canvas_step(
    hidden: Tensor,
    head: nn.Linear,
    *,
    softcap: float | None,
    temperature: Tensor,
    seeds: Tensor,
    positions: Tensor,
    step: Tensor,
    entropy_bound: float,
    embeds: bool,
    impl: str = "auto",
) -> CanvasStep:
    """Draw a token for each position, and accept those of lowest entropy. Logits exist for few at a time.

    Positions are accepted in order of rising entropy, each as long as the entropies before it sum to at most the bound;
    so the first one always is.

    Args:
        hidden: [B, L, H], the head's input.
        head: whose weight is the embedding, too.
        softcap: c of l = c tanh(a / c), with the head's output a; None: l = a.
        temperature: float32 [B].
        seeds, step: int64 [B].
        positions: int64 [B, L], each row's own.
        entropy_bound: nats.
        embeds: whether the expected embedding is needed.
        impl: of the kernels.
    """
    rows, columns = hidden.shape[:2]
    options = dict(
        temperature=temperature.repeat_interleave(columns),
        seeds=seeds.repeat_interleave(columns),
        positions=positions.flatten(),
        step=step.repeat_interleave(columns),
        softcap=softcap,
        impl=impl,
    )
    flat, embedding = hidden.flatten(0, 1).to(head.weight.dtype), None
    if embeds:
        found, embedding = linear_expected_embedding(flat, head.weight, head.bias, **options)
        embedding = embedding.view(rows, columns, -1)
    else:
        found = linear_gumbel_argmax(flat, head.weight, head.bias, statistics="tempered", **options)
    token, argmax, neg_entropy = (x.view(rows, columns) for x in (found.token, found.argmax, found.neg_entropy))
    read = torch.full_like(token, -1)
    transfer_tokens(read, token, neg_entropy, mask_id=-1, budget=entropy_bound, impl=impl)
    return CanvasStep(token, argmax, neg_entropy, read >= 0, embedding)


def next_canvas(found: CanvasStep, seeds: Tensor, positions: Tensor, step: Tensor, vocab_size: int) -> Tensor:
    """What the forward after this step reads, int64 [B, L]: accepted tokens, and new noise elsewhere."""
    return torch.where(found.accepted, found.token, noise(seeds, positions, step + 1, vocab_size))


def noise(seeds: Tensor, positions: Tensor, step: Tensor, vocab_size: int) -> Tensor:
    """The uniform tokens that stand at positions [B, L] when step `step` [B] begins, where nothing was accepted.

    Example:
        >>> noise(torch.tensor([7]), torch.arange(4)[None], torch.tensor([0]), 100).shape
        torch.Size([1, 4])
    """
    return philox.uniform_token(seeds[:, None], positions, step[:, None], vocab_size)


def temperature_of(step: Tensor, steps: int, t_min: float, t_max: float) -> Tensor:
    """T of a step, float32 [B]: from t_max at step 0 down towards t_min, in the order of roundings of transformers.

    T = t_min + (t_max - t_min) (steps - step) / steps

    Example:
        >>> temperature_of(torch.tensor([0, 3]), 4, 0.4, 0.8)
        tensor([0.8000, 0.5000])
    """
    return t_min + (t_max - t_min) * ((steps - step).to(torch.int32) / steps)


def stability(found: CanvasStep, before: Tensor, stable: Tensor) -> Tensor:
    """For how many steps each canvas's likeliest tokens have stayed as they are, int64 [B].

    Args:
        found: of this step.
        before: int64 [B, L], the likeliest tokens of the step before; -1 where there is none.
        stable: int64 [B], of the step before.
    """
    return torch.where((found.argmax == before).all(1), stable + 1, 0)


def is_settled(found: CanvasStep, stable: Tensor, stability_threshold: int, confidence_threshold: float) -> Tensor:
    """Whether a canvas is over before its last step, bool [B]: it is stable, and its mean entropy (nats) is low."""
    return (stable >= stability_threshold) & (-found.neg_entropy.mean(1) < confidence_threshold)
