"""Fine-tuning of DiffusionGemma: a whole run on conversations, by the recipe that `dllm train` has."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from dllm.core.trainers import DiffusionGemmaTrainer
from dllm.demo.shipped import SHIPPED
from dllm.models.adapters import load_peft
from dllm.recipes import DIFFUSION_GEMMA_SFT, sft
from dllm.recipes.run import run
from dllm.training_command.settings import read_settings
from tests.diffusion_gemma_models import CANVAS, needs_diffusion_gemma, tiny_diffusion_gemma

pytest.importorskip("datasets")
pytestmark = [needs_diffusion_gemma, pytest.mark.usefixtures("one_thread")]


@pytest.mark.parametrize("lora", [False, True])
def test_a_run(lora, tmp_path, monkeypatch):
    """As `dllm train --task diffusiongemma-sft`: long answers have several canvases, and padding is not learnt. An
    adapter is in the text's layers of encoder and decoder alone, with dropout."""
    talks = [[f"{n} * 7 = ?", "so " * 3 * n + str(7 * n)] for n in range(1, 9)]
    rows = [[{"role": r, "content": c} for r, c in zip(("user", "assistant"), talk, strict=True)] for talk in talks]
    (tmp_path / "talks.jsonl").write_text("\n".join(json.dumps({"messages": row}) for row in rows))
    given = dict(model_name_or_path=SHIPPED, dataset_args=tmp_path / "talks.jsonl", output_dir=tmp_path / "out")
    given |= dict(dtype="float32", bf16=False, num_proc=1, max_steps=2, logging_steps=1, report_to="none", use_cpu=True)
    given |= dict(task="diffusiongemma-sft", save_strategy="no", per_device_train_batch_size=4, max_length=64)
    given |= dict(lora=lora)
    words = [str(part) for name, value in given.items() for part in (f"--{name}", value)]
    monkeypatch.setattr(sft, "get_model", lambda args: load_peft(tiny_diffusion_gemma(vocab_size=2048), args))
    recipe, model, data, training, _ = read_settings(words)
    assert recipe is DIFFUSION_GEMMA_SFT and training.loss_positions == "all"
    trainer = run(recipe, model, data, training)
    assert type(trainer) is DiffusionGemmaTrainer and trainer.state.global_step == 2
    batch = next(iter(trainer.get_train_dataloader()))
    assert set(batch) == {"input_ids", "decoder_input_ids", "corruption"}
    assert torch.equal(batch["corruption"]["maskable"], torch.full((4,), CANVAS))  # the fill is learnt
    logs = trainer.state.log_history[0]
    assert {"nll", "ppl", "encoder_nll", "canvas_tokens_per_second"} <= logs.keys()
    name = "adapter_model.safetensors" if lora else "model.safetensors"
    weights = load_file(tmp_path / "out" / "checkpoint-final" / name)
    if lora:
        names = [name.rpartition(".lora_")[0] for name in weights]
        assert {name.split(".layers.")[0].rpartition(".")[2] for name in names} == {"language_model", "decoder"}
        assert all(weight.any() for name, weight in weights.items() if ".lora_B." in name and ".decoder." in name)
