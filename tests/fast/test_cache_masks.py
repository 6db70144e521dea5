"""What attention gets beside a cache: no mask where the model can do without, else one that GPU kernels take."""

import copy

import pytest
import torch
from transformers import masking_utils

from dllm.core import samplers
from dllm.models import causal
from tests.causal_models import causal_model
from tests.cuda_stand_in import attention_calls
from tests.samplers.test_cached import TOKENIZER, prompts

pytestmark = pytest.mark.usefixtures("one_thread")


def without_hooks():
    """A model of transformers that its configuration makes bidirectional."""
    model = causal(copy.deepcopy(causal_model()))
    model.config.is_causal = model.config.use_cache = False
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    return model


def masks_of(model, cache, lengths):
    """Tokens of a call, and the masks that its attention got, each beside the number of keys."""
    sampler, calls = samplers.FastDLLMSampler(model, TOKENIZER), []
    options = dict(max_new_tokens=16, block_size=8, threshold=0.3, temperature=0.5, seed=2)
    with attention_calls(calls):
        tokens = sampler.sample(prompts(model, lengths), cache=cache, **options)
    return tokens, [(mask, key[0][2]) for _, key, _, mask, *_ in calls if key[0][2] > 8]  # of the canvas


@pytest.mark.skipif(not hasattr(masking_utils, "is_tracing"), reason="such a model stays causal in transformers 4.57")
@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("lengths", [(6, 6), (6, 3), (5,)])
def test_keys_are_not_broadcast(cache, lengths):
    """Kernels for GPUs want a mask's last dimension contiguous."""
    expected, _ = masks_of(causal_model(), cache, lengths)
    tokens, masks = masks_of(without_hooks(), cache, lengths)
    assert torch.equal(tokens, expected)
    beside_cache = [(mask, keys) for mask, keys in masks if mask is not None]
    assert len(beside_cache) > 4
    for (shape, strides, dtype), keys in beside_cache:
        assert shape[-1] == keys and strides[-1] == 1 and dtype == torch.bool


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_no_mask_where_hooks_drop_it(cache):
    _, masks = masks_of(causal_model(), cache, (6, 6))
    assert len(masks) > 4 and all(mask is None for mask, _ in masks)
