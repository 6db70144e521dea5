"""One published line of each type of request, run to its results on small models."""

from __future__ import annotations

import json
import math

import pytest

from benchmarks.eval_suite import write_suite
from dllm.core.eval import command
from dllm.core.eval.settings.command import arguments_of
from dllm.demo.shipped import SHIPPED
from tests.core.eval.lines import without_the_hub
from tests.families import folders

pytestmark = pytest.mark.usefixtures("one_thread")


def results_of(words: list[str], folder) -> dict[str, float]:
    assert command.main([*words, "--output_path", str(folder)]) == 0
    (path,) = folder.rglob("results_*.json")
    return json.loads(path.read_text())["results"]


def shortened(words: list[str], **changes: int) -> list[str]:
    """The words of a line with fewer tokens, steps and masks."""
    args = words.index("--model_args") + 1
    pairs = dict(pair.split("=", 1) for pair in words[args].split(","))
    assert set(changes) <= set(pairs)
    joined = ",".join(f"{name}={value}" for name, value in (pairs | {k: str(v) for k, v in changes.items()}).items())
    return [*words[:args], joined, *words[args + 1 :]]


@pytest.mark.parametrize(
    ("family", "task", "metric", "changes"),
    [
        ("dream", "humaneval_dream", "pass_at_1,create_test", dict(max_new_tokens=8, steps=4)),  # generate_until
        ("dream", "arc_easy", "acc,none", dict(mc_num=4)),  # multiple_choice
        ("bert", "lambada_openai", "perplexity,none", dict(mc_num=4)),  # loglikelihood
    ],
)
def test_a_line_runs_to_the_end(family, task, metric, changes, monkeypatch, tmp_path, capsys):
    without_the_hub(monkeypatch)
    model = folders.write(tmp_path / "model", "dream") if family == "dream" else str(SHIPPED)
    words = shortened(arguments_of(family, task, model, limit=2), **changes)
    found = results_of(words, tmp_path / "out")[task][metric]
    assert found >= 0 and math.isfinite(found)
    assert task in capsys.readouterr().out


def test_perplexity_runs_to_the_end(tmp_path, capsys):
    """loglikelihood_rolling, of which no published line is."""
    write_suite(tmp_path / "suite", count=2)
    words = [str(SHIPPED), "--tasks", "lessons_perplexity", "--include_path", str(tmp_path / "suite"), "--mc_num", "4"]
    assert results_of(words, tmp_path / "out")["lessons_perplexity"]["bits_per_byte,none"] > 0
