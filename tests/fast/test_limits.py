"""How many positions a model has is known before its first step."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn

from dllm.core import samplers
from dllm.fast import generate
from dllm.fast.model import check_positions, position_limit
from tests.models import MASK_ID, POSITIONS, make_prompt, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = SimpleNamespace(mask_token_id=MASK_ID, eos_token_id=2, pad_token_id=1)
SIZE = dict(vocab_size=50, hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8)
SMALL = dict(vocab_size=50, n_embd=8, n_head=2, n_layer=1)


def made(name, head="ForMaskedLM", **options):
    """On the meta device: what counts is how it is built."""
    with torch.device("meta"):
        return getattr(transformers, name + head)(getattr(transformers, f"{name}Config")(**options))


FOUND = {
    "bert": (lambda: made("Bert", **SIZE, max_position_embeddings=40), (40, True)),
    "roberta, from 2 on": (lambda: made("Roberta", **SIZE, max_position_embeddings=42, pad_token_id=1), (40, True)),
    "roberta, from 1 on": (lambda: made("Roberta", **SIZE, max_position_embeddings=42, pad_token_id=0), (41, True)),
    "distilbert": (
        lambda: made(
            "DistilBert", vocab_size=50, dim=8, n_heads=2, n_layers=1, hidden_dim=8, max_position_embeddings=40
        ),
        (40, True),
    ),
    "gpt2": (lambda: made("GPT2", "LMHeadModel", **SMALL, n_positions=40), (40, True)),
    "opt, from 2 on": (
        lambda: made("OPT", "ForCausalLM", **SIZE, ffn_dim=8, word_embed_proj_dim=8, max_position_embeddings=40),
        (40, True),
    ),
    "modernbert": (lambda: made("ModernBert", **SIZE, max_position_embeddings=40, pad_token_id=0), (40, False)),
    "llama": (lambda: made("Llama", "ForCausalLM", **SIZE, max_position_embeddings=40), (40, False)),
    "deberta, by distance": (
        lambda: made(
            "DebertaV2",
            **SIZE,
            max_position_embeddings=40,
            relative_attention=True,
            position_biased_input=False,
            pos_att_type=["p2c", "c2p"],
        ),
        (40, False),
    ),
    "bloom, by ALiBi": (
        lambda: made("Bloom", "ForCausalLM", vocab_size=50, hidden_size=8, n_layer=1, n_head=2),
        (None, False),
    ),
    "no configuration": (lambda: nn.Linear(2, 2), (None, False)),
}


@pytest.mark.parametrize("name", FOUND)
def test_positions(name):
    make, expected = FOUND[name]
    assert position_limit(make()) == expected


def test_a_limit_that_only_the_configuration_knows():
    """Nothing in the model tells that its positions go on, so its number is taken for their end."""
    model = nn.Linear(2, 2)
    model.config = SimpleNamespace(max_sequence_length=40)
    assert position_limit(model) == (40, True)
    model.rope = nn.Module()
    assert position_limit(model) == (40, True)
    model.rope = type("RotaryEmbedding", (nn.Module,), {})()
    assert position_limit(model) == (40, False)


def test_a_table_inside_an_adapter():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["position_embeddings"], modules_to_save=["decoder"], r=2)
    assert position_limit(peft.get_peft_model(tiny("roberta"), config)) == (POSITIONS, True)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_rows_beyond_a_table_are_refused(family):
    model, calls = tiny(family), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    sampler = samplers.MDLMSampler(model, TOKENIZER)
    rule = f"every row must fit the model's {POSITIONS} positions, got {POSITIONS + 1} in row 1"
    with pytest.raises(ValueError, match=rule):
        sampler.sample([[7], [8, 9]], max_new_tokens=POSITIONS - 1)
    with pytest.raises(ValueError, match=rule):
        sampler.infill([[7, MASK_ID], [MASK_ID] * (POSITIONS + 1)])
    with pytest.raises(ValueError, match=f"gen_length must fit the model's {POSITIONS} positions, got {POSITIONS + 8}"):
        generate(model, make_prompt(model, 1, POSITIONS), 8, 8, 8, mask_id=MASK_ID)
    assert not calls
    assert sampler.sample([[7]], max_new_tokens=POSITIONS - 1, steps=1).shape == (1, POSITIONS)


def test_rows_beyond_what_rotary_positions_were_made_for_are_told_once(caplog):
    model = tiny("modernbert", max_position_embeddings=12)
    sampler = samplers.MDLMSampler(model, TOKENIZER)
    assert sampler.sample([[7, 8, 9, 10]], max_new_tokens=8, steps=2).shape == (1, 12) and not caplog.records
    for _ in range(2):
        assert sampler.sample([[7, 8, 9, 10]], max_new_tokens=9, steps=2).shape == (1, 13)
        generate(model, make_prompt(model, 1, 20), 2, 2, 2, mask_id=MASK_ID)
    sampler.infill([[7, MASK_ID] * 10])
    (said,) = caplog.records
    assert said.levelno == logging.WARNING
    assert said.message.startswith("rows of 13 tokens are longer than the 12 that ModernBertForMaskedLM was made for")
    with caplog.at_level(logging.WARNING):
        check_positions(tiny("modernbert", max_position_embeddings=12), 14, "rows must fit")
    assert len(caplog.records) == 2  # of another model it is told, too


def test_rows_that_no_memory_holds_are_refused():
    """Where positions go on, the rule is that of the device, which has room for all that anybody can run."""
    model, calls = tiny("modernbert"), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    sampler, rule = samplers.MDLMSampler(model, TOKENIZER), r"every row must fit the device's memory of .* GiB, got 10"
    with pytest.raises(ValueError, match=f"{rule}.* tokens in row 1, whose hidden states alone take .* GiB"):
        sampler.sample([[7], [8, 9]], max_new_tokens=10**12)
    with pytest.raises(ValueError, match=rule):
        samplers.RND1Sampler(model, TOKENIZER).sample([[7]], max_length=10**12)
    with pytest.raises(ValueError, match="gen_length must fit the device's memory"):
        generate(model, make_prompt(model, 1, 8), 2**30, 2**40, 2**10, mask_id=MASK_ID)
    assert not calls
