"""Canvases that come back with mask tokens are told of."""

import logging

import pytest

from dllm.core.samplers import MDLMSampler
from dllm.fast import generate
from tests.models import MASK_ID, favour, make_prompt, shared, tiny


class Tokenizer:
    mask_token_id, eos_token_id = MASK_ID, 2


@pytest.fixture(scope="module")
def model():
    """A model that always chooses the mask token."""
    return favour(tiny("bert"), MASK_ID, 1000.0)


def test_masks_that_are_left_are_counted_and_told_of(model, caplog):
    prompt = make_prompt(model, 2, 3)
    with caplog.at_level(logging.WARNING, logger="dllm.fast"):
        canvas, stats = generate(model, prompt, 4, 8, 4, mask_id=MASK_ID, return_stats=True)
    assert stats.masks_left == int((canvas == MASK_ID).sum()) == 16
    assert [text for text in caplog.messages if "mask token" in text] == [
        "16 of the generated tokens are still the mask token, the first in row 0: the model chose it, or the steps "
        "were too few; suppress_tokens of a sampler keeps it from being chosen"
    ]


@pytest.mark.parametrize(("suppressed", "left"), [(None, 12), ([MASK_ID], 0)])
def test_a_sampler_counts_them_too(model, suppressed, left):
    prompts = [row.tolist()[: 3 - number] for number, row in enumerate(make_prompt(model, 2, 3))]
    sampler, options = MDLMSampler(model, Tokenizer()), dict(steps=3, max_new_tokens=6, return_dict=True)
    found = sampler.sample(prompts, suppress_tokens=suppressed, **options)
    assert found.stats.masks_left == left
    filled = sampler.infill([[5, MASK_ID, 6, MASK_ID], [7]], suppress_tokens=suppressed, steps=3, return_dict=True)
    assert filled.stats.masks_left == (2 if left else 0)


def test_none_is_left_by_default(caplog):
    model = shared("bert", "cpu")
    with caplog.at_level(logging.WARNING, logger="dllm.fast"):
        _, stats = generate(model, make_prompt(model, 2, 3), 4, 8, 4, mask_id=MASK_ID, return_stats=True)
    assert stats.masks_left == 0 and not caplog.messages
