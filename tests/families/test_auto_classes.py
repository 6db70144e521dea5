"""transformers' auto classes load official checkpoints once dllm is imported."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers

from dllm.auto_classes import OfficialModel
from dllm.models import get_model
from tests.families.test_logits import CLASSES, errors
from tests.families.toys import CHECKPOINTS, NAMES, config_of, reference_of


@pytest.mark.parametrize("auto_class", ["AutoModel", "AutoModelForCausalLM", "AutoModelForMaskedLM"])
@pytest.mark.parametrize("name", NAMES)
def test_auto_classes(name, auto_class):
    model = getattr(transformers, auto_class).from_pretrained(CHECKPOINTS / name, dtype=torch.float32)
    assert type(model) is CLASSES[name] and not model.training
    assert max(errors(model, name).values()) < 2e-5


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_has_the_official_fields(name, tmp_path):
    config = transformers.AutoConfig.from_pretrained(CHECKPOINTS / name)
    official = config_of(name)
    assert {field: getattr(config, field) for field in official} == official
    model = transformers.AutoModel.from_config(config)
    assert type(model) is CLASSES[name]


def test_options():
    load = transformers.AutoModelForCausalLM.from_pretrained
    assert load(CHECKPOINTS / "dream", torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    assert load(CHECKPOINTS / "dream").dtype == torch.float32
    assert load(CHECKPOINTS / "dream", attn_implementation="eager").config._attn_implementation == "eager"
    assert load(CHECKPOINTS / "rnd1", device_map="cpu").device == torch.device("cpu")
    assert load(CHECKPOINTS / "dream", attention_dropout=0.25).config.attention_dropout == 0.25
    with pytest.raises(TypeError, match=r"takes the options .* got \['output_loading_info'\]"):
        load(CHECKPOINTS / "dream", output_loading_info=True)
    with pytest.raises(TypeError, match="config must be one that AutoConfig read at"):
        OfficialModel.from_pretrained(CHECKPOINTS / "dream", config=transformers.LlamaConfig())


def test_trusted_code_is_not_needed(tmp_path):
    model = transformers.AutoModel.from_pretrained(CHECKPOINTS / "llada", trust_remote_code=True, dtype="auto")
    with torch.no_grad():
        found = model(input_ids=reference_of("llada")["ids"]).logits
    assert (found - reference_of("llada")["full"]).abs().max() < 2e-5


@pytest.mark.parametrize("name", ["rnd1", "lladamoe", "llada2", "a2d-qwen3"])
def test_scaled_positions(name, tmp_path):
    """The auto classes load what get_model loads, and keep the official configuration as it is in config.json."""
    written = config_of(name) | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    (tmp_path / "config.json").write_text(json.dumps(written))
    shutil.copy(CHECKPOINTS / name / "model.safetensors", tmp_path)
    plain = get_model(model_name_or_path=str(CHECKPOINTS / name), dtype="float32")
    ours = get_model(model_name_or_path=str(tmp_path), dtype="float32")
    loaded = transformers.AutoModel.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        without, with_scaling, found = (model(reference_of(name)["ids"]).logits for model in (plain, ours, loaded))
    assert torch.equal(found, with_scaling) and not torch.allclose(found, without)
    official = dict(loaded.config.masked_diffusion["official"])
    official.pop("dtype", None)  # the option of this call, which transformers 5 puts into the configuration
    assert official == {key: value for key, value in written.items() if key != "dtype"}
