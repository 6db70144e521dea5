"""What must not pass silently: another shift, attention that a model was not trained for, tensors that are missing."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from dllm.core import samplers
from dllm.fast import generate
from dllm.models import get_model
from tests.families import toys
from tests.families.toys import CHECKPOINTS

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = SimpleNamespace(mask_token_id=202, eos_token_id=201, pad_token_id=201)
MIXTURES = ("lladamoe", "rnd1", "llada2")


def load(folder, **options):
    return get_model(model_name_or_path=str(folder), **{"dtype": "float32"} | options).eval()


@pytest.mark.parametrize("name", ["dream", "rnd1", "llada"])
def test_generate_takes_the_shift_from_the_model(name):
    model = load(CHECKPOINTS / name)
    options = dict(steps=8, gen_length=8, block_length=8, remasking="low_confidence", mask_id=202)
    sampler = samplers.MDLMSampler(model, TOKENIZER)
    expected = sampler.sample([[5, 6, 7]], max_new_tokens=8, block_size=8, steps=8, remasking="low_confidence")
    assert torch.equal(generate(model, torch.tensor([[5, 6, 7]]), **options), expected)


def test_a_model_of_blocks_is_not_run_on_whole_rows():
    model = load(CHECKPOINTS / "llada2")
    with pytest.raises(ValueError, match="attends block by block, 32 tokens each"):
        generate(model, torch.tensor([[5, 6]]), steps=4, gen_length=4, block_length=4, mask_id=202)
    with pytest.raises(ValueError, match="LLaDA2Sampler"):
        samplers.MDLMSampler(model, TOKENIZER).sample([[5, 6]], max_new_tokens=4, block_size=4)
    blocks = dict(max_new_tokens=4, block_size=4, steps=4)
    assert samplers.BD3LMSampler(model, TOKENIZER).sample([[5, 6]], **blocks).shape == (1, 6)


@pytest.mark.parametrize("kind", [samplers.LLaDA2Sampler, samplers.LLaDA21Sampler])
def test_the_cache_of_blocks_follows_the_model(kind):
    """A model of blocks is sampled by blocks unless it is told otherwise, and then it is refused; others are not."""
    blocks, whole = load(CHECKPOINTS / "llada2"), load(CHECKPOINTS / "llada")
    options = dict(max_new_tokens=8, block_size=4, steps=4, return_dict=True)
    for model, cache in ((blocks, True), (whole, False)):
        sampler = kind(model, TOKENIZER)
        default, stated = (sampler.sample([[5, 6, 7]], **options, **own) for own in ({}, dict(cache=cache)))
        assert torch.equal(default.sequences, stated.sequences)
        assert default.stats.forwards == stated.stats.forwards
    with pytest.raises(ValueError, match="attends block by block"):
        kind(blocks, TOKENIZER).sample([[5, 6, 7]], **options, cache=False)
    with pytest.raises(ValueError, match="block_size must be a number beside a cache"):
        kind(blocks, TOKENIZER).sample([[5, 6, 7]], **options | dict(block_size=None))


@pytest.mark.parametrize("name", ["llada", "rnd1", "a2d-qwen3"])
def test_a_saved_model_that_lacks_a_tensor(name, tmp_path):
    load(CHECKPOINTS / name).save_pretrained(tmp_path)
    load(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = next(key for key in tensors if "o_proj" in key)
    save_file({key: tensor for key, tensor in tensors.items() if key != lost}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"as a whole: .*o_proj"):
        load(tmp_path)


@pytest.mark.parametrize("name", MIXTURES)
def test_an_adapter_of_a_mixture_is_saved(name, tmp_path):
    model = load(CHECKPOINTS / name, lora=True, target_modules="q_proj,v_proj")
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "lora_B" in key:
                weight.fill_(0.1)
    copy.deepcopy(model).save_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(load(tmp_path)(ids).logits, model(ids).logits)


@pytest.mark.parametrize("name", MIXTURES)
def test_the_default_adapter_of_a_mixture(name, tmp_path, caplog):
    """It adapts what it can: experts that lie in one tensor take no dropout, which is said once."""
    model = load(CHECKPOINTS / name, lora=True, r=2)
    adapted = {key for key, weight in model.named_parameters() if weight.requires_grad}
    fused = any("experts" in key and weight.dim() == 3 for key, weight in model.named_parameters())
    for layer in range(3):
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            assert f"base_model.model.model.layers.{layer}.self_attn.{part}.lora_A.default.weight" in adapted
    assert fused == all("self_attn" in key for key in adapted)
    assert sum("all other layers stay frozen" in record.message for record in caplog.records) == fused
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "lora_B" in key:
                weight.fill_(0.1)
    model.save_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(load(tmp_path)(ids).logits, model(ids).logits)


@pytest.mark.parametrize("name", MIXTURES)
def test_adapters_of_experts(name, caplog):
    """Without dropout they get some; if they are named, and dropout is not off, transformers 5 cannot."""
    model = load(CHECKPOINTS / name, lora=True, r=2, lora_dropout=0.0)
    assert any("experts" in key for key, weight in model.named_parameters() if weight.requires_grad)
    assert "frozen" not in caplog.text
    named = dict(lora=True, r=2, target_modules="q_proj,gate_proj,up_proj,down_proj")
    if transformers.__version__.startswith("4."):
        assert any(
            "experts" in key for key, w in load(CHECKPOINTS / name, **named).named_parameters() if w.requires_grad
        )
    else:
        with pytest.raises(ValueError, match="the experts of this model take no dropout: set lora_dropout to 0"):
            load(CHECKPOINTS / name, **named)


@pytest.mark.parametrize("mask", [-1, 256, 257, "202", True])
def test_a_mask_token_without_a_row(mask, tmp_path):
    config = toys.config_of("llada") | {"mask_token_id": mask}
    folder = toys.write(tmp_path, config, toys.tensors_of("llada"))
    rule = "must be an id from 0 to 255" if type(mask) is int else "in config.json must be a token id"
    with pytest.raises(ValueError, match=f"mask_token_id {rule}, got {mask!r}"):
        load(folder)


def test_the_index_says_which_shard_a_tensor_is_in(tmp_path):
    tensors = toys.tensors_of("llada")
    toys.write(tmp_path, toys.config_of("llada"), tensors, shards=2)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    first, second = sorted(set(index.values()))
    name = next(key for key, file in index.items() if file == first)
    more = {name: torch.zeros_like(tensors[name])}
    save_file(load_file(tmp_path / second) | more, tmp_path / second, metadata={"format": "pt"})
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(load(tmp_path)(ids).logits, load(CHECKPOINTS / "llada")(ids).logits)


@pytest.mark.parametrize("name", ["lladamoe", "rnd1"])
def test_experts_in_float64(name):
    ids = torch.tensor([[5, 6, 7]])
    exact = load(CHECKPOINTS / name, dtype="float64")(ids).logits
    assert exact.dtype == torch.float64
    torch.testing.assert_close(load(CHECKPOINTS / name)(ids).logits.double(), exact, atol=1e-4, rtol=1e-4)
