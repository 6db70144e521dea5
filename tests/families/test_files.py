"""Shards, damage and memory: how the files of a checkpoint are read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dllm.models import get_model
from tests.families.toys import CHECKPOINTS, NAMES, config_of, random_like, reference_of, tensors_of, write

HEAD, BLOCK = "model.transformer.ff_out.weight", "model.transformer.blocks.1.ff_out.weight"


@pytest.fixture
def sharded(tmp_path):
    return Path(write(tmp_path, config_of("llada"), tensors_of("llada"), shards=3))


@pytest.mark.parametrize("name", NAMES)
def test_shards_give_the_same_model(name, tmp_path):
    """Parts of q, k and v, and experts, may lie in other shards than their neighbours."""
    whole = get_model(model_name_or_path=str(CHECKPOINTS / name), dtype="float32").state_dict()
    tensors = tensors_of(name)
    mixed = {key: tensors[key] for key in sorted(tensors, key=lambda key: key[::-1])}
    parts = get_model(model_name_or_path=write(tmp_path, config_of(name), mixed, shards=4), dtype="float32")
    assert all(torch.equal(whole[key], tensor) for key, tensor in parts.state_dict().items())


def fails(folder, error, *parts):
    """Loading fails with an error that names these."""
    with pytest.raises(error) as caught:
        get_model(model_name_or_path=str(folder), dtype="float32")
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_shard(sharded):
    (sharded / "model-00002-of-00003.safetensors").unlink()
    fails(sharded, OSError, "model-00002-of-00003.safetensors", "model.transformer.blocks.")


def test_a_damaged_shard(sharded):
    shard = sharded / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1000])
    fails(sharded, OSError, "model-00002-of-00003.safetensors", "damaged")


def test_a_shard_without_what_the_index_lists(sharded):
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.transformer.other"] = "model-00001-of-00003.safetensors"
    index.write_text(json.dumps(content))
    fails(sharded, OSError, "lists model.transformer.other in model-00001-of-00003.safetensors")


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../b.safetensors"}}']
)
def test_a_damaged_index(sharded, content):
    (sharded / "model.safetensors.index.json").write_text(content)
    fails(sharded, OSError, "model.safetensors.index.json", "weight_map")


def test_no_weights(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_of("llada")))
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickled")
    fails(tmp_path, OSError, "model.safetensors", "got neither")


def changed(tmp_path, name, change):
    tensors = tensors_of(name)
    change(tensors)
    return write(tmp_path, config_of(name), tensors)


def test_a_missing_tensor_is_named_as_in_the_file(tmp_path):
    folder = changed(tmp_path, "llada", lambda tensors: tensors.pop(BLOCK))
    fails(folder, ValueError, f"lack {BLOCK}", "1 of 30")


def test_a_missing_head_is_missed_unless_it_is_tied(tmp_path):
    folder = changed(tmp_path, "llada", lambda tensors: tensors.pop(HEAD))
    fails(folder, ValueError, f"lack {HEAD}")


def test_an_unknown_tensor(tmp_path):
    folder = changed(tmp_path, "llada2", lambda tensors: tensors.update({"model.layers.1.new": torch.zeros(2)}))
    fails(folder, ValueError, "model.layers.1.new", "model.safetensors")


def test_a_tensor_that_is_there_twice(tmp_path):
    folder = changed(tmp_path, "llada", lambda tensors: tensors.update({"lm_head.weight": torch.zeros(256, 64)}))
    fails(folder, ValueError, HEAD, "lm_head.weight")


@pytest.mark.parametrize(
    ("name", "key", "shape"),
    [
        ("llada", HEAD, (128, 64)),
        ("llada", "model.transformer.blocks.0.ff_proj.weight", (64, 96)),
        ("llada2", "model.layers.1.attention.query_key_value.weight", (300, 64)),
        ("llada2", "model.layers.1.attention.query_key_value.weight", (256, 32)),
        ("rnd1", "model.layers.1.mlp.experts.3.up_proj.weight", (47, 64)),
    ],
)
def test_a_tensor_of_another_shape(tmp_path, name, key, shape):
    folder = changed(tmp_path, name, lambda tensors: tensors.update({key: torch.zeros(shape)}))
    columns = key.endswith("query_key_value.weight") and shape[1] != 64
    fails(folder, ValueError, key, "model.safetensors", "must have [64] columns" if columns else str(list(shape)))


def test_a_tensor_of_no_floating_dtype(tmp_path):
    folder = changed(tmp_path, "llada", lambda tensors: tensors.update({HEAD: torch.zeros(256, 64, dtype=torch.int8)}))
    fails(folder, OSError, HEAD, "must have a dtype of", "I8")


def test_a_configuration_of_another_size(tmp_path):
    folder = write(tmp_path, config_of("llada") | {"n_layers": 4}, tensors_of("llada"))
    fails(folder, ValueError, "lack model.transformer.blocks.3.", "9 of 39")


def test_a_tied_head_that_is_stored_nevertheless(tmp_path):
    tensors = tensors_of("a2d-qwen3")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    model = get_model(model_name_or_path=write(tmp_path, config_of("a2d-qwen3"), tensors), dtype="float32")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_the_head_and_the_blocks_keep_their_ff_out(tmp_path):
    """`ff_out` is the name of both; as wide as the head, a mix-up would have no wrong shape."""
    config = config_of("llada") | {"mlp_hidden_size": 64, "embedding_size": 64, "vocab_size": 64, "mask_token_id": 2}
    tensors = tensors_of("llada")
    for key in tensors:
        if "ff_" in key or "up_proj" in key or "wte" in key:
            tensors[key] = torch.randn(64) if "norm" in key else torch.randn(64, 64)
    model = get_model(model_name_or_path=write(tmp_path, config | {"pad_token_id": 1}, tensors), dtype="float32")
    assert torch.equal(model.lm_head.weight, tensors[HEAD])
    assert torch.equal(model.model.layers[1].mlp.down_proj.weight, tensors[BLOCK])


def test_the_file_may_go_once_a_model_with_experts_is_loaded(tmp_path):
    folder = Path(write(tmp_path, config_of("rnd1"), tensors_of("rnd1")))
    model = get_model(model_name_or_path=str(folder), dtype="float32").eval()
    save_file({"other": torch.zeros(1)}, folder / "model.safetensors")
    reference = reference_of("rnd1")
    with torch.no_grad():
        found = model(input_ids=reference["ids"]).logits
    assert (found - reference["full"]).abs().max() < 2e-5


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of a process as Linux shows it")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_peak_of_memory_is_the_model_and_one_shard(dtype, tmp_path):
    """Six layers of 16 experts, 75 MB in float32, in four shards. While a layer's experts are joined, transformers 5
    holds them twice."""
    width, layers, experts = 256, 6, 16
    config = config_of("rnd1") | {"hidden_size": width, "moe_intermediate_size": width, "num_experts": experts}
    shapes = {"model.embed_tokens.weight": (256, width), "lm_head.weight": (256, width), "model.norm.weight": (width,)}
    block = {
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
        "self_attn.q_proj.weight": (128, width),
        "self_attn.k_proj.weight": (32, width),
        "self_attn.v_proj.weight": (32, width),
        "self_attn.o_proj.weight": (width, 128),
        "self_attn.q_norm.weight": (16,),
        "self_attn.k_norm.weight": (16,),
        "mlp.gate.weight": (experts, width),
    }
    for expert in range(experts):
        block |= {f"mlp.experts.{expert}.{part}_proj.weight": (width, width) for part in ("gate", "up", "down")}
    shapes |= {f"model.layers.{n}.{name}": shape for n in range(layers) for name, shape in block.items()}
    folder = write(tmp_path, config | {"num_hidden_layers": layers}, random_like(shapes), shards=4)
    command = [sys.executable, str(Path(__file__).with_name("peak.py")), folder, dtype, str(CHECKPOINTS / "rnd1")]
    root = Path(__file__).parents[2]
    settings = {"PYTHONPATH": str(root), "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed memory goes back at once
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | settings, cwd=root)
    peak, model = map(int, run.stdout.split())
    shard = max(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    joined = experts * 3 * width * width * 4
    print(f"{dtype}: peak {peak / 1e6:.0f} MB, model {model / 1e6:.0f} MB, shard {shard / 1e6:.0f} MB")
    assert peak < model + shard + joined
