"""Random chains of what scripts do with logits, on a patched model and on the unpatched one, float64 the judge.

A chain is a few views, casts, writes and hooks, then a loss or a choice; a seed decides. Losses are followed by a
backward, sometimes by a second one.
"""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F

from tests.fast.test_patch_corners import IDS, V, check, gradients, shifted

pytestmark = pytest.mark.usefixtures("one_thread")
CHAINS = 60


def numbers(draw: random.Random, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(draw.randrange(10**6)))


def labels(draw, shape):
    found = (numbers(draw, *shape) * V).long()
    return found.masked_fill(numbers(draw, *shape) < draw.choice([0.0, 0.5, 1.0]), -100)


def written(draw, l):
    l = l.clone()
    l[..., draw.randrange(V)] = -9.0
    return l


def hooked(draw, l):
    if l.requires_grad:
        l.register_hook(draw.choice([lambda g: 2 * g, lambda g: g.mul_(2), lambda g: None]))
    return l


def looked_at(draw, l):
    with torch.no_grad():
        l.square().sum()
    return l


# From logits [..., L, V] to others.
STEPS = [
    lambda draw, l: l[:, 1:] if l.dim() == 3 else l[1:],
    lambda draw, l: l[numbers(draw, *l.shape[:-1]) < 0.6],
    lambda draw, l: l.reshape(-1, V),
    lambda draw, l: l.float(),
    lambda draw, l: l.unsqueeze(0) if l.dim() < 4 else l.flatten(0, 1),
    lambda draw, l: l.mT.mT,
    lambda draw, l: l[[0, 0]] if l.dim() == 2 and len(l) else l,
    lambda draw, l: shifted(l) if l.dim() == 3 and len(l) > 1 else l,
    lambda draw, l: torch.cat([l, l.detach()]),
    lambda draw, l: torch.cat([l[:1], l]),
    lambda draw, l: l.log_softmax(-1),
    lambda draw, l: l * 0.5,
    written,
    hooked,
    looked_at,
]


def cross_entropy(draw, l):
    options = dict(reduction=draw.choice(["none", "mean", "sum"]), label_smoothing=draw.choice([0.0, 0.1]))
    weight = draw.choice([None, numbers(draw, V).to(l.dtype)])
    l = l.reshape(-1, V)
    return F.cross_entropy(l, labels(draw, l.shape[:1]), weight, **options)


def gathered(draw, l):
    index = labels(draw, l.shape[:-1]).clamp(min=0)[..., None]
    return draw.choice([F.softmax, F.log_softmax])(l, dim=-1).gather(-1, index).squeeze(-1)


ENDS = [
    cross_entropy,
    cross_entropy,
    gathered,
    lambda draw, l: F.nll_loss(l.log_softmax(-1).reshape(-1, V), labels(draw, [l[..., 0].numel()]), reduction="sum"),
    lambda draw, l: l.logsumexp(-1),
    lambda draw, l: l.topk(3).values,
    lambda draw, l: F.kl_div(l.log_softmax(-1), torch.full_like(l, 1 / V), reduction="batchmean"),
    lambda draw, l: l.argmax(-1),
]


@pytest.mark.parametrize("seed", range(CHAINS))
def test_chain(seed):
    def script(model):
        draw = random.Random(seed)
        mode = draw.choice([torch.enable_grad] * 4 + [torch.no_grad, torch.inference_mode])
        with mode():
            logits = model(IDS).logits
            for step in draw.sample(STEPS, draw.randrange(5)):
                logits = step(draw, logits)
            found = draw.choice(ENDS)(draw, logits)
        if not found.requires_grad:
            return found + 0
        weights = numbers(draw, *found.shape).to(found.dtype) * (numbers(draw, *found.shape) < 0.7)
        for last in draw.choice([[True], [False, True]]):
            (found * weights).sum().backward(retain_graph=not last)
        return found + 0, gradients(model)

    try:
        check(script)
    except RuntimeError as error:
        if "cannot be looked at" not in str(error):
            raise
        pytest.skip(f"refused: {error}")
