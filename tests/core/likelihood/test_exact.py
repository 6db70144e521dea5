"""The exact sum against enumeration in float64: every kind of attention, shift and guidance."""

from __future__ import annotations

import math
import random

import pytest
import torch

from dllm.core.likelihood import LikelihoodConfig, Target, log_likelihoods
from dllm.core.likelihood.weights import size_weights
from dllm.fast.model import MARKER, block_size_of, right_shift_of
from tests.causal_models import causal_model
from tests.core.likelihood.likelihood_reference import Reference, weight
from tests.families.toys import load
from tests.models import MASK_ID, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 1e-5  # relative: float32 forwards against float64


def targets(count: int, seed: int, *, longest: int = 4, after: int = 0) -> list[Target]:
    """Targets of 1 to `longest` tokens after contexts of different lengths."""
    rng = random.Random(seed)

    def draw(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(5, 97) for _ in range(n))

    return [Target(draw(rng.randint(1, 9)), draw(1 + i % longest), i, draw(after)) for i in range(count)]


def block_model(family: str = "Llama", size: int = 4):
    model = causal_model(family, max_position_embeddings=65)  # of its own, as it gets a marker
    setattr(model.config, MARKER, {"block_size": size})
    return model


@pytest.mark.parametrize("form", ["llada", "dream"])
@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_weights_against_quadrature(form, n):
    for eps in (0.0, 1e-3, 0.3):
        ours = [w / math.comb(n, x) for x, w in enumerate(size_weights(form, n, eps), start=1)]
        assert ours == pytest.approx([weight(form, n, x, eps) for x in range(1, n + 1)], rel=1e-12)


def test_weights_of_long_targets_are_finite_and_almost_those_without_eps():
    assert size_weights("dream", 4000)[100:] == pytest.approx([w / 0.999 for w in size_weights("llada", 4000)[100:]])


@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
@pytest.mark.parametrize("family", ["modernbert", "bert", "roberta", "Llama"])
def test_llada_form(family, cfg_scale):
    model = causal_model("Llama") if family == "Llama" else tiny(family)
    asked = targets(5, seed=1)
    found = log_likelihoods(model, asked, LikelihoodConfig(cfg_scale=cfg_scale), mask_id=MASK_ID)
    reference = Reference(model, cfg_scale=cfg_scale)
    for target, estimate in zip(asked, found, strict=True):
        assert estimate.log_likelihood == pytest.approx(
            reference.log_likelihood(target.context, target.target), rel=TOLERANCE
        )
        assert (estimate.stderr, estimate.rows) == (0.0, 2 ** len(target.target) - 1)


def test_dream_form_shifts_and_leaves_end_of_text_and_the_first_token_alone():
    model = causal_model("Qwen2")
    asked = [*targets(4, seed=2, after=1), Target((), (7, 8, 9), 0, (40,))]
    config = LikelihoodConfig(form="dream", sampling_eps=0.05, right_shift_logits=True)
    found = log_likelihoods(model, asked, config, mask_id=MASK_ID)
    reference = Reference(model, shift=True)
    for target, estimate in zip(asked, found, strict=True):
        expected = reference.log_likelihood(target.context, target.target, target.after, "dream", 0.05)
        assert estimate.log_likelihood == pytest.approx(expected, rel=TOLERANCE)
    assert found[-1].rows == 3  # of two tokens


def test_the_shift_is_read_from_the_configuration():
    model = causal_model("Qwen2", max_position_embeddings=66)
    setattr(model.config, MARKER, {"right_shift": True})
    target = targets(1, seed=3)
    (found,) = log_likelihoods(model, target, mask_id=MASK_ID)
    expected = Reference(model, shift=True).log_likelihood(target[0].context, target[0].target)
    assert found.log_likelihood == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("shift, cfg_scale", [(False, 0.0), (True, 0.0), (False, 1.0), (True, 1.0)])
def test_blocks_with_and_without_kept_keys(cache, shift, cfg_scale):
    model = block_model()
    asked = [*targets(6, seed=4, longest=6), Target((), (7, 8, 9, 10, 11), 0), Target((5, 6, 7, 8), (9, 10), 0, (40,))]
    config = LikelihoodConfig(right_shift_logits=shift, cfg_scale=cfg_scale, cache=cache, tokens_per_forward=64)
    found = log_likelihoods(model, asked, config, mask_id=MASK_ID)
    reference = Reference(model, shift=shift, cfg_scale=cfg_scale, block_size=4)
    for target, estimate in zip(asked, found, strict=True):
        expected = reference.log_likelihood(target.context, target.target, target.after)
        assert estimate.log_likelihood == pytest.approx(expected, rel=TOLERANCE)


def test_blocks_counted_from_the_context_are_those_of_a_row_that_begins_there():
    model = block_model()
    config = LikelihoodConfig(blocks_from="context")
    context, target = (5, 6, 7, 8), (9, 10, 11, 12, 13)
    aligned = log_likelihoods(model, [Target(context, target)], mask_id=MASK_ID)
    (found,) = log_likelihoods(model, [Target(context, target)], config, mask_id=MASK_ID)
    assert found == aligned[0]
    (other,) = log_likelihoods(model, [Target(context[1:], target)], config, mask_id=MASK_ID)
    (row,) = log_likelihoods(model, [Target(context[1:], target)], mask_id=MASK_ID)
    assert other.rows == 2**4 - 1 + 1 and row.rows == 1 + 2**4 - 1  # 4 + 1 tokens, 1 + 4 tokens
    assert abs(other.log_likelihood - row.log_likelihood) > 1e-3


@pytest.mark.parametrize("cfg_scale", [0.0, 1.0])
def test_half_precision_comes_near(cfg_scale):
    model, asked = tiny("modernbert"), targets(4, seed=5)
    config = LikelihoodConfig(cfg_scale=cfg_scale)
    full = log_likelihoods(model, asked, config, mask_id=MASK_ID)
    half = log_likelihoods(model.to(torch.bfloat16), asked, config, mask_id=MASK_ID)
    for a, b in zip(full, half, strict=True):
        assert b.log_likelihood == pytest.approx(a.log_likelihood, rel=0.05)


@pytest.mark.parametrize("name, form", [("llada", "llada"), ("dream", "dream"), ("llada2", "llada"), ("rnd1", "llada")])
def test_official_checkpoints_say_themselves_how_they_attend_and_shift(name, form):
    model = load(name)
    size, shift = block_size_of(model), bool(right_shift_of(model))
    assert (size is not None, shift) == (name == "llada2", name in ("dream", "rnd1"))
    context, target = tuple(range(10, 40)), (50, 60, 70, 80)  # a block of LLaDA2 ends inside
    (found,) = log_likelihoods(model, [Target(context, target, 0, (90,))], LikelihoodConfig(form=form), mask_id=MASK_ID)
    # experts of transformers 4 have no float64
    dtype = torch.float32 if name == "llada2" else torch.float64
    reference = Reference(model, shift=shift, block_size=size, dtype=dtype)
    assert found.log_likelihood == pytest.approx(reference.log_likelihood(context, target, (90,), form), rel=TOLERANCE)
