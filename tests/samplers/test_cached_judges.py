"""Cached samplers held against the plain loops of :mod:`tests.reference_samplers`, which run the layers by hand."""

import functools

import pytest

from dllm.core import samplers
from tests import reference_samplers as judges
from tests.causal_models import EOS, causal_model
from tests.models import MASK_ID
from tests.samplers.test_cached import JUDGED, TOKENIZER, check, prompts

pytestmark = pytest.mark.usefixtures("one_thread")

COMMON = dict(max_new_tokens=20, block_size=8)
CASES = {
    "bd3lm": (samplers.BD3LMSampler, judges.bd3lm, dict(steps=12), {}),
    "bd3lm, binomial, warm": (
        samplers.BD3LMSampler,
        judges.bd3lm,
        dict(steps_per_block=5, stochastic_transfer=True, temperature=0.8),
        {},
    ),
    "bd3lm, shifted, guided": (
        samplers.BD3LMSampler,
        judges.bd3lm,
        dict(steps=12, right_shift_logits=True, cfg_scale=0.4),
        {},
    ),
    "llada2": (
        samplers.LLaDA2Sampler,
        judges.llada2_block_causal,
        dict(steps=8, threshold=0.2, temperature=0.4, blocks_from="prompt"),
        dict(cache=True),
    ),
    "llada2, from the row": (
        samplers.LLaDA2Sampler,
        judges.llada2_block_causal,
        dict(steps=8, threshold=0.2, temperature=0.4, blocks_from="row"),
        dict(cache=True),
    ),
    "llada21": (
        samplers.LLaDA21Sampler,
        judges.llada21,
        dict(steps=5, threshold=0.3, edit_threshold=0.4, edit_steps=4, temperature=0.4, blocks_from="prompt"),
        dict(cache=True),
    ),
    "llada21, from the row": (
        samplers.LLaDA21Sampler,
        judges.llada21,
        dict(steps=5, threshold=0.3, edit_threshold=0.4, edit_steps=4, temperature=0.4, blocks_from="row"),
        dict(cache=True),
    ),
    "prefix": (samplers.FastDLLMSampler, judges.fast_dllm, dict(cache="prefix", threshold=0.2), {}),
    "dual": (samplers.FastDLLMSampler, judges.fast_dllm, dict(cache="dual", threshold=0.2, temperature=0.5), {}),
    "dual, factor": (
        samplers.FastDLLMSampler,
        judges.fast_dllm,
        dict(cache="dual", factor=2.3, cfg_scale=0.5),
        dict(threshold=None),
    ),
    "dual, scheduled": (samplers.FastDLLMSampler, judges.fast_dllm, dict(cache="dual", steps=10), dict(threshold=None)),
    "prefix, scheduled, random": (
        samplers.FastDLLMSampler,
        judges.fast_dllm,
        dict(cache="prefix", steps=10, remasking="random", temperature=0.5),
        dict(threshold=None),
    ),
    "prefix, shifted": (
        samplers.FastDLLMSampler,
        judges.fast_dllm,
        dict(cache="prefix", threshold=0.2, right_shift_logits=True, temperature=0.5),
        {},
    ),
    "dual, shifted": (
        samplers.FastDLLMSampler,
        judges.fast_dllm,
        dict(cache="dual", threshold=0.2, right_shift_logits=True),
        {},
    ),
    "prefix, shifted, factor, guided": (
        samplers.FastDLLMSampler,
        judges.fast_dllm,
        dict(cache="prefix", factor=2.3, right_shift_logits=True, cfg_scale=0.5),
        dict(threshold=None),
    ),
    "dual, shifted, factor": (
        samplers.FastDLLMSampler,
        judges.fast_dllm,
        dict(cache="dual", factor=2.3, right_shift_logits=True, temperature=0.5),
        dict(threshold=None),
    ),
    "no cache": (samplers.FastDLLMSampler, judges.fast_dllm, dict(cache=None, threshold=0.2), {}),
}


@pytest.mark.covering(2)
@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
@pytest.mark.parametrize("name", CASES)
def test_cached(name, family, stops, device):
    kind, judge, settings, ours = CASES[name]
    model = causal_model(family, str(device), favoured=3.0 if stops else 0.0)
    judge = functools.partial(judge, mask_id=MASK_ID, eos_token_id=EOS if stops else None, **COMMON, **settings)
    rows = prompts(model, JUDGED)
    check(kind(model, TOKENIZER), judge, rows, stop_at_eos=stops, **COMMON, **settings, **ours)
