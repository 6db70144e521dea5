"""Weights in 4 bit (bitsandbytes, optional) of every family: quantised as transformers quantises, and of use."""

from __future__ import annotations

import pytest
import torch

from dllm.configs import ModelArguments
from dllm.models import get_config, get_model, new_model
from tests.families.toys import CHECKPOINTS, NAMES

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.usefixtures("one_thread")

# Blocks of 64 weights share a scale, and kernels of a CPU want whole blocks: all widths are multiples of 64.
WIDE = dict(hidden_size=256, num_attention_heads=4, num_key_value_heads=2, head_dim=64, intermediate_size=256)
EXPERTS = dict(moe_intermediate_size=128)


def load(folder, **options) -> torch.nn.Module:
    return get_model(model_name_or_path=str(folder), **{"dtype": "float32"} | options).eval()


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_those_of_a_model_in_the_format_of_transformers(name, tmp_path):
    load(CHECKPOINTS / name).save_pretrained(tmp_path)
    mapped, saved = (load(folder, load_in_4bit=True).state_dict() for folder in (CHECKPOINTS / name, tmp_path))
    assert any(weight.dtype == torch.uint8 for weight in mapped.values())
    assert mapped.keys() == saved.keys()
    assert all(torch.equal(weight, saved[key]) for key, weight in mapped.items() if weight is not None)


@pytest.mark.parametrize("name", NAMES)
def test_logits_resemble_those_in_float32(name, tmp_path):
    config = get_config(model_name_or_path=str(CHECKPOINTS / name))
    for field, value in (WIDE | EXPERTS).items():
        if field in WIDE or hasattr(config, field):
            setattr(config, field, value)
    torch.manual_seed(0)
    new_model(config, ModelArguments(model_name_or_path=name, dtype="float32")).save_pretrained(tmp_path)
    whole, small = load(tmp_path), load(tmp_path, load_in_4bit=True)
    quantised = [weight for weight in small.parameters() if weight.dtype == torch.uint8]
    assert quantised and sum(map(torch.numel, small.parameters())) < sum(map(torch.numel, whole.parameters()))
    ids = torch.randint(0, 200, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = [model(input_ids=ids).logits.flatten().float() for model in (whole, small)]
    correlation = float(torch.corrcoef(torch.stack(logits))[0, 1])
    assert 0.9 < correlation < 1
