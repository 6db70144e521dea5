"""Fine-tuning as Dream does it: a whole run, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch

from dllm.core.trainers import DreamTrainer
from dllm.demo.shipped import SHIPPED
from dllm.recipes import DREAM_SFT, DreamSFTData, run
from dllm.training_command.settings import read_settings

pytest.importorskip("datasets")
pytestmark = pytest.mark.usefixtures("one_thread")


def words(folder, *more: str) -> list[str]:
    talks = [[f"{n} * 7 = ?", "so " * n + str(7 * n)] for n in range(1, 9)]
    rows = [[{"role": r, "content": c} for r, c in zip(("user", "assistant"), talk, strict=True)] for talk in talks]
    (folder / "talks.jsonl").write_text("\n".join(json.dumps({"messages": row}) for row in rows))
    given = dict(model_name_or_path=SHIPPED, dataset_args=folder / "talks.jsonl", output_dir=folder / "out")
    given |= dict(dtype="float32", bf16=False, num_proc=1, max_steps=2, logging_steps=1, report_to="none", use_cpu=True)
    named = [str(part) for name, value in given.items() for part in (f"--{name}", value)]
    return ["--task", "dream-sft", *named, "--save_strategy", "no", "--per_device_train_batch_size", "4", *more]


def test_a_run(tmp_path):
    """As `dllm train --task dream-sft`. Rows end with their cut answers, and their padding is attended to."""
    recipe, model, data, training, _ = read_settings(words(tmp_path))
    assert recipe is DREAM_SFT and training.loss_weight_type == "cart[geo_p:0.3]"
    trainer = run(recipe, model, data, training)
    assert type(trainer) is DreamTrainer and trainer.state.global_step == 2
    batch = next(iter(trainer.get_train_dataloader()))
    assert set(batch) == {"input_ids", "corruption"}  # no padding that is hidden
    assert torch.equal(batch["corruption"]["maskable"] > 0, torch.ones(4, dtype=torch.bool))


def test_arguments_are_checked_before_anything_is_loaded(tmp_path):
    for option in (dict(answers="all"), dict(mask_prompt_loss=False)):
        with pytest.raises(ValueError, match="must be True and answers last"):
            DreamSFTData(dataset_args="talks.jsonl", **option)
    with pytest.raises(ValueError, match=r"must be like cart\[geo_p:0.3\]"):
        read_settings(words(tmp_path, "--loss_weight_type", "cart"))
    with pytest.raises(ValueError, match=r"resp_cutoff_ratio must lie in \[0, 1\], got 1.5"):
        read_settings(words(tmp_path, "--perbatch_cutoff", "False", "--resp_cutoff_ratio", "1.5"))
