"""Tasks of lm-evaluation-harness on local data, one of each output type, and models to run them on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.families import folders

NUMBERS = [(2, 3), (3, 4), (7, 6), (12, 4), (5, 5)]
DOCUMENTS = [
    {
        "question": f"What is {a} * {b}?",
        "value": str(a * b),
        "choices": [f"{a} * {b} = {n}" for n in (a * b, a * b + 1, a + b)],
        "text": f"{a} * {b} = {a * b}.",
    }
    for a, b in NUMBERS
]
LAST_NUMBER = {
    "name": "last",
    "filter": [{"function": "regex", "regex_pattern": "(-?[0-9]+)", "group_select": -1}, {"function": "take_first"}],
}
MEAN = {"aggregation": "mean", "higher_is_better": True}
TASKS: dict[str, dict[str, Any]] = {
    "sums_generated": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{value}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 16, "do_sample": False},
        "filter_list": [LAST_NUMBER],
        "metric_list": [{"metric": "exact_match"} | MEAN],
    },
    "sums_chosen": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": 0,
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": "acc"} | MEAN],
    },
    "sums_last_word": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{question}}",
        "doc_to_target": " {{value}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            {"metric": "acc"} | MEAN,
        ],
    },
    "sums_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [
            {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
        ],
    },
}


def write(folder: Path, **more: dict[str, Any]) -> str:
    """Write the data and the tasks, and others that differ from one of them: {name: {"like": name, ...}}."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "documents.jsonl").write_text("\n".join(json.dumps(document) for document in DOCUMENTS))
    data = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "documents.jsonl")}},
        "test_split": "test",
        "metadata": {"version": 1.0},
    }
    for name, fields in (TASKS | more).items():
        like = TASKS.get(fields.get("like", ""), {})
        own = {key: value for key, value in fields.items() if key != "like"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(data | like | own | {"task": name}))
    return str(folder)


def manager(folder: str) -> Any:
    """The tasks of the folder alone."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder, include_defaults=False)


def evaluate(model: Any, folder: str, tasks: list[str], **options: Any) -> dict[str, Any]:
    """The results of lm-evaluation-harness, without a bootstrap."""
    from lm_eval import simple_evaluate

    from dllm.core.eval.plan import quiet_harness

    options = dict(bootstrap_iters=0, limit=None) | options
    with quiet_harness():
        return simple_evaluate(model=model, tasks=tasks, task_manager=manager(folder), **options)


def checkpoint(folder: Path, name: str) -> str:
    """A small official checkpoint with its tokenizer."""
    return folders.write(folder / name, name)
