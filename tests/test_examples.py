"""The examples run as their headers say, on small models and few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dllm.demo.shipped import SHIPPED
from tests import programs

ROOT = Path(__file__).parents[1]
for package in ("accelerate", "chatterbot_corpus", "datasets"):
    pytest.importorskip(package)


def run(*words: str, cwd: Path) -> str:
    """What a program of this repository prints."""
    environment = {"OMP_NUM_THREADS": "1", "HF_HOME": str(cwd / "hf")}
    done = programs.run(ROOT / words[0], *words[1:], cwd=cwd, environment=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_bert_is_taught_and_asked(tmp_path):
    told = run("examples/bert/dialogues.py", "data", cwd=tmp_path)
    train, test = (rows(tmp_path / "data" / f"{split}.jsonl") for split in ("train", "test"))
    assert f"train.jsonl: {len(train)} conversations" in told and len(train) > 8 * len(test) > 0
    asked = [json.dumps([m["content"].lower() for m in row["messages"][:-1]]) for row in train + test]
    assert len(set(asked)) == len(asked)
    assert {row["messages"][-1]["role"] for row in train} == {"assistant"}

    run(
        *("examples/bert/sft.py", "--model_name_or_path", str(SHIPPED), "--dataset_args", "data[train:40,test:8]"),
        *("--output_dir", "out", "--dtype", "float32", "--bf16", "False", "--max_length", "48"),
        *("--truncation", "filter", "--max_steps", "4", "--num_proc", "1", "--eval_steps", "2", "--logging_steps", "1"),
        cwd=tmp_path,
    )
    (state,) = (tmp_path / "out").glob("checkpoint-4/trainer_state.json")
    history = json.loads(state.read_text())["log_history"]
    assert sum("loss" in entry for entry in history) == 4 and sum("eval_nll" in entry for entry in history) == 2
    assert (tmp_path / "out" / "training_curve.png").exists()

    final = str(tmp_path / "out" / "checkpoint-final")
    said = run(
        *("examples/bert/exact_match.py", "--model_name_or_path", final, "--dataset_args", "data"),
        *("--questions", "3", "--gen_length", "8"),
        cwd=tmp_path,
    )
    found = json.loads(said.splitlines()[-1])
    assert found["questions"] == 3 and found["forwards"] <= 8 and f"{found['correct']} of 3 exact" in said


def test_teaching_without_a_test_split_and_from_a_checkpoint(tmp_path):
    talk = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    (tmp_path / "talk.jsonl").write_text("\n".join([json.dumps({"messages": talk})] * 8))
    words = ("examples/bert/sft.py", "--model_name_or_path", str(SHIPPED), "--dataset_args", "talk.jsonl")
    words += ("--output_dir", "out", "--dtype", "float32", "--bf16", "False", "--num_proc", "1", "--max_steps", "2")
    words += ("--logging_steps", "1", "--save_steps", "1", "--save_only_model", "False")
    said = run(*words, cwd=tmp_path)
    assert "no split named test" in said and said.count("'loss'") == 2
    assert run(*words, "--resume_from_checkpoint", "out/checkpoint-1", cwd=tmp_path).count("'loss'") == 1


def test_a_bert_is_trained_from_nothing(tmp_path):
    (tmp_path / "book.txt").write_text(
        "\n\n".join(f"Paragraph {i} of a long book, as dull as all others." for i in range(60))
    )
    run(
        *("examples/bert/pt.py", "--model_name_or_path", str(SHIPPED), "--model_type", "modernbert"),
        *("--shape", "hidden_size=32,intermediate_size=48,num_hidden_layers=2,num_attention_heads=4"),
        *("--dataset_args", "book.txt", "--output_dir", "out", "--dtype", "float32", "--bf16", "False"),
        *(
            "--max_length",
            "16",
            "--max_steps",
            "20",
            "--num_proc",
            "1",
            "--logging_steps",
            "5",
            "--save_strategy",
            "no",
        ),
        *("--learning_rate", "1e-2", "--loss_weight_type", "uniform", "--report_to", "none"),
        cwd=tmp_path,
    )
    assert (tmp_path / "out" / "checkpoint-final" / "model.safetensors").exists()
    assert (tmp_path / "out" / "training_curve.png").exists()
