"""Models with weights of 8 bits: which layers, what they compute, sampling from them, and what they refuse."""

import copy
import logging

import pytest
import torch
from torch import nn

from dllm.configs import ModelArguments
from dllm.core import samplers
from dllm.core.trainers import MDLMConfig, MDLMTrainer
from dllm.demo.shipped import SHIPPED
from dllm.fast import generate, patch, quantize
from dllm.fast.compiled import body as bodies
from dllm.fast.head.split import SplitModel
from dllm.fast.int8 import Int8Linear, check_trainable, is_int8
from dllm.fast.training.loss import masked_loss
from dllm.models import get_model
from dllm_kernels import int8_linear
from dllm_kernels.int8 import quantize_rows
from tests.causal_models import causal_model
from tests.fast.test_generate import LOW, assert_same, reference
from tests.models import MASK_ID, kind_of, make_prompt, tiny
from tests.samplers.test_cached import TOKENIZER

pytestmark = pytest.mark.usefixtures("one_thread")


def quantized(family, **options):
    model = tiny(family, **options) if family in ("bert", "modernbert") else causal_model()
    return quantize(copy.deepcopy(model))


def test_every_linear_layer_and_nothing_else():
    model = tiny("modernbert")
    names = {name for name, module in model.named_modules() if type(module) is nn.Linear}
    small = quantize(copy.deepcopy(model))
    assert {name for name, module in small.named_modules() if type(module) is Int8Linear} == names
    assert small.get_input_embeddings().weight.dtype == torch.float32
    assert is_int8(small) and not is_int8(model)
    assert not any(p.requires_grad for p in small.parameters())
    layer, before = small.get_output_embeddings(), model.get_output_embeddings()
    weight, scale = quantize_rows(before.weight.detach())
    assert torch.equal(layer.weight, weight) and torch.equal(layer.scale, scale)


def test_a_router_and_experts_in_one_parameter_stay(caplog):
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.up = nn.Linear(8, 4), nn.Linear(8, 16)
            self.weights = nn.Parameter(torch.zeros(4, 8, 16))

    with caplog.at_level(logging.WARNING):
        model = quantize(Experts())
    assert type(model.gate) is nn.Linear and type(model.up) is Int8Linear
    assert "0.0 MB of experts stay as they are" in caplog.text


def test_a_layer_used_twice_stays_one():
    layer = nn.Linear(4, 4)
    model = quantize(nn.Sequential(layer, nn.ModuleDict({"again": layer})))
    assert model[0] is model[1]["again"]


def test_scales_and_bias_stay_float32_in_any_dtype():
    layer = Int8Linear(nn.Linear(32, 16))
    kept = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    small = copy.deepcopy(layer).bfloat16()
    assert all(torch.equal(buffer, kept[name]) for name, buffer in small.named_buffers())
    x = torch.randn(3, 32, dtype=torch.bfloat16)
    assert torch.equal(small(x), int8_linear(x, *layer.buffers()))
    restored = Int8Linear(nn.Linear(32, 16))
    restored.load_state_dict(layer.state_dict())
    assert torch.equal(restored(x), small(x))


def test_it_compiles_in_one_graph():
    layer = Int8Linear(nn.Linear(32, 16))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows in (3, 5):
        x = torch.randn(rows, 32)
        with torch.no_grad():
            assert torch.equal(compiled(x), layer(x))


# sampling


@pytest.mark.parametrize("family", ["bert", "modernbert", "llama"])
@pytest.mark.parametrize("temperature, remasking, scale", [(0.0, LOW, 0.0), (0.7, LOW, 0.0), (1.0, "random", 0.0)])
def test_the_loop(family, temperature, remasking, scale):
    """As the model card's loop on the same model: a batch, though rows are quantised."""
    model = quantized(family)
    prompt = make_prompt(model, 2, 5)
    arguments = (8, 16, 8, temperature, scale, remasking)
    got = generate(model, prompt, *arguments, mask_id=MASK_ID, seed=7)
    assert kind_of(model) == "int8"
    assert_same(got, reference(model, prompt, *arguments, seeds=7))
    alone = generate(model, prompt[1:], *arguments, mask_id=MASK_ID, seed=8)
    assert torch.equal(alone[0], got[1])


def test_a_compiled_body(monkeypatch):
    """The same layers in one graph: the tokens of the eager body."""
    graphs = []
    monkeypatch.setattr(bodies, "_BACKEND", lambda graph, inputs: graphs.append(graph) or graph.forward)
    model = quantized("modernbert")
    for rows, columns in ((3, 5), (2, 9), (4, 7)):
        arguments = dict(steps=8, gen_length=16, block_length=8, mask_id=MASK_ID, temperature=0.7, seed=3)
        eager, compiled = (
            generate(model, make_prompt(model, rows, columns), compile_body=how, **arguments) for how in (False, True)
        )
        assert torch.equal(compiled, eager)
    assert len(graphs) == 1


