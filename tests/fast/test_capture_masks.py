"""A capture runs the attention kernels that its warm-ups ran: the same masks, shapes, strides and dtypes. transformers
knows when a stream captures, and may build masks that only a capture gets."""

import pytest
import torch
import transformers
from torch._dynamo.testing import CompileCounter
from transformers import masking_utils

from dllm.core import samplers
from dllm.fast import capture
from dllm.fast.training.graphs import Batch, forward_and_backward
from dllm.models import bidirectional
from tests.cuda_stand_in import CUDA, Device
from tests.graph_stand_in import install_sampling
from tests.models import FAMILIES, make_prompt, tiny
from tests.samplers.test_cached import TOKENIZER

pytestmark = pytest.mark.usefixtures("one_thread")
KNOWS_CAPTURES = hasattr(masking_utils, "is_tracing")
needs_is_tracing = pytest.mark.skipif(not KNOWS_CAPTURES, reason="transformers 4.57 looks into masks in captures too")
DECODERS = ("Llama", "Qwen2", "Llama, wrapped")


def as_in_5_17(padding_mask, kv_length, local_attention_size=None):
    """The rule of transformers 5.17, which asks whether a stream captures also where there is no mask."""
    everything = padding_mask is None or padding_mask.all()
    short = local_attention_size is None or kv_length < local_attention_size
    return not masking_utils.is_tracing(padding_mask) and everything and short


@pytest.fixture(params=["as installed", pytest.param("as in 5.17", marks=needs_is_tracing)])
def device(request, monkeypatch):
    if request.param == "as in 5.17":
        monkeypatch.setattr(masking_utils, "_ignore_bidirectional_mask_sdpa", as_in_5_17)
    return Device().install(monkeypatch)


def model_of(family, attention):
    if family in FAMILIES:
        return tiny(family, attn_implementation=attention)
    size = dict(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    name, _, wrapped = family.partition(", ")
    options = dict(num_key_value_heads=2, use_cache=False, attn_implementation=attention) | size
    config = getattr(transformers, f"{name}Config")(**options, is_causal=bool(wrapped))
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    if wrapped:
        return bidirectional(model)
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    return model


def warmed_up_and_captured(device, run):
    """What attention was called with in a warm-up, which the capture repeats."""
    before = masking_utils.__dict__.get("is_tracing")
    for _ in range(capture.WARM_UPS):
        capture.warm_up(run, CUDA)
    capture.record(run, CUDA, "pool")
    assert masking_utils.__dict__.get("is_tracing") is before
    assert device.warm_ups == capture.WARM_UPS * device.captures
    return device.warm_ups[0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", [*FAMILIES, *DECODERS])
def test_forwards_without_a_mask(device, family, attention):
    model = model_of(family, attention)
    tokens = make_prompt(model, 2, 20)
    with torch.no_grad():
        calls = warmed_up_and_captured(device, lambda: model(input_ids=tokens))
    masks = [mask for *_, mask, _, _, _ in calls]
    assert len(masks) == (2 if attention == "sdpa" else 0)
    if KNOWS_CAPTURES:
        windows = 1 if family == "modernbert" else 0  # its second layer sees a window
        assert len(masks) - masks.count(None) == (windows if masks else 0)
        if attention == "sdpa" or not windows:  # eager masks of 5.17 copy a number from the host
            assert device.waited == []


@needs_is_tracing
@pytest.mark.parametrize("kept", [20, 13])
def test_forwards_with_a_mask(device, kept):
    """A mask of ones is a mask: a replay may find padding there."""
    model = model_of("bert", "sdpa")
    tokens, mask = make_prompt(model, 2, 20), (torch.arange(20) < kept).long().expand(2, 20)
    with torch.no_grad():
        calls = warmed_up_and_captured(device, lambda: model(input_ids=tokens, attention_mask=mask))
    assert device.waited == [] and len(calls) == 2
    assert all(seen is not None and seen[1][-1] == 1 for *_, seen, _, _, _ in calls)  # strides that kernels take


@needs_is_tracing
@pytest.mark.parametrize(
    ("family", "attention"), [("bert", "sdpa"), ("bert", "eager"), ("modernbert", "sdpa"), ("Llama", "sdpa")]
)
def test_training_steps(device, family, attention):
    model = model_of(family, attention).train()
    rows = torch.arange(7)
    batch = Batch({"input_ids": make_prompt(model, 2, 20)}, rows, rows + 5, torch.ones(7)).copy()
    forward_and_backward(model, batch)  # finds out how the model uses its head
    calls = warmed_up_and_captured(device, lambda: forward_and_backward(model, batch))
    assert len(calls) == (2 if attention == "sdpa" else 0) and device.waited == []


def recorded_on_a_device(monkeypatch):
    """Let a denoising loop on the CPU go through `capture.warm_up` and `capture.record`; its replays do nothing."""
    warm_up, record = capture.warm_up, capture.record
    install_sampling(monkeypatch)
    monkeypatch.setattr(capture, "warm_up", lambda run, device: warm_up(run, CUDA))
    monkeypatch.setattr(capture, "record", lambda run, device, pool: (record(run, CUDA, pool), lambda: None)[1])


@needs_is_tracing
@pytest.mark.parametrize(
    ("family", "attention", "cache"),
    [
        ("bert", "sdpa", None),
        ("bert", "eager", None),
        ("Llama", "sdpa", "prefix"),
        ("Llama", "sdpa", "dual"),
        ("Llama, wrapped", "eager", "dual"),
    ],
)
def test_denoising_steps(device, monkeypatch, family, attention, cache):
    model = model_of(family, attention)
    recorded_on_a_device(monkeypatch)
    sampler = samplers.FastDLLMSampler(model, TOKENIZER) if cache else samplers.MDLMSampler(model, TOKENIZER)
    options = {"cache": cache, "threshold": 0.3} if cache else {"steps": 8}
    prompts = [row.tolist() for row in make_prompt(model, 2, 8)]
    sampler.sample(prompts, max_new_tokens=16, block_size=8, seed=3, **options)
    assert len(device.captures) > 0 and device.waited == []
    warm_ups = [calls for calls in device.captures for _ in range(capture.WARM_UPS)]
    assert device.warm_ups == warm_ups and all(len(calls) > 0 for calls in warm_ups) == (attention == "sdpa")


@needs_is_tracing
def test_a_compiled_model_is_compiled_before(device):
    """What changes the rule does not make torch.compile compile within a capture."""
    torch._dynamo.reset()
    model, compiled = model_of("bert", "sdpa"), CompileCounter()
    run, tokens, counts = torch.compile(model, backend=compiled), make_prompt(model, 2, 20), []

    def forward():
        with torch.no_grad():
            run(input_ids=tokens)
        counts.append(compiled.frame_count)

    warmed_up_and_captured(device, forward)
    assert counts[0] == counts[-1] > 0


def test_an_error_brings_the_rule_back(device):
    before = masking_utils.__dict__.get("is_tracing")

    def fails():
        raise RuntimeError("no")

    for run in (lambda: capture.warm_up(fails, CUDA), lambda: capture.record(fails, CUDA, "pool")):
        with pytest.raises(capture.CaptureError, match="RuntimeError: no"):
            run()
        assert masking_utils.__dict__.get("is_tracing") is before
