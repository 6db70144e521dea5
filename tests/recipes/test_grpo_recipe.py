"""The recipe of diffu-GRPO: published problems by name, prompts with named rewards, and what is refused."""

from __future__ import annotations

import json
import sys

import pytest

from dllm.cli import main
from dllm.core.problems import rewards_of
from dllm.core.rl import DiffuGRPOConfig
from dllm.demo.shipped import SHIPPED
from dllm.recipes import GRPO, PromptData, prepared
from dllm.training_command.settings import read_settings
from tests.core.rl.plain_rewards import spread

pytest.importorskip("accelerate")
pytest.importorskip("datasets")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def copy(tmp_path):
    """A folder with problems in GSM8K's format: six to train on, four to test."""
    for split, count in (("train", 6), ("test", 4)):
        rows = [{"question": f"What is {n} * 7?", "answer": f"{n} * 7 = {7 * n}\n#### {7 * n}"} for n in range(count)]
        (tmp_path / "copy").mkdir(exist_ok=True)
        (tmp_path / "copy" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "copy"


def words_of(**given: object) -> list[str]:
    given = dict(task="grpo", model_name_or_path=SHIPPED, output_dir="out", report_to="none", use_cpu=True) | given
    return [str(part) for name, value in given.items() for part in (f"--{name}", value)]


def test_published_problems_come_with_their_rewards(copy):
    words = words_of(dataset_args="gsm8k[train:4]", dataset_path=copy, max_completion_length=8, block_size=8, steps=4)
    recipe, *arguments, _ = read_settings(words)
    trainer = prepared(recipe, *arguments)
    assert recipe is GRPO
    assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (4, 4)
    assert trainer.train_dataset[3].columns["answer"] == "21"
    assert trainer.rewards.names == ["xmlcount", "soft_format", "strict_format", "int", "correctness"]


def test_rewards_of_ones_own_replace_those_of_the_problems():
    names = ["tests.core.rl.plain_rewards.spread", "int"]
    assert GRPO.rewards(PromptData(dataset_args="gsm8k", reward_funcs=names))[0] is spread
    assert GRPO.rewards(PromptData(dataset_args="countdown")) == rewards_of("countdown")


def test_a_reward_is_imported_from_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "own_rewards.py").write_text(
        "def brief(completions, **columns):\n    return [0.0] * len(completions)\n"
    )
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])  # as in a console script
    data_args = PromptData(dataset_args="prompts.jsonl", reward_funcs="own_rewards.brief")
    assert GRPO.rewards(data_args)[0](["a", "b"]) == [0.0, 0.0]


def test_an_existing_folder_is_no_published_data_set(tmp_path):
    (tmp_path / "gsm8k").mkdir()
    assert PromptData(dataset_args="gsm8k", reward_funcs=["int"]).problems is None


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(dataset_args="prompts.jsonl"), "reward_funcs must name the rewards of prompts.jsonl, got none"),
        (dict(dataset_args="gsm8k", reward_funcs="corectness"), "did you mean 'correctness'"),
        (dict(dataset_args="gsm8k", reward_funcs="no_such.reward"), "must be rewards or functions to import"),
        (dict(dataset_args="gsm8k", reward_funcs="json.reward"), "must be rewards or functions to import"),
        (dict(dataset_args="gsm8k", reward_funcs="json.__doc__"), "registry of rewards"),
        (dict(dataset_args="gsm8k+math"), "cannot be joined"),
        (dict(dataset_args="prompts.jsonl", reward_funcs="int", dataset_path="x"), "dataset_path is for a copy of"),
        (dict(dataset_args="gsm8k", num_generations=3), "must be a multiple of num_generations 3"),
        (dict(dataset_args="gsm8k", max_length=3), "knows no 'max_length'"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_loaded(given, message, monkeypatch, capsys):
    monkeypatch.setattr("dllm.models.load.auto_class", lambda config: pytest.fail("a model is loaded"))
    assert main(["train", *words_of(**given)]) == 2
    assert message in capsys.readouterr().err


def test_a_dry_run_counts_completions_and_refuses_too_few_prompts(copy, capsys):
    given = dict(dataset_args="gsm8k[train:5]", dataset_path=copy, per_device_train_batch_size=8, num_generations=4)
    words = words_of(**given, max_completion_length=8, num_iterations=3, num_train_epochs=2, beta=0.1, cfg_scale=0.5)
    assert main(["train", *words, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "5 prompts for training" in told and "steps       12 of 8 completions" in told
    assert next(line for line in told.splitlines() if line.startswith("zero3")).split()[1:] == ["refused"] * 3
    assert main(["train", *words, "--gradient_accumulation_steps", "3", "--dry-run"]) == 1
    assert "an optimizer step takes 6 prompts, got 5 in all" in capsys.readouterr().err


def test_rows_of_a_pass_and_of_a_forward():
    config = DiffuGRPOConfig(output_dir="out", report_to="none", num_generations=4, num_iterations=2, cfg_scale=1.0)
    assert (config.rows_of_epoch(7, 1), config.rows_of_epoch(7, 2)) == (3 * 2 * 8, 4 * 4 * 2)
    assert config.rows_per_forward == 16


def test_an_error_of_a_reward_is_no_bug_of_the_program(tmp_path, capsys):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "What is 6 * 7?"}\n' * 4)
    given = dict(dataset_args="prompts.jsonl", reward_funcs="tests.core.rl.plain_rewards.spread", num_generations=2)
    given |= dict(per_device_train_batch_size=2, max_completion_length=4, block_size=4, steps=1, max_prompt_length=16)
    assert main(["train", *words_of(**given, dtype="float32", bf16=False)]) == 1
    told = capsys.readouterr().err
    assert "the reward spread raised an error" in told and "has no attribute 'split'" in told
