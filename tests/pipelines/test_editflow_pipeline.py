"""Edit Flows from a checkpoint to a chat: conversion, fine-tuning, pre-training, sampling, as the examples do it."""

from __future__ import annotations

import io
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

import dllm
from dllm.cli import main as dllm_command
from dllm.demo.shipped import SHIPPED, load_shipped
from dllm.models.editflow import class_of
from dllm.pipelines import editflow
from dllm.pipelines.a2d.convert import main as to_diffusion
from dllm.pipelines.editflow.convert import main
from tests.pipelines import official_folders
from tests.pipelines.sources import causal_checkpoint

pytest.importorskip("datasets")
pytestmark = pytest.mark.usefixtures("one_thread")
EXAMPLES = Path(__file__).parents[2] / "examples" / "editflow"
TALK = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The shipped ModernBERT as a model of Edit Flows."""
    target = tmp_path_factory.mktemp("editflow") / "model"
    assert main([str(SHIPPED), str(target), "--dtype", "float32"]) == 0
    return target


def run(file: str, *words: object, monkeypatch, lines: str = "") -> None:
    monkeypatch.setattr(sys, "argv", [file, *map(str, words)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / file), run_name="__main__")
    assert not ended.value.code


def test_a_model_is_converted(folder):
    model, tokenizer = dllm.utils.get_model(model_name_or_path=str(folder), dtype="float32"), load_shipped()[1]
    assert isinstance(model, editflow.EditFlowModernBertModel)
    ids = torch.tensor([tokenizer("48 + 24 = 72").input_ids])
    with torch.no_grad():
        assert torch.allclose(model.eval()(ids).ins_logits, load_shipped()[0](ids).logits, atol=1e-5)
    assert dllm.utils.get_tokenizer(model_name_or_path=str(folder)).eot_token == tokenizer.eot_token


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_official_checkpoints_are_converted(family, tmp_path):
    source = official_folders.write(family, tmp_path / family)
    assert main(["--model_name_or_path", str(source), "--output_dir", str(tmp_path / "made")]) == 0
    model = dllm.utils.get_model(model_name_or_path=str(tmp_path / "made"))
    assert isinstance(model, class_of(family)) and model.config.right_shift == (family == "dream")
    assert (
        dllm.utils.get_tokenizer(model_name_or_path=str(tmp_path / "made")).mask_token_id == model.config.mask_token_id
    )


def test_a_causal_model_is_made_a_diffusion_model_first(tmp_path, capsys):
    source = causal_checkpoint(tmp_path / "causal", "Qwen3")
    assert main([str(source), str(tmp_path / "made")]) == 1 and not (tmp_path / "made").exists()
    assert "is_causal" in capsys.readouterr().err
    assert to_diffusion([str(source), str(tmp_path / "a2d")]) == 0
    assert main([str(tmp_path / "a2d"), str(tmp_path / "made")]) == 0
    model = dllm.utils.get_model(model_name_or_path=str(tmp_path / "made"))
    assert isinstance(model, editflow.EditFlowQwen3Model)


def test_what_cannot_be_converted(folder, tmp_path, capsys):
    assert main([str(folder), str(tmp_path / "again")]) == 1
    assert "must have a backbone of" in capsys.readouterr().err and not (tmp_path / "again").exists()
    with pytest.raises(SystemExit):
        main([str(folder)])


TRAIN = dict(
    max_steps=2, num_proc=1, per_device_train_batch_size=2, bf16=False, dtype="float32", use_cpu=True, logging_steps=1,
    save_strategy="no", report_to="none", gradient_accumulation_steps=1, output_dir="out", dataset_args="train.jsonl",
)  # fmt: skip


@pytest.mark.parametrize(("task", "begins"), [("sft", "shipped"), ("pt", "shipped"), ("sft", "converted")])
def test_examples_train(task, begins, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    # different answers, as the draws of equal samples are equal
    talks = [{"messages": [TALK[0], {"role": "assistant", "content": f"Hi there, {n} {n} {n}"}]} for n in range(8)]
    rows = talks if task == "sft" else [{"text": "a b c d e f g h " * 8}] * 4
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = folder if begins == "converted" else SHIPPED
    options = TRAIN | dict(model_name_or_path=source, max_length=48 if task == "sft" else 16)
    options |= dict(x0_sampler="masks[length:4]", max_steps=6) | ({} if task == "sft" else dict(streaming=False))
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    run(f"{task}.py", *words, monkeypatch=monkeypatch)
    trained, before = (
        dllm.utils.get_model(model_name_or_path=str(place), dtype="float32")
        for place in (tmp_path / "out" / "checkpoint-final", folder)
    )
    assert type(trained) is editflow.EditFlowModernBertModel
    assert trained.config.kappa_scheduler["name"] == "LinearKappaScheduler"
    for head in ("sub_logits", "ins_logits", "rate_heads"):
        assert not torch.equal(getattr(trained, head).weight, getattr(before, head).weight)


def test_examples_sample_and_chat(folder, capsys, monkeypatch):
    words = ("--model_name_or_path", folder, "--mask_length", 4, "--tau", 0.1)
    run("sample.py", *words, "--prompt", "Hi", "Who are you?", monkeypatch=monkeypatch)
    assert capsys.readouterr().out.count("  -> ") == 2
    run("chat.py", *words, monkeypatch=monkeypatch, lines="Hi\n")
    run("chat.py", *words, "--chat_template", "False", monkeypatch=monkeypatch, lines="48 + [MASK] = 72\n")


def test_the_command_with_an_adapter(tmp_path, monkeypatch, capsys):
    pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, [{"messages": TALK}] * 4)))
    options = TRAIN | dict(model_name_or_path=SHIPPED, max_length=48, task="editflow", lora=True, r=2, max_steps=1)
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    assert dllm_command(["train", *words, "--dry-run"]) == 0
    assert "parameters" in capsys.readouterr().out
    assert dllm_command(["train", *words]) == 0
    assert (tmp_path / "out" / "checkpoint-final" / "adapter_model.safetensors").exists()
