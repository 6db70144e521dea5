"""Mixtures with weights of 8 bits, experts included, as both versions of transformers store them."""

import copy
import logging
import pickle

import pytest
import torch
import transformers
from torch import nn

from dllm.core import samplers
from dllm.core.trainers import MDLMConfig, MDLMTrainer
from dllm.fast import quantize
from dllm.fast.compiled import body as bodies
from dllm.fast.compiled.body import CompiledBody
from dllm.fast.compiled.decision import why_it_does_not_pay
from dllm.fast.experts import has_swiglu_experts
from dllm.fast.int8 import Int8Experts, check_trainable, is_int8
from dllm.models import get_model
from dllm_kernels import _impl
from dllm_kernels.int8 import quantize_rows
from tests.families.toys import CHECKPOINTS, assert_one_graph, tokens
from tests.models import MASK_ID
from tests.samplers.test_cached import TOKENIZER

V5 = int(transformers.__version__.split(".")[0]) >= 5
joined = pytest.mark.skipif(not V5, reason="transformers 4 stores each expert as linear layers")
MIXTURES = ("lladamoe", "rnd1", "llada2")
pytestmark = pytest.mark.usefixtures("one_thread")


def load(name, dtype="float32", **options):
    model = get_model(model_name_or_path=str(CHECKPOINTS / name), dtype=dtype, **options).eval()
    model.config.mask_token_id = MASK_ID
    return model


def experts_of(model):
    return [module for module in model.modules() if has_swiglu_experts(module)]


@pytest.mark.parametrize("name", MIXTURES)
def test_no_expert_stays_in_full(name, caplog):
    with caplog.at_level(logging.WARNING):
        model, full = load(name, quantize="int8"), load(name)
    assert not [key for key, _ in model.named_parameters() if ".experts." in key]
    assert "experts stay" not in caplog.text and is_int8(model)
    bytes_of = lambda tensors: sum(tensor.nbytes for key, tensor in tensors if ".experts." in key)  # noqa: E731
    share = bytes_of(model.named_buffers()) / bytes_of(full.named_parameters())
    widest = full.config.hidden_size  # a scale of 4 bytes for each row of a byte a number, instead of 4 bytes
    assert 1 / 4 < share <= 1 / 4 + 1 / min(widest, full.config.moe_intermediate_size)


@joined
def test_the_weights_are_those_of_rows():
    full, model = load("rnd1"), load("rnd1", quantize="int8")
    small = [module for module in model.modules() if type(module) is Int8Experts]
    assert len(small) == len(experts_of(full)) > 0
    for layer, before in zip(small, experts_of(full), strict=True):
        for name in ("gate_up", "down"):
            weight, scale = quantize_rows(getattr(before, f"{name}_proj").detach().flatten(0, 1))
            assert torch.equal(getattr(layer, name).flatten(0, 1), weight)
            assert torch.equal(getattr(layer, f"{name}_scale").flatten(), scale)


@torch.no_grad()
@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_does_not_depend_on_its_batch(name, dtype):
    """Behind attention, whose sums depend on the batch, it is measured where experts begin."""
    model, seen = load(name, dtype, quantize="int8"), []
    experts = [module for key, module in model.named_modules() if key.endswith(".experts")]
    blocks = [module for module in model.modules() if getattr(module, "experts", None) in experts]
    assert blocks
    for block in blocks:
        block.register_forward_hook(lambda module, args, out: seen.append((module, args[0])))
    model(tokens(4, 24))
    for block, hidden in list(seen):
        first = lambda x: x[0] if isinstance(x, tuple) else x  # noqa: E731
        whole = first(block.forward(hidden))
        assert torch.equal(first(block.forward(hidden[1:2])), whole[1:2])
        assert torch.equal(first(block.forward(hidden[:, 3:4])), whole[:, 3:4])


@pytest.mark.parametrize("name", MIXTURES)
def test_samplers(name):
    model, prompts = load(name, quantize="int8"), list(tokens(3, 8))
    kind, cache = (samplers.LLaDA2Sampler, dict(cache=True)) if name == "llada2" else (samplers.MDLMSampler, {})
    how = dict(steps=16, max_new_tokens=32, block_size=32, temperature=0.3, seed=0, **cache)
    got = kind(model, TOKENIZER).sample(prompts, **how)
    assert not (got[:, 8:] == MASK_ID).any()
    assert torch.equal(kind(copy.deepcopy(model), TOKENIZER).sample(prompts, **how), got)


@joined
@torch.no_grad()
def test_copies_pickles_and_dtypes():
    model, ids = load("rnd1", quantize="int8"), tokens()
    want = model(ids).logits
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(ids).logits, want)
        with pytest.raises(ValueError, match="is not saved"):
            other.save_pretrained("nowhere")
    scales = {key: buffer for key, buffer in model.named_buffers() if "scale" in key}
    small = copy.deepcopy(model).bfloat16()
    assert scales and all(torch.equal(small.get_buffer(key), scale) for key, scale in scales.items())
    assert small(ids).logits.dtype == torch.bfloat16


@joined
def test_it_is_neither_trained_nor_quantised_again(tmp_path):
    model = load("rnd1", quantize="int8")
    with pytest.raises(ValueError, match="no gradient"):
        MDLMTrainer(model=model, args=MDLMConfig(output_dir=str(tmp_path), report_to="none"))
    with pytest.raises(ValueError, match="no gradient"):
        check_trainable(nn.Sequential(next(module for module in model.modules() if type(module) is Int8Experts)))
    with pytest.raises(ValueError, match="is quantised already"):
        quantize(model)


@joined
def test_what_stays_in_full(caplog):
    """Experts of other formulae, and those on another device; the log says how many MB."""
    model = load("rnd1")
    gelu, elsewhere, *rest = experts_of(model)
    gelu.act_fn = nn.GELU()
    elsewhere.to("meta")
    with caplog.at_level(logging.WARNING):
        quantize(model)
    assert experts_of(model) == [elsewhere]
    assert sum(type(module) is Int8Experts for module in model.modules()) == len(rest)
    size = sum(p.nbytes for module in (gelu, elsewhere) for p in module.parameters()) / 10**6
    assert size > 0 and f"{size:.1f} MB of experts stay as they are" in caplog.text


@joined
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda experts: experts.register_forward_hook(lambda *_: None), "got hooks or offloading in experts"),
        (lambda experts: experts.double(), "got Parameter of float64 in experts"),
        (lambda experts: setattr(experts, "forward", lambda hidden, *_: hidden), "got hooks or offloading in experts"),
    ],
)
def test_experts_that_are_not_quantised(change, message):
    model = load("rnd1")
    change(experts_of(model)[1])
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        quantize(model)
    assert [type(module) for module in model.modules()] == before


@joined
@torch.inference_mode()
@pytest.mark.skipif(_impl.why_not_cpu() is not None, reason="the reference loops over experts")
def test_routing_compiles_nothing_again(monkeypatch):
    monkeypatch.setattr(bodies, "_BACKEND", "eager")
    torch._dynamo.reset()
    model = load("rnd1")
    model.model.layers = model.model.layers[:1]  # tracing takes a second for each
    model.set_experts_implementation("eager")
    assert "one by one" in why_it_does_not_pay(model, 10**7, 32, torch.device("cpu"))
    compiled = CompiledBody(quantize(model), required=True)
    assert_one_graph(model, compiled)
    assert why_it_does_not_pay(model, 10**7, 32, torch.device("cpu")) is None
