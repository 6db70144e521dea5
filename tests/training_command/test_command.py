"""`dllm train` as it is typed: what it prints, what it leaves, how it ends."""

from __future__ import annotations

import json

import pytest
import yaml
from safetensors.torch import load_file
from transformers import AutoTokenizer

from dllm.cli import main
from dllm.demo.shipped import SHIPPED

for package in ("accelerate", "datasets"):
    pytest.importorskip(package)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def words(tmp_path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (tmp_path / "train.jsonl").write_text(
        "".join(json.dumps({"text": f"Text {i} is short."}) + "\n" for i in range(40))
    )
    shape = "hidden_size=32,intermediate_size=48,num_hidden_layers=2,num_attention_heads=4"
    settings = dict(task="pt", model_name_or_path=str(SHIPPED), model_type="modernbert", shape=shape, num_proc=1)
    settings |= dict(dataset_args="train.jsonl", output_dir="out", max_length=16, max_steps=4, save_steps=2)
    settings |= dict(dtype="float32", bf16=False, report_to="none", disable_tqdm=True, save_only_model=False)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    return ["train", "run.yaml"]


def test_a_dry_run_tells_and_does_nothing(words, tmp_path, capsys):
    assert main([*words, "--dry-run", "--per_device_train_batch_size", "8"]) == 0
    told = capsys.readouterr().out
    settings, _, rest = told.partition("\n\n")
    assert yaml.safe_load(settings)["per_device_train_batch_size"] == 8
    assert "modernbert" in rest and "4 of 8 samples" in rest and "activations" in rest and "in all" in rest
    assert not (tmp_path / "out").exists()


def test_a_run_and_its_resumption(words, tmp_path, capsys):
    assert main(words) == 0
    final = tmp_path / "out" / "checkpoint-final"
    said = capsys.readouterr().out
    assert "no split named test" in said
    assert AutoTokenizer.from_pretrained(final).mask_token == "[MASK]"
    # the settings beside the checkpoints are those of the run
    assert main([*words, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert main(["train", "out/train.yaml", "--dry-run"]) == 0
    assert capsys.readouterr().out == shown and (tmp_path / "out" / "train.yaml").read_text() in shown
    weights = load_file(final / "model.safetensors")
    # on from the second step: the same weights again
    assert main([*words, "--resume_from_checkpoint", "out/checkpoint-2", "--output_dir", "again"]) == 0
    again = load_file(tmp_path / "again" / "checkpoint-final" / "model.safetensors")
    assert weights.keys() == again.keys() and all(weights[name].equal(again[name]) for name in weights)
    damaged = tmp_path / "out" / "checkpoint-4" / "trainer_state.json"
    damaged.write_text(damaged.read_text()[:40])
    capsys.readouterr()
    assert main([*words, "--resume_from_checkpoint", "out/checkpoint-4"]) == 1
    assert "no whole checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--learning_rat", "1"], 2, "did you mean 'learning_rate'"),
        (["--seed", "x"], 2, "seed must be int, got 'x'"),
        (["--model_name_or_path", "/nowhere/model", "--task", "pt"], 1, "there is no folder /nowhere/model"),
        (["--dataset_args", "nowhere.jsonl"], 1, "nowhere.jsonl"),
        (["--streaming", "--max_steps", "-1", "--dry-run"], 1, "max_steps must be set"),
        (["--dataset_args="], 1, "dataset_args must name the data"),
        (
            ["--model_type", "bert", "--max_length", "1024"],
            1,
            "max_length must fit the model's 512 positions, got 1024",
        ),
        (["--model_type", "bert", "--max_length", "1024", "--dry-run"], 1, "the model's 512 positions, got 1024"),
    ],
)
def test_what_cannot_be_used_is_said_in_a_line(words, more, code, said, capsys):
    assert main([*words, *more]) == code
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err


def test_a_tokenizer_without_a_mask_token(words, tmp_path, capsys):
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path / "bare")
    (tmp_path / "bare" / "config.json").write_bytes((SHIPPED / "config.json").read_bytes())
    assert main([*words, "--model_name_or_path", "./bare"]) == 1
    assert "must have a mask token" in capsys.readouterr().err


def test_help_lists_the_settings_of_the_task(capsys):
    assert main(["train", "--task", "pt", "--help"]) == 0
    told = capsys.readouterr().out
    assert "--insert_eos bool" in told and "--warmup_ratio float" in told
    assert main(["train", "--help"]) == 0
    assert "--mask_prompt_loss bool" in capsys.readouterr().out


def test_words_that_other_commands_do_not_know():
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--learning_rate", "1"])
    assert stop.value.code == 2
