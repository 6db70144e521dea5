"""The benchmark beside llama.cpp: GGUF files read back, the example's output, a loop from left to right."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks import llama_cpp
from tests.models import MASK_ID, tiny

gguf = pytest.importorskip("gguf", reason="GGUF files are written by the package gguf")
peer = pytest.importorskip("benchmarks.peers.llama_cpp")

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}


def decoder(family):
    transformers = pytest.importorskip("transformers")
    model = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**SIZES))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def written(model, path, precision="f32"):
    peer.write_gguf(model, MASK_ID, path, precision)
    reader = gguf.GGUFReader(path)
    tensors = {
        tensor.name: torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type)) for tensor in reader.tensors
    }
    return tensors, {name: field.contents() for name, field in reader.fields.items()}


@pytest.mark.parametrize(("precision", "bits"), [("f32", 24), ("bf16", 8), ("q8_0", 7)])
def test_a_file_holds_the_weights_and_the_shape(precision, bits, tmp_path):
    model = decoder("Qwen2")
    tensors, fields = written(model, tmp_path / "dream.gguf", precision)
    weights = model.state_dict()
    assert len(tensors) == len(weights)
    for theirs, ours in (
        ("blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj.weight"),
        ("blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj.weight"),
        ("blk.0.attn_k.bias", "model.layers.0.self_attn.k_proj.bias"),
        ("output_norm.weight", "model.norm.weight"),
        ("output.weight", "lm_head.weight"),
    ):
        unit = weights[ours].abs().max() * 2.0**-bits if weights[ours].dim() == 2 else 0
        assert (tensors[theirs] - weights[ours]).abs().max() <= unit
    assert fields["general.architecture"] == "dream" and fields["dream.block_count"] == 2
    assert fields["dream.attention.head_count_kv"] == 2 and fields["diffusion.shift_logits"] is True
    assert fields["tokenizer.ggml.mask_token_id"] == MASK_ID and fields["tokenizer.ggml.tokens"][95] == "<95>"


def test_rotary_pairs_are_neighbours_in_the_llada_architecture(tmp_path):
    model = decoder("Llama")
    tensors, _ = written(model, tmp_path / "llada.gguf")
    theirs = tensors["blk.0.attn_q.weight"].unflatten(0, (4, 8, 2))
    ours = model.state_dict()["model.layers.0.self_attn.q_proj.weight"].unflatten(0, (4, 2, 8))
    assert torch.equal(theirs[..., 0, :], ours[:, 0]) and torch.equal(theirs[..., 1, :], ours[:, 1])


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="the model must be one of llama, qwen2, got 'bert'"):
        peer.write_gguf(tiny("bert"), MASK_ID, tmp_path / "a.gguf", "f32")
    with pytest.raises(ValueError, match="precision must be one of f32, f16, bf16, q8_0, got 'q2'"):
        peer.write_gguf(decoder("Llama"), MASK_ID, tmp_path / "a.gguf", "q2")
    assert not list(tmp_path.iterdir())


def example(folder, text, status=0):
    """A program in place of the example: it says `text`."""
    path = folder / "llama-diffusion-cli"
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {status}\n")
    path.chmod(0o755)
    return path


def test_the_output_of_the_example_is_read(tmp_path):
    times = "total time: 240.00ms, time per step: 80.00ms, sampling time per step: 5.00ms"
    run = peer.complete(example(tmp_path, f"<9>\n{times}\n<7><8>"), tmp_path / "m", [4, 5], 4, 3, 0.0)
    assert run.canvas.tolist() == [4, 5, 7, 8] and run.forwards == 3 and run.peak_bytes > 0
    assert math.isclose(run.seconds, 0.24) and math.isclose(run.sampling_seconds, 0.015)
    with pytest.raises(RuntimeError, match="must complete 3 tokens, got 2"):
        peer.complete(example(tmp_path, f"{times}\n<7><8>"), tmp_path / "m", [4], 4, 3, 0.0)
    with pytest.raises(RuntimeError, match="must print its times, got 'no model"):
        peer.complete(example(tmp_path, "no model"), tmp_path / "m", [4], 4, 3, 0.0)
    with pytest.raises(RuntimeError, match="ended with status 3: no memory"):
        peer.complete(example(tmp_path, "no memory", status=3), tmp_path / "m", [4], 4, 3, 0.0)


@pytest.mark.parametrize(("shifted", "expected"), [(False, [42, 43, 24, 25]), (True, [41, 42, 23, 24])])
def test_left_to_right(shifted, expected):
    """The stand-in model proposes in each column the column + 10 times the number of masks."""

    def model(canvas):
        tokens = torch.arange(6) + 10 * (canvas == MASK_ID).sum()
        return SimpleNamespace(logits=nn.functional.one_hot(tokens, 50)[None])

    run = SimpleNamespace(gen_length=4, steps=2)
    canvas = llama_cpp.left_to_right(model, torch.tensor([[9, 9]]), run, MASK_ID, shifted)
    assert canvas[0].tolist() == [9, 9, *expected]


def test_a_missing_example_ends_the_program(tmp_path, capsys):
    for path in (tmp_path / "nothing", example(tmp_path, "")):  # the second lacks llama-debug beside it
        with pytest.raises(SystemExit):
            llama_cpp.parse(["--example", str(path)])
        assert f"got {path}" in capsys.readouterr().err
