"""Logits of official checkpoints equal those of the official code, as loaded and after saving."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from dllm.models import get_config, get_model
from tests.families import forwards
from tests.families.toys import CHECKPOINTS, NAMES, config_of, reference_of, tensors_of

# The largest error of float32 logits whose standard deviation is 1.3, as of all checkpoints but A2D's, where it is 8.5.
# Rounding errors of products grow with what is multiplied, so errors of larger logits are divided by as much.
TOLERANCE = 2e-5
CLASSES = {
    "llada": transformers.LlamaForCausalLM,
    "lladamoe": transformers.Qwen3MoeForCausalLM,
    "dream": transformers.Qwen2ForCausalLM,
    "rnd1": transformers.Qwen3MoeForCausalLM,
    "a2d-qwen3": transformers.Qwen3ForCausalLM,
    "llada2": transformers.Glm4MoeForCausalLM,
}
FAMILY = dict(zip(NAMES, ("llada", "llada_moe", "dream", "rnd1", "a2d", "llada2"), strict=True))
FORWARD = {"llada": forwards.llada, "llada2": forwards.llada2}


def errors(model, name):
    """Largest difference from the official logits at real tokens, for every kind of mask, at a deviation of 1.3."""
    reference = reference_of(name)
    size = max(1.0, reference["full"].std().item() / 1.3)
    masks = {"full": None, "padded": reference["mask"], "block": reference.get("block_mask")}
    real = {"padded": reference["mask"].bool()}
    found = {}
    for kind, mask in masks.items():
        if kind in reference:
            with torch.no_grad():
                difference = (model(input_ids=reference["ids"], attention_mask=mask).logits - reference[kind]).abs()
            found[kind] = difference[real.get(kind, ...)].max().item() / size
    return found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_the_official_ones(name, attention):
    model = get_model(model_name_or_path=str(CHECKPOINTS / name), dtype="float32", attn_implementation=attention)
    found = errors(model.eval(), name)
    print(f"transformers {transformers.__version__} {name} {attention}: {found}")
    assert type(model) is CLASSES[name] and not model.config.use_cache
    assert max(found.values()) < TOLERANCE
    assert len(found) == 2


@pytest.mark.parametrize("name", NAMES)
def test_references_in_plain_pytorch_equal_the_official_logits(name):
    reference = reference_of(name)
    visible = torch.ones(1, 1, 1, 24, dtype=torch.bool)
    found = FORWARD.get(name, forwards.qwen_like)(config_of(name), tensors_of(name), reference["ids"], visible)
    assert (found - reference["full"]).abs().max() < TOLERANCE * max(1.0, reference["full"].std().item() / 1.3)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_loads_again_with_its_family(name, tmp_path):
    model = get_model(model_name_or_path=str(CHECKPOINTS / name), dtype="float32").eval()
    model.save_pretrained(tmp_path)
    marker = json.loads((tmp_path / "config.json").read_text())["masked_diffusion"]
    assert marker["family"] == FAMILY[name] and marker["bidirectional"]
    assert marker["right_shift"] == (name in ("dream", "rnd1"))
    assert marker.get("block_size") == (32 if name == "llada2" else None)
    again = get_model(model_name_or_path=str(tmp_path), dtype="float32").eval()
    assert type(again) is CLASSES[name]
    assert again.config.masked_diffusion == model.config.masked_diffusion
    assert again.config.mask_token_id == model.config.mask_token_id
    assert max(errors(again, name).values()) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_plain_transformers_loads_a_saved_model_as_the_base_class(name, tmp_path):
    model = get_model(model_name_or_path=str(CHECKPOINTS / name), dtype="float32")
    model.save_pretrained(tmp_path)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(plain) is CLASSES[name]
    weights = plain.state_dict()
    assert all(torch.equal(weights[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_is_that_of_the_base_class(name):
    config = get_config(model_name_or_path=str(CHECKPOINTS / name), attention_dropout=0.25)
    assert type(config) is CLASSES[name].config_class
    assert config.attention_dropout == 0.25
    assert config.masked_diffusion["official"] == config_of(name)


@pytest.mark.parametrize("form", [4, 5])
@pytest.mark.parametrize("name", NAMES)
def test_either_version_reads_what_the_other_saved(name, form, tmp_path):
    """transformers 4 would not read the rotary embedding and the number of experts where transformers 5 writes them."""
    model = get_model(model_name_or_path=str(CHECKPOINTS / name), dtype="float32")
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    saved, official = json.loads(file.read_text()), config_of(name)
    rope = {"rope_theta": official["rope_theta"]}
    if name == "llada2":
        rope["partial_rotary_factor"] = 0.5
    for field in ("rope_parameters", "rope_scaling", *rope):
        saved.pop(field, None)
    saved |= rope if form == 4 else {"rope_parameters": {"rope_type": "default"} | rope}
    if model.config.model_type == "qwen3_moe":
        experts = saved.pop("num_experts", None) or saved.pop("num_local_experts")
        saved["num_experts" if form == 4 else "num_local_experts"] = experts
    file.write_text(json.dumps(saved))
    again = get_model(model_name_or_path=str(tmp_path), dtype="float32").eval()
    assert max(errors(again, name).values()) < TOLERANCE
