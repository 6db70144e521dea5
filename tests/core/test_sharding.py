"""What is settled about FSDP before there is a process group; two processes: tests/recipes/test_launched.py."""

from __future__ import annotations

import logging

import pytest

from dllm.core.trainers.base.sharding import _bias_is_shared, _embeddings_hidden, layer_classes
from tests.core.runs import Loose, LooseModern, model_of, samples_of, trainer_of
from tests.models import tiny


@pytest.mark.parametrize(
    "family, layer", [("bert", "BertLayer"), ("roberta", "RobertaLayer"), ("modernbert", "ModernBertEncoderLayer")]
)
def test_layers_that_hold_no_embedding(family, layer):
    model = tiny(family)
    found = layer_classes(model)
    assert layer in found and not any(name.endswith("Embeddings") for name in found)
    assert _bias_is_shared(model) == (family != "modernbert")


def test_fsdp1_on_a_cpu_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ValueError, match="must be FSDP2"):
        trainer_of(tmp_path, model_of(Loose), samples_of(4))


def test_one_process_shards_nothing_and_says_so(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with caplog.at_level(logging.WARNING, "dllm"):
        trainer = trainer_of(tmp_path, model_of(LooseModern), samples_of(4))
    assert "nothing is sharded" in caplog.text and not trainer.is_fsdp_enabled


def test_a_model_keeps_its_ties_while_it_names_no_tables():
    model = tiny("bert")
    head = model.get_output_embeddings()
    with pytest.raises(KeyError), _embeddings_hidden(model):
        assert model.get_output_embeddings() is None and model.get_input_embeddings() is None
        model.to("meta")
        model.tie_weights()
        assert head.weight is model.bert.embeddings.word_embeddings.weight
        assert model.get_output_embeddings() is None
        raise KeyError
    assert model.get_output_embeddings() is head
    assert not {"tie_weights", "get_output_embeddings", "get_input_embeddings"} & vars(model).keys()
