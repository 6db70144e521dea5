"""Options of get_model on official checkpoints: devices, attention, LoRA, and configurations of one's own."""

from __future__ import annotations

import pytest
import torch

from dllm.configs import ModelArguments
from dllm.fast.model import right_shift_of
from dllm.models import get_config, get_model, new_model
from tests.families.test_logits import errors
from tests.families.toys import CHECKPOINTS, NAMES, reference_of


def load(name, **options):
    return get_model(model_name_or_path=str(CHECKPOINTS / name), **{"dtype": "float32"} | options).eval()


@pytest.mark.parametrize("device_map", ["cpu", {"model": "cpu", "lm_head": "cpu"}])
@pytest.mark.parametrize("name", NAMES)
def test_a_device_map(name, device_map):
    model = load(name, device_map=device_map)
    assert model.device == torch.device("cpu") and max(errors(model, name).values()) < 2e-5
    assert load(name, device_map=device_map, dtype="float16").lm_head.weight.dtype == torch.float16


def test_a_device_map_that_does_not_exist():
    with pytest.raises(ValueError, match=r"device_map|device string"):
        load("llada", device_map="nowhere")


@pytest.mark.parametrize("name", ["llada", "dream", "a2d-qwen3"])
def test_a_new_adapter(name):
    pytest.importorskip("peft")
    model = load(name, lora=True, r=2)
    trainable = [key for key, weight in model.named_parameters() if weight.requires_grad]
    assert len(trainable) == 2 * 7 * 3 and all("lora" in key for key in trainable)
    assert max(errors(model, name).values()) < 2e-5
    reference = reference_of(name)
    model(input_ids=reference["ids"]).logits.square().mean().backward()
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)


@pytest.mark.parametrize("name", NAMES)
def test_random_weights_of_an_official_configuration(name):
    source = str(CHECKPOINTS / name)
    model = new_model(get_config(model_name_or_path=source), ModelArguments(model_name_or_path=source, dtype="float32"))
    ids = torch.tensor([[5, 6, 7], [5, 6, 8]])
    with torch.no_grad():
        first, second = model.eval()(input_ids=ids).logits[:, 0]
    assert not torch.equal(first, second)


def test_a_configuration_with_a_change():
    source = str(CHECKPOINTS / "dream")
    config = get_config(model_name_or_path=source, attention_dropout=0.25)
    assert get_model(model_name_or_path=source, config=config).config.attention_dropout == 0.25


def test_an_adapter_keeps_the_right_shift():
    pytest.importorskip("peft")
    assert right_shift_of(load("dream", lora=True, r=2)) is True
    assert right_shift_of(load("llada", lora=True, r=2)) is False
