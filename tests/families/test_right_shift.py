"""The right shift of Dream and RND1 reaches samplers and trainers from the model's configuration."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from dllm.core import samplers
from dllm.core.trainers import MDLMConfig, MDLMTrainer
from dllm.models import get_model
from tests.families.toys import CHECKPOINTS

TOKENIZER = SimpleNamespace(mask_token_id=202, eos_token_id=201, pad_token_id=201)
SHIFTED = {"dream": True, "rnd1": True, "llada": False, "a2d-qwen3": False}


def load(name):
    return get_model(model_name_or_path=str(CHECKPOINTS / name), dtype="float32").eval()


def sampled(model, kind, **options):
    return kind(model, TOKENIZER).sample([[5, 6, 7]], max_new_tokens=6, block_size=6, steps=6, seed=1, **options)


@pytest.mark.parametrize("name", SHIFTED)
def test_samplers_take_it_from_the_model(name):
    model = load(name)
    for kind in (samplers.MDLMSampler, samplers.DreamSampler):
        by_model = sampled(model, kind)
        assert torch.equal(by_model, sampled(model, kind, right_shift_logits=SHIFTED[name]))
        assert not torch.equal(by_model, sampled(model, kind, right_shift_logits=not SHIFTED[name]))


def test_without_a_marker_samplers_have_their_own_default():
    model = load("dream")
    del model.config.masked_diffusion
    for kind, default in ((samplers.MDLMSampler, False), (samplers.DreamSampler, True)):
        assert torch.equal(sampled(model, kind), sampled(model, kind, right_shift_logits=default))


@pytest.mark.parametrize("name", SHIFTED)
@pytest.mark.parametrize("given", [None, True, False])
def test_trainers_take_it_from_the_model(name, given, tmp_path):
    model = load(name)
    config = MDLMConfig(
        output_dir=str(tmp_path), report_to="none", use_cpu=True, eval_strategy="no", right_shift_logits=given
    )
    trainer = MDLMTrainer(config, model=model, tokenizer=TOKENIZER, data_collator=lambda rows: rows)
    assert trainer.right_shift_logits == (SHIFTED[name] if given is None else given)
    assert trainer._make_collator().right_shift == trainer.right_shift_logits
