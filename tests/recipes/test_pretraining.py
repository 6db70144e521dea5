"""Pre-training: models of any shape, text cut into samples, and what cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig

from dllm.demo.shipped import SHIPPED
from dllm.models import get_tokenizer
from dllm.recipes import PRETRAINING, PretrainingData, PretrainingModel
from dllm.recipes.pretraining import shaped

TOKENIZER = get_tokenizer(model_name_or_path=SHIPPED)
SMALL = "hidden_size=32,intermediate_size=48,num_hidden_layers=2,num_attention_heads=4"


def arguments(**options) -> PretrainingModel:
    return PretrainingModel(**dict(model_name_or_path=str(SHIPPED), dtype="float32") | options)


@pytest.mark.parametrize("model_type", ["modernbert", "bert", "roberta"])
def test_a_model_of_any_shape(model_type):
    chosen = arguments(model_type=model_type, shape=SMALL)
    torch.manual_seed(0)
    model = PRETRAINING.model(chosen, TOKENIZER)
    config = model.config
    assert (config.model_type, config.hidden_size, config.num_hidden_layers) == (model_type, 32, 2)
    assert config.vocab_size == len(TOKENIZER) and config.mask_token_id == TOKENIZER.mask_token_id
    assert model.dtype == torch.float32 and model.get_input_embeddings().weight.std() > 0
    assert model(torch.tensor([[5, 6, 7]])).logits.shape == (1, 3, len(TOKENIZER))


def test_the_shape_that_lies_there():
    base = shaped(arguments(from_scratch=True), TOKENIZER)
    assert base.model_type == "modernbert" and base.vocab_size >= len(TOKENIZER)
    assert shaped(arguments(shape="num_hidden_layers=2"), TOKENIZER).hidden_size == base.hidden_size
    assert shaped(arguments(shape="vocab_size=60000, norm_eps=1e-3"), TOKENIZER).norm_eps == 1e-3
    torch.manual_seed(0)
    model = PRETRAINING.model(arguments(from_scratch=True), TOKENIZER)
    there = PRETRAINING.model(arguments(), TOKENIZER)
    weights = [m.get_input_embeddings().weight for m in (model, there)]
    assert weights[0].shape == weights[1].shape and not torch.equal(*weights)


def test_another_tokenizer(tmp_path):
    BertConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=1, vocab_size=50).save_pretrained(tmp_path)
    chosen = arguments(model_name_or_path=str(tmp_path), tokenizer_name_or_path=str(SHIPPED), from_scratch=True)
    tokenizer = PRETRAINING.tokenizer(chosen)
    assert len(tokenizer) == len(TOKENIZER) == shaped(chosen, tokenizer).vocab_size


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (dict(model_type="modernbrt"), "did you mean 'modernbert'"),
        (dict(shape="hiden_size=3"), "did you mean 'hidden_size'"),
        (dict(shape="hidden_size"), "field=value"),
        (dict(shape="hidden_size=wide"), "hidden_size must be of type int, got 'wide'"),
        (dict(shape="vocab_size=10"), "vocab_size must be at least the tokenizer's"),
        (dict(from_scratch=True, load_in_4bit=True), "random ones cannot be trained in 4 bits"),
    ],
)
def test_shapes_that_cannot_be(options, rule):
    with pytest.raises(ValueError, match=rule):
        shaped(arguments(**options), TOKENIZER)


@pytest.fixture
def text(tmp_path, monkeypatch) -> Path:
    pytest.importorskip("datasets")
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps({"text": f"Sentence {i} of a text."}) + "\n" for i in range(30)))
    return file


@pytest.mark.parametrize("streaming", [False, True])
def test_samples_are_full_and_end_their_texts(text, streaming):
    data = PretrainingData(dataset_args=str(text), max_length=16, num_proc=1, streaming=streaming)
    found = list(PRETRAINING.samples(data, TOKENIZER)["train"])
    assert found and all(set(row) == {"input_ids", "labels"} and len(row["input_ids"]) == 16 for row in found)
    tokens = [token for row in found for token in row["input_ids"]]
    expected = [t for i in range(30) for t in (*_ids(f"Sentence {i} of a text."), TOKENIZER.eos_token_id)]
    assert tokens == expected[: len(expected) // 16 * 16]


def test_too_little_text(text):
    data = PretrainingData(dataset_args=str(text), max_length=100_000, num_proc=1)
    with pytest.raises(ValueError, match="must fill a sample of max_length 100000"):
        PRETRAINING.samples(data, TOKENIZER)
    with pytest.raises(ValueError, match=r"random_length_ratio must lie in \[0, 1\], got 2"):
        PretrainingData(random_length_ratio=2)


def _ids(words: str) -> list[int]:
    return TOKENIZER(words, add_special_tokens=False)["input_ids"]
