"""docs/evaluation.md: its tables are those of the data, and its commands are understood."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml

from benchmarks import evaluation_tables
from dllm.core.eval.arguments import pairs, read
from dllm.core.eval.config import read_settings
from dllm.core.eval.models import model_named
from dllm.core.eval.settings import task_settings
from dllm.core.eval.settings.command import arguments_of
from dllm.core.eval.settings.tables import tables

SCORES = yaml.safe_load(evaluation_tables.SCORES.read_text())


def test_the_tables_are_up_to_date(tmp_path, capsys):
    assert evaluation_tables.main(["--check"]) == 0
    stale = tmp_path / "page.md"
    stale.write_text(evaluation_tables.PAGE.read_text().replace("| 65.9 |", "| 99.9 |"))
    assert evaluation_tables.main(["--check", "--page", str(stale)]) == 1
    assert "out of date" in capsys.readouterr().err
    assert evaluation_tables.main(["--page", str(stale)]) == 0
    assert stale.read_text() == evaluation_tables.PAGE.read_text()


@pytest.mark.parametrize("change", ["settings -->", "evaluation:end -->"])
def test_a_page_without_its_markers_is_refused(change):
    with pytest.raises(ValueError, match="one pair of markers for each of settings, tasks, scores"):
        evaluation_tables.with_tables(evaluation_tables.PAGE.read_text().replace(change, "lost -->", 1))


def test_every_command_of_a_score_is_understood(monkeypatch):
    monkeypatch.delenv("BASE_MODELS_DIR", raising=False)
    commands = re.findall(r"\| `((?:bash|dllm) [^`]+)` \|$", evaluation_tables.PAGE.read_text(), re.MULTILINE)
    assert len(commands) == sum(len(part["scores"]) for part in SCORES)
    for words in map(shlex.split, commands):
        if words[0] == "bash":
            family, task, model, *instruct = words[2:]
            line = arguments_of(family, task, model, instruct=bool(instruct))
            read_settings(model_named(family), pairs("model_args", [line[line.index("--model_args") + 1]]))
        else:
            options, settings = read(words[2:])
            (task,) = options.tasks
            known = dict(task_settings(options.model, task, instruct=options.instruct).model_args)
            made = read_settings(model_named(options.model), known | settings)
            assert set(settings) <= {*made.given, "pretrained"}


@pytest.mark.parametrize("table", tables().values(), ids=lambda table: table.family)
def test_the_model_takes_the_settings_of_every_line(table):
    for lines in table.sections.values():
        for task in lines:
            instruct = lines is table.sections.get("instruct")
            args = task_settings(table.family, task, instruct=instruct).model_args
            made = read_settings(model_named(table.model), {"pretrained": "some/model", **args})
            assert set(args) <= made.given
