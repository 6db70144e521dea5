"""Adapters that were trained on official names load onto the mapped model."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from dllm.models import get_model
from tests.families import forwards
from tests.families.toys import CHECKPOINTS, config_of, reference_of, tensors_of

pytest.importorskip("peft")
RANK, ALPHA = 4, 8
SETTINGS = {
    "peft_type": "LORA",
    "task_type": None,
    "inference_mode": True,
    "r": RANK,
    "lora_alpha": ALPHA,
    "lora_dropout": 0.0,
    "bias": "none",
    "fan_in_fan_out": False,
    "use_rslora": False,
    "modules_to_save": None,
    "layers_to_transform": None,
    "rank_pattern": {},
    "alpha_pattern": {},
}


def write_adapter(folder, name, modules, **settings):
    """An adapter of these modules (official names, without .weight); returns the official tensors with it merged."""
    tensors, weights = tensors_of(name), {}
    generator = torch.Generator().manual_seed(0)
    for module in modules:
        rows, columns = tensors[f"{module}.weight"].shape
        a, b = torch.randn(RANK, columns, generator=generator), torch.randn(rows, RANK, generator=generator)
        weights |= {f"base_model.model.{module}.lora_{k}.weight": 0.2 * w for k, w in (("A", a), ("B", b))}
        alpha = next((v for k, v in settings.get("alpha_pattern", {}).items() if module.endswith(k)), ALPHA)
        tensors[f"{module}.weight"] = tensors[f"{module}.weight"] + alpha / RANK * (0.2 * b) @ (0.2 * a)
    for extra in settings.get("modules_to_save") or []:
        (full,) = [key for key in tensors if key.endswith(f"transformer.{extra}.weight")]
        tensors[full] = weights[f"base_model.model.{full}"] = tensors[full] * 1.5
    folder.mkdir()
    config = SETTINGS | {"base_model_name_or_path": str(CHECKPOINTS / name)} | settings
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(weights, folder / "adapter_model.safetensors")
    return tensors


def check(folder, name, forward, tensors, **options):
    ids = reference_of(name)["ids"]
    model = get_model(model_name_or_path=str(folder), dtype="float32", **options).eval()
    truth = forward(config_of(name), tensors, ids, torch.ones(1, 1, 1, 24, dtype=torch.bool))
    with torch.no_grad():
        error = (model(input_ids=ids).logits - truth).abs().max()
    assert error < 2e-5 * max(1, truth.std())
    assert (truth - reference_of(name)["full"]).abs().max() > 0.1
    return model


LLADA = ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out")
BLOCKS = [f"model.transformer.blocks.{layer}.{part}" for layer in range(3) for part in LLADA]


@pytest.mark.parametrize("targets", [list(LLADA), ".*blocks.*(proj|out)", "all-linear"])
def test_adapters_of_llada(targets, tmp_path):
    tensors = write_adapter(tmp_path / "adapter", "llada", BLOCKS, target_modules=targets)
    check(tmp_path / "adapter", "llada", forwards.llada, tensors)


def test_the_head_is_told_from_the_down_projections(tmp_path):
    modules = ["model.transformer.ff_out", *[f"model.transformer.blocks.{layer}.ff_out" for layer in range(3)]]
    tensors = write_adapter(tmp_path / "adapter", "llada", modules, target_modules=["ff_out"])
    model = check(tmp_path / "adapter", "llada", forwards.llada, tensors)
    assert "lora" in str(type(model.base_model.model.lm_head)).lower()


def test_modules_that_are_saved_in_full_and_patterns(tmp_path):
    options = dict(target_modules=["attn_out", "q_proj"], modules_to_save=["ff_out"], alpha_pattern={"attn_out": 2})
    modules = [name for name in BLOCKS if name.endswith(("attn_out", "q_proj"))]
    tensors = write_adapter(tmp_path / "adapter", "llada", modules, **options)
    check(tmp_path / "adapter", "llada", forwards.llada, tensors)


def test_an_adapter_of_q_k_and_v_in_one(tmp_path):
    parts = ("attention.query_key_value", "attention.dense")
    modules = [f"model.layers.{layer}.{part}" for layer in range(3) for part in parts]
    targets = ["query_key_value", "dense"]
    tensors = write_adapter(tmp_path / "adapter", "llada2", modules, target_modules=targets)
    check(tmp_path / "adapter", "llada2", forwards.llada2, tensors)


def test_names_that_are_equal(tmp_path):
    modules = [f"model.layers.{layer}.self_attn.{part}_proj" for layer in range(3) for part in "qo"]
    tensors = write_adapter(tmp_path / "adapter", "dream", modules, target_modules=["q_proj", "o_proj"])
    check(tmp_path / "adapter", "dream", forwards.qwen_like, tensors)


def test_training_goes_on_and_is_saved_under_transformers_names(tmp_path):
    tensors = write_adapter(tmp_path / "adapter", "llada", BLOCKS, target_modules=list(LLADA))
    model = check(tmp_path / "adapter", "llada", forwards.llada, tensors, lora=True)
    assert sum(weight.requires_grad for weight in model.parameters()) == 2 * len(BLOCKS)
    model.save_pretrained(tmp_path / "again")
    check(tmp_path / "again", "llada", forwards.llada, tensors)


def test_a_setting_that_cannot_be_renamed(tmp_path):
    write_adapter(tmp_path / "adapter", "llada", BLOCKS, target_modules=list(LLADA), layer_replication=[[0, 3]])
    with pytest.raises(ValueError, match="layer_replication cannot be renamed"):
        get_model(model_name_or_path=str(tmp_path / "adapter"), dtype="float32")
