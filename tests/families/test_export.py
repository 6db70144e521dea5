"""Export is the exact inverse of loading."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dllm.models import get_model
from dllm.tools.export_checkpoint import export_checkpoint, main
from tests.families.test_logits import errors
from tests.families.test_variants import llada_shapes
from tests.families.toys import CHECKPOINTS, NAMES, config_of, random_like, tensors_of, write


def weights_of(folder):
    tensors = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def saved(source, folder, **options):
    get_model(model_name_or_path=str(source), **{"dtype": "float32"} | options).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("shard_bytes", [10**9, 300_000])
@pytest.mark.parametrize("name", NAMES)
def test_loading_saving_and_exporting_changes_no_bit(name, shard_bytes, tmp_path):
    folder = saved(CHECKPOINTS / name, tmp_path / "saved")
    export_checkpoint(folder, tmp_path / "exported", shard_bytes=shard_bytes)
    assert json.loads((tmp_path / "exported" / "config.json").read_text()) == config_of(name)
    found, truth = weights_of(tmp_path / "exported"), tensors_of(name)
    assert found.keys() == truth.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in truth.items())
    assert (len(list((tmp_path / "exported").glob("*.safetensors"))) == 1) == (shard_bytes == 10**9)
    again = get_model(model_name_or_path=str(tmp_path / "exported"), dtype="float32").eval()
    assert max(errors(again, name).values()) < 2e-5


@pytest.mark.parametrize("changes", [{"weight_tying": True, "embedding_size": 320}, {"include_qkv_bias": True}])
def test_variants(changes, tmp_path):
    config = config_of("llada") | changes
    tensors = random_like(llada_shapes(config))
    folder = saved(write(tmp_path / "official", config, tensors), tmp_path / "saved")
    export_checkpoint(folder, tmp_path / "exported")
    found = weights_of(tmp_path / "exported")
    assert found.keys() == tensors.keys() and all(torch.equal(found[key], tensors[key]) for key in tensors)


def test_bfloat16_keeps_its_bits(tmp_path):
    """And biases of routers stay in float32."""
    folder = saved(CHECKPOINTS / "llada2", tmp_path / "saved", dtype="bfloat16")
    export_checkpoint(folder, tmp_path / "exported")
    found = weights_of(tmp_path / "exported")
    for key, tensor in tensors_of("llada2").items():
        kept = tensor if key.endswith("expert_bias") else tensor.bfloat16()
        assert torch.equal(found[key], kept), key


def test_a_longer_vocabulary_and_new_tokens(tmp_path):
    model = get_model(model_name_or_path=str(CHECKPOINTS / "llada"), dtype="float32")
    model.resize_token_embeddings(260, mean_resizing=False)
    model.config.eos_token_id, model.config.mask_token_id = 7, 257
    model.save_pretrained(tmp_path / "saved")
    export_checkpoint(str(tmp_path / "saved"), tmp_path / "exported")
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    changes = {"vocab_size": 260, "embedding_size": 260, "eos_token_id": 7, "mask_token_id": 257}
    assert config == config_of("llada") | changes
    again = get_model(model_name_or_path=str(tmp_path / "exported"), dtype="float32")
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_a_change_that_the_official_format_cannot_say(tmp_path):
    model = get_model(model_name_or_path=str(CHECKPOINTS / "llada"), dtype="float32")
    model.config.hidden_act = "gelu"
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="llada cannot say that hidden_act is 'gelu' instead of 'silu'"):
        export_checkpoint(str(tmp_path / "saved"), tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_the_program(tmp_path, capsys):
    folder = Path(saved(CHECKPOINTS / "dream", tmp_path / "saved"))
    (folder / "tokenizer.json").write_text("{}")
    options = ["--model_name_or_path", str(folder), "--output_model_name_or_path", str(tmp_path / "exported")]
    assert main(options) == 0
    assert "in the official format of dream" in capsys.readouterr().out
    assert (tmp_path / "exported" / "tokenizer.json").read_text() == "{}"
    assert main(options) == 1
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "message"),
    [("official", "in its official format already"), ("shipped", "loaded from an official checkpoint")],
)
def test_models_that_cannot_be_exported(source, message, tmp_path):
    from dllm.demo.shipped import SHIPPED

    folder = {"official": str(CHECKPOINTS / "llada"), "shipped": str(SHIPPED)}[source]
    with pytest.raises(ValueError, match=message):
        export_checkpoint(folder, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
