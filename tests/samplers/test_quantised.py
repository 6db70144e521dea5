"""Models whose linear layers are dynamic int8: the weight is a method, and activations share one scale."""

import functools
import warnings

import pytest
import torch
from torch import nn

from dllm.core import samplers
from dllm.fast import generate, patch
from tests.causal_models import causal_model
from tests.fast.test_generate import LOW, assert_same, reference
from tests.models import MASK_ID, kind_of, make_prompt, tiny
from tests.samplers.test_cached import TOKENIZER
from tests.samplers.test_cached_calls import CACHED

pytestmark = pytest.mark.usefixtures("one_thread")

UNCACHED = {
    "mdlm": (samplers.MDLMSampler, dict(steps=8)),
    "llada, guided": (samplers.LLaDASampler, dict(steps=8, cfg_scale=0.5)),
    "dream": (samplers.DreamSampler, dict(steps=8)),
    "entropy bound": (samplers.EntropyBoundSampler, {}),
}
EVERY = UNCACHED | CACHED


def int8(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


@functools.cache
def int8_model(family):
    return int8(tiny("bert") if family == "bert" else causal_model())


@pytest.fixture(params=["bert", "llama"])
def model(request):
    return int8_model(request.param)


def without(tokens):
    """A hook of a model that never proposes some tokens."""

    def hook(module, args, output):
        output.logits[..., tokens] = -torch.inf
        return output

    return hook


@pytest.mark.parametrize("temperature, remasking, scale", [(0.0, LOW, 0.0), (0.7, LOW, 0.0), (1.0, "random", 0.0)])
def test_the_loop(model, temperature, remasking, scale):
    """The loop takes a row at a time, so one row is compared."""
    prompt = make_prompt(model, 1, 5)
    arguments = (8, 16, 8, temperature, scale, remasking)
    got = generate(model, prompt, *arguments, mask_id=MASK_ID, seed=7)
    assert_same(got, reference(model, prompt, *arguments, seeds=7))
    assert kind_of(model) == "logits"  # a row's logits depend on the other rows of a product


# encoders keep a cache from transformers 5 on only
@pytest.mark.parametrize("family, name", [("bert", name) for name in UNCACHED] + [("llama", name) for name in EVERY])
def test_suppressed_tokens(family, name):
    """As where the model itself gives them -inf; and what every sampler is given besides."""
    model, (kind, settings) = int8_model(family), EVERY[name]
    prompt = make_prompt(model, 1, 6)
    options = dict(max_new_tokens=16, block_size=8, temperature=0.3, seed=1) | settings

    def sample(**others):
        return kind(model, TOKENIZER).sample(list(prompt), **options, **others)

    tokens = sample()[0, 6:].unique().tolist()[:2]
    got = sample(suppress_tokens=tokens)
    assert not torch.isin(got[:, 6:], torch.tensor(tokens)).any()
    handle = model.register_forward_hook(without(tokens))
    try:
        assert torch.equal(sample(), got)
    finally:
        handle.remove()
    sample(begin_suppress_tokens=tokens)


def test_it_is_not_patched(model):
    with pytest.raises(ValueError, match=r"must be an nn.Linear, got torch.ao.nn.quantized"):
        patch(model)


def test_tables_of_tokens_are_as_wide_as_the_logits():
    """A model may return fewer logits than its embedding has rows."""
    model = tiny("bert")
    model.register_forward_hook(lambda module, args, out: type(out)(logits=out.logits[..., :90]))
    sampler = samplers.MDLMSampler(model, TOKENIZER)
    got = sampler.sample(list(make_prompt(model, 2, 6) % 90), steps=4, max_new_tokens=8, suppress_tokens=[7, 95])
    assert int(got.max()) < 90 and not (got[:, 6:] == 7).any()
