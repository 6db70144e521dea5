"""`dllm train` for Dream, Edit Flows and diffu-GRPO: what is told and logged, killed and resumed runs."""

from __future__ import annotations

import json
import signal

import pytest
import torch
from safetensors.torch import load_file

from dllm.cli import main
from dllm.core.trainers import MDLMTrainer
from dllm.demo.shipped import SHIPPED
from dllm.estimates.training import estimate, kept_for_backward
from dllm.models import get_model
from dllm.recipes import prepared
from dllm.training_command.settings import read_settings
from tests import programs

pytest.importorskip("accelerate")
pytest.importorskip("datasets")
pytestmark = pytest.mark.usefixtures("one_thread")

TASKS = ("dream-sft", "editflow", "editflow-pt", "grpo")
# of the logs besides transformers' own
METRICS = {
    "dream-sft": {"nll", "ppl", "masked_tokens_per_second"},
    "grpo": {"kl", "clip_ratio"},
}
OF_ANSWERS = {"reward", "reward_std", "zero_std", "rewards/letters", "completion_length", "rollout_seconds"}
EDITS = {"loss_per_token", "edited_tokens_per_second"}


def flags(folder, task: str, **more: object) -> list[str]:
    """The flags of a run of four steps with two checkpoints, in float32."""
    talks = [[f"{n} * 7 = ?", "so " * n + str(7 * n)] for n in range(1, 9)]
    rows = [[{"role": r, "content": c} for r, c in zip(("user", "assistant"), talk, strict=True)] for talk in talks]
    name = {"editflow-pt": "text", "grpo": "prompts"}.get(task, "talks")
    lines = {
        "text": [{"text": f"Text {n} is short."} for n in range(40)],
        "prompts": [{"prompt": row[:1]} for row in rows],
        "talks": [{"messages": row} for row in rows],
    }[name]
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    given = dict(
        task=task, model_name_or_path=SHIPPED, dataset_args=folder / f"{name}.jsonl", output_dir=folder / "out"
    )
    given |= dict(dtype="float32", bf16=False, max_steps=4, save_steps=2, logging_steps=1)
    given |= dict(report_to="none", per_device_train_batch_size=2, gradient_accumulation_steps=2, use_cpu=True)
    given |= dict(save_only_model=False, disable_tqdm=True, warmup_ratio=0, learning_rate=1e-3)
    if task == "grpo":
        given |= dict(reward_funcs="tests.core.rl.plain_rewards.letters", num_generations=2, num_iterations=2, beta=0.1)
        given |= dict(max_prompt_length=16, max_completion_length=8, steps=4, block_size=8)
    else:
        given |= dict(num_proc=1, max_length=24)
        given |= {} if task == "dream-sft" else dict(x0_sampler="masks[length:6]")
    return [str(part) for name, value in (given | more).items() for part in (f"--{name}", value)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


@pytest.mark.parametrize("lora", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("task", TASKS)
def test_a_dry_run_tells_of_the_run(task, lora, tmp_path, capsys):
    """Parameters, trained ones and steps; weights, gradients and activations in bytes."""
    words = flags(tmp_path, task, max_steps=-1, num_train_epochs=2, lora=lora, attn_implementation="eager")
    assert main(["train", *words, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    recipe, model_args, data_args, training_args, _ = read_settings(words)
    trainer = prepared(recipe, model_args, data_args, training_args)
    weights = list(trainer.model.parameters())
    trained = [weight for weight in weights if weight.requires_grad]
    counts = [sum(weight.numel() for weight in some) for some in (weights, trained)]
    assert f"{counts[0]:,} parameters, {counts[1]:,} trained" in told
    trainer.train()
    assert f"steps       {trainer.state.max_steps} of 4 {'completions' if task == 'grpo' else 'samples'}" in told
    config = recipe.config(model_args, trainer.processing_class)
    found = estimate(config, model_args, recipe.longest(data_args, training_args), training_args)
    assert (found.parameters, found.trained) == tuple(counts)
    assert (found.memory.weights, found.memory.gradients) == (4 * counts[0], 4 * counts[1])
    if not lora:
        model = trainer.model if task.startswith("editflow") else get_model(model_args)
        assert found.memory.activations == kept_for_backward(model.train(), 2, 24) > 0
    assert found.memory.reference == (4 * counts[0] if task == "grpo" and not lora else 0)


def test_the_longest_text_may_be_what_a_text_begins_from(tmp_path):
    words = flags(tmp_path, "editflow", x0_sampler="masks[length:40]")
    recipe, _, data_args, training_args, _ = read_settings(words)
    assert data_args.max_length == 24 and recipe.longest(data_args, training_args) == 41


@pytest.mark.curve
@pytest.mark.parametrize("task", TASKS)
def test_a_killed_run_goes_on(task, tmp_path, capsys):
    """Killed in the fourth step: weights and logs of the run that was not; and what a run logs and leaves."""
    assert main(["train", *flags(tmp_path, task)]) == 0
    cut = ["train", *flags(tmp_path, task, output_dir=tmp_path / "cut")]
    words = ["-m", "tests.training_command.killed", "3", *cut]
    killed = programs.run(*words, environment=dict(OMP_NUM_THREADS="1"))
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert not (tmp_path / "cut" / "checkpoint-final").exists()
    assert main([*cut, "--resume_from_checkpoint", "true"]) == 0
    weights, again = (load_file(tmp_path / name / "checkpoint-final" / "model.safetensors") for name in ("out", "cut"))
    assert weights.keys() == again.keys() and all(torch.equal(weights[name], again[name]) for name in weights)
    logs = [logs_of(tmp_path / name / "checkpoint-4") for name in ("out", "cut")]
    assert [entry["loss"] for entry in logs[0]] == [entry["loss"] for entry in logs[1]]
    for entry in logs[0]:
        assert METRICS.get(task, EDITS) <= entry.keys() and "tokens_per_second" in entry and "mfu" in entry
        assert task == "dream-sft" or not {"nll", "ppl"} & entry.keys()
    assert task != "grpo" or OF_ANSWERS <= logs[0][0].keys() & logs[0][2].keys()  # two steps on the same answers
    assert (tmp_path / "out" / "training_curve.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "out" / "checkpoint-final" / "tokenizer.json").exists()


def logs_of(checkpoint) -> list[dict]:
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "loss" in entry]


@pytest.mark.parametrize("task", ["sft", *TASKS])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_loaded(task, tmp_path, monkeypatch, capsys):
    file = tmp_path / "file"
    file.touch()
    words = flags(tmp_path, "dream-sft" if task == "sft" else task, output_dir=file / "out")
    words[1] = task
    monkeypatch.setattr("dllm.models.load.auto_class", lambda config: pytest.fail("a model is loaded"))
    monkeypatch.setattr(MDLMTrainer, "__init__", lambda *_, **__: pytest.fail("a trainer is made"))
    assert main(["train", *words]) == 1
    assert f"{file} is no folder" in capsys.readouterr().err
    monkeypatch.setattr("os.access", lambda *_: False)  # to root everything is writable
    words[words.index(str(file / "out"))] = str(tmp_path / "new" / "out")
    assert main(["train", *words]) == 1
    assert f"{tmp_path} is read-only" in capsys.readouterr().err and not (tmp_path / "new").exists()