@pytest.mark.parametrize(
    "kind, settings",
    [
        (samplers.MDLMSampler, dict(steps=8)),
        (samplers.LLaDASampler, dict(steps=8, cfg_scale=0.5)),
        (samplers.DreamSampler, dict(steps=8, top_p=0.9, top_k=20)),
    ],
)
def test_samplers(kind, settings):
    model = quantized("bert")
    prompt = make_prompt(model, 2, 6)
    options = dict(max_new_tokens=16, temperature=0.3, seed=1) | settings
    got = kind(model, TOKENIZER).sample(list(prompt), **options)
    assert not (got[:, 6:] == MASK_ID).any()
    assert torch.equal(kind(model, TOKENIZER).sample(list(prompt), **options), got)


def test_a_head_with_a_hook_is_called():
    model = quantized("bert")
    model.get_output_embeddings().register_forward_hook(lambda module, args, out: out * 2)
    assert SplitModel(model, make_prompt(model, 1, 4)).kind != "int8"


def test_values_that_are_no_numbers_are_reported():
    model = quantized("bert")
    with torch.no_grad():
        model.get_input_embeddings().weight[MASK_ID] = torch.nan
    with pytest.raises(RuntimeError, match="finite"):
        generate(model, make_prompt(model, 1, 4), 4, 8, 8, mask_id=MASK_ID)


def test_the_logits_are_close():
    """A tiny model has rows of 32 numbers, in which the largest is as often far from the rest."""
    model = tiny("bert")
    ids = make_prompt(model, 2, 20)
    with torch.no_grad():
        full, small = model(ids).logits, quantize(copy.deepcopy(model))(ids).logits
    assert 0 < ((small - full).std() / full.std()).item() < 0.1
    split = SplitModel(quantize(copy.deepcopy(model)), ids[:1, :4])
    assert torch.equal(split.logits(split.body(ids, None).flatten(0, 1)), small.flatten(0, 1))


# what it refuses


def test_it_is_neither_trained_nor_patched_nor_saved(tmp_path):
    model = quantized("bert")
    with pytest.raises(ValueError, match="no gradient"):
        check_trainable(model)
    with pytest.raises(ValueError, match="no gradient"):
        MDLMTrainer(model=model, args=_trainer_arguments(tmp_path))
    ids = make_prompt(model, 1, 6)
    with pytest.raises(ValueError, match="no gradient"):
        masked_loss(
            model, {"input_ids": ids}, rows=torch.tensor([1]), targets=torch.tensor([3]), row_weight=torch.ones(1)
        )
    with pytest.raises(ValueError, match=r"must be an nn.Linear, got .*Int8Linear"):
        patch(model)
    with pytest.raises(ValueError, match="is not saved"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def _trainer_arguments(folder):
    return MDLMConfig(output_dir=str(folder), report_to="none")


def hooked(model):
    model.bert.encoder.layer[0].output.dense.register_forward_hook(lambda module, args, out: None)


def in_double(model):
    model.double()


def patched(model):
    patch(model)


def adapted(model):
    model.peft_config = {}


def twice(model):
    quantize(model)


@pytest.mark.parametrize(
    "change, message",
    [
        (hooked, "got hooks or offloading in dense"),
        (in_double, "got Parameter of float64"),
        (patched, "unpatch it before"),
        (adapted, "adapter must be merged"),
        (twice, "is quantised already"),
    ],
)
def test_models_that_are_not_quantised(change, message):
    model = tiny("bert")
    change(model)
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        quantize(model)
    assert [type(module) for module in model.modules()] == before


def test_names_and_combinations():
    with pytest.raises(ValueError, match="quantize must be one of int8, got 'int4'"):
        quantize(tiny("bert"), "int4")
    with pytest.raises(ValueError, match="has no linear layers"):
        quantize(nn.Sequential(nn.Embedding(3, 4)))
    for options, message in (
        (dict(quantize="fp8"), "quantize must be int8 or nothing, got 'fp8'"),
        (dict(quantize="int8", load_in_4bit=True), "quantize=int8 must not be given beside load_in_4bit"),
        (dict(quantize="int8", lora=True), "quantize=int8 must not be given beside lora"),
    ):
        with pytest.raises(ValueError, match=message):
            ModelArguments(model_name_or_path="bert", **options)


def test_loading():
    model = get_model(model_name_or_path=str(SHIPPED), dtype="float32", quantize="int8")
    assert type(model.get_output_embeddings()) is Int8Linear
