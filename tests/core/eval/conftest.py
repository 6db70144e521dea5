"""Local tasks, and small models with their tokenizers. Without lm-eval there is less to run."""

from __future__ import annotations

import importlib.util

import pytest

from dllm.demo.shipped import SHIPPED, load_shipped
from tests.core.eval import local_tasks

if any(importlib.util.find_spec(package) is None for package in ("lm_eval", "datasets")):
    collect_ignore = [
        "test_eval_command.py",
        "test_eval_suite.py",
        "test_evaluation_page.py",
        "test_fork_tasks.py",
        "test_hard_input.py",
        "test_harness.py",
        "test_journal.py",
        "test_model_settings.py",
        "test_published_lines.py",
        "test_ranks.py",
        "test_scores.py",
        "test_to_the_end.py",
    ]
else:
    import lm_eval.tasks  # noqa: F401 (imported before a test is timed)

FAILING = {
    # more than the position table of the model, or than max_length
    "too_long": {"like": "sums_generated", "doc_to_text": "{{question}} " + "again and again " * 300},
    "no_stop": {"like": "sums_generated", "generation_kwargs": {"until": [""], "max_gen_toks": 4}},
    "masked": {"like": "sums_chosen", "doc_to_text": "[MASK] {{question}}"},
    "no_target": {"like": "sums_last_word", "doc_to_target": ""},
    "not_here": {"like": "sums_generated", "dataset_path": "nobody/has-this", "dataset_kwargs": {}},
}


@pytest.fixture(scope="session")
def tasks(tmp_path_factory):
    """The folder of the local tasks."""
    return local_tasks.write(tmp_path_factory.mktemp("tasks"), **FAILING)


@pytest.fixture(scope="session")
def toys(tmp_path_factory):
    """Folders of small official checkpoints by name."""
    folder = tmp_path_factory.mktemp("toys")
    return {name: local_tasks.checkpoint(folder, name) for name in ("llada", "dream", "a2d-qwen3", "llada2")}


@pytest.fixture(scope="session")
def shipped():
    """The shipped model and its tokenizer."""
    return load_shipped()


@pytest.fixture
def bert(shipped):
    """Makes a model of the harness from the shipped one, with settings."""
    from dllm.core.eval.model_classes import BertLM

    return lambda **settings: BertLM(*shipped, **dict(pretrained=str(SHIPPED), device="cpu") | settings)
