"""Input that breaks evaluations: damaged journals, full disks, odd limits, tasks whose files have faults."""

from __future__ import annotations

import errno
import functools
import json
import math
import os

import pytest
from lm_eval.api.instance import Instance

from dllm import cli
from dllm.core.eval import command, gen_kwargs, plan, plot
from dllm.core.eval.journal import Entry, Journal
from dllm.core.eval.scores import Score
from dllm.demo.shipped import SHIPPED
from tests.core.eval import local_tasks

pytestmark = pytest.mark.usefixtures("one_thread")

ENTRY = Entry("42", 3, 2, 0.5)
FAULTY = {
    "unknown_field": ({"doc_to_target": "{{missing.field}}"}, "a template of the task failed: 'missing' is undefined"),
    "no_documents": ({}, "StopIteration; with DLLM_TRACEBACK=1 the traceback is shown"),
    "empty_choice": (
        {"like": "sums_chosen", "doc_to_choice": ["", " 6"]},
        "IndexError: string index out of range; with DLLM_TRACEBACK=1 the traceback is shown",
    ),
}


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Runs `dllm eval` on the shipped model; returns its exit code and stderr."""
    monkeypatch.setattr(plan, "KeptTaskManager", functools.partial(plan.KeptTaskManager, include_defaults=False))
    more = {name: {"like": "sums_generated"} | fields for name, (fields, _) in FAULTY.items()}
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    more["no_documents"] |= {"dataset_kwargs": {"data_files": {"test": str(empty)}}}
    more["own_shots"] = {"like": "sums_chosen", "num_fewshot": 0}
    tasks = local_tasks.write(tmp_path / "tasks", **more)

    def run(*words):
        settings = ["--max-new-tokens", "4", "--device", "cpu", "--mc-num", "4", "--exact-up-to", "1"]
        code = cli.main(["eval", str(SHIPPED), *settings, *map(str, words), "--include-path", tasks])
        return code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    "damage",
    [
        dict(result=7),
        dict(result=[-1.5]),
        dict(result=["-1.5", True]),
        dict(result=[-1.5, 1]),
        dict(forwards="3"),
        dict(tokens=None),
        dict(seconds=True),
        dict(stderr="0"),
        dict(key=5),
    ],
    ids=str,
)
def test_a_value_of_another_type_is_not_an_answer(tmp_path, caplog, damage):
    """Such a line would stop every run that reads it, and no repetition of the run would mend that."""
    for answer in (ENTRY, Entry([-1.5, True], 3, 2, 1, 0.25), Entry([-1, False], 3, 2, 0.5, 0)):
        file = tmp_path / "rank-0.jsonl"
        file.unlink(missing_ok=True)
        journal = Journal(tmp_path)
        journal.write("a", answer)
        assert Journal(tmp_path).entries == {"a": answer}
        file.write_text(json.dumps(json.loads(file.read_text()) | damage) + "\n")
        caplog.clear()
        assert Journal(tmp_path).entries == {}
        assert "line 1 is not whole" in caplog.text


def test_a_full_disk_loses_one_line(tmp_path, monkeypatch):
    """The error names the file, and what is written after space was made is read again."""
    journal, write = Journal(tmp_path), os.write
    journal.write("a", ENTRY)

    def half(file, data):
        if len(data) < 40:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data[:30])

    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"No space left.*rank-0\.jsonl"):
        patch.setattr(os, "write", half)
        journal.write("b", ENTRY)
    assert journal.read("b") == ENTRY
    journal.write("c", ENTRY)
    journal.write("d", ENTRY)
    assert set(Journal(tmp_path).entries) == {"a", "c", "d"}


def test_an_interval_is_drawn_as_long_as_it_is():
    """Matplotlib's own ends of lines reach beyond them by half the width."""
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    plot._draw(axes, [Score("sums", "acc", "none", 0.5, 0.1, 0.3, 0.7, 20, 0)])
    interval = axes.lines[0]
    assert list(interval.get_xdata()) == [0.3, 0.7] and interval.get_solid_capstyle() == "butt"


@pytest.mark.parametrize("values", [[math.inf], [math.inf, 3.0, 0.5], [math.nan], [math.nan, 0.0], [-3.0, math.inf]])
def test_values_that_no_axis_has_are_written(tmp_path, values):
    """The results are on disk before the plot, but a plot that fails would end a good run with exit code 1."""
    scores = [Score("sums", "perplexity", "none", value, 0.1, value - 0.2, value + 0.2, 20, 0) for value in values]
    plot.plot(scores, tmp_path / "plot.svg", "model")
    drawn = (tmp_path / "plot.svg").read_text()
    assert all(f"<!-- {value:.4g} -->" in drawn for value in values)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--limit", "0"], "limit must be a whole number of documents, or a share between 0 and 1, got 0"),
        (["--limit", "-1"], "limit must be a whole number of documents, or a share between 0 and 1, got -1"),
        (["--limit", "1.5"], "limit must be a whole number of documents, or a share between 0 and 1, got 1.5"),
        (["--limit", "nan"], "limit must be a whole number of documents, or a share between 0 and 1, got nan"),
        (["--system-instruction", "\udcff"], "a text must be UTF-8, got other bytes at character 0"),
        (["--limit", "inf"], "limit must be a whole number of documents, or a share between 0 and 1, got inf"),
        (["--num-fewshot", "-1"], "num_fewshot must be at least 0, got -1"),
        (["--model-args", '{"steps": }'], "model_args must be name=value,name=value or a JSON object"),
    ],
)
def test_what_is_refused(run, words, message):
    code, told = run("--tasks", "sums_chosen", *words)
    assert code == 2 and message in told and told.count("\n") == 1


def test_faulty_tasks_say_what_is_wrong(run):
    code, told = run("--tasks", ",".join(FAULTY))
    assert code == 1
    for task, (_, message) in FAULTY.items():
        assert f"dllm eval: {task} is left out: {message}\n" in told


def test_shots_that_have_no_effect(run, caplog):
    """lm-evaluation-harness does not let them replace a 0 of the task, and says nothing."""
    assert run("--tasks", "own_shots", "--limit", "1", "--num-fewshot", "2")[0] == 0
    assert "num_fewshot=2 has no effect on own_shots, whose files say 0" in caplog.text


def test_an_interruption_has_a_line_of_its_own(run, monkeypatch, tmp_path):
    write = Journal.write

    def interrupted(self, key, entry):
        write(self, key, entry)
        raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "write", interrupted)
    code, told = run("--tasks", "sums_chosen", "--limit", "1", "--output", tmp_path / "out")
    assert code == 130
    *_, bar, message = told.rstrip("\n").split("\n")
    assert "evaluation:" in bar and message.startswith("dllm eval: interrupted; what is answered is in")


def test_no_process_ends_before_the_results_are_written(run, monkeypatch, tmp_path):
    """torchrun ends all processes as soon as one exits with 1, as they do after a task that failed."""
    from dllm.core.eval.ranks import Ranks

    order, show = [], command._show

    def shown(*arguments):
        show(*arguments)
        order.append("written")

    monkeypatch.setattr(command, "_show", shown)
    monkeypatch.setattr(Ranks, "barrier", lambda self: order.append("all wait"))
    words = ["--tasks", "sums_chosen,unknown_field", "--limit", "1", "--output", tmp_path / "out"]
    assert run(*words)[0] == 1
    assert order == ["written", "all wait"]


def test_half_of_a_surrogate_pair(bert):
    """Tokenizers refuse it with an error about their own types."""
    lm, message = (
        bert(max_new_tokens=4),
        r"sums, document 3: a text must be Unicode, got half of a surrogate pair, '\\ud800'",
    )
    texts = {"loglikelihood": ("a \ud800", " 6"), "loglikelihood_rolling": ("a \ud800",)}
    texts["generate_until"] = ("a \ud800", {"until": ["."]})
    for kind, arguments in texts.items():
        with pytest.raises(ValueError, match=message):
            getattr(lm, kind)([Instance(kind, {}, arguments, 0, ("sums", 3, 1))], disable_tqdm=True)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"temperature": "hot"}, "temperature must be a number, got str"),
        ({"temperature": "hot", "top_p": 0.5}, "temperature must be a number, got str"),
        ({"do_sample": "no"}, "do_sample must be True or False, got 'no'"),
        ({"do_sample": 0}, "do_sample must be True or False, got 0"),
        ({"max_gen_toks": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"max_gen_toks": 2.5}, "max_new_tokens must be an integer, got float"),
        ({"max_gen_toks": "many"}, "max_new_tokens must be an integer, got str"),
    ],
    ids=str,
)
def test_generation_settings_that_are_refused(bert, kwargs, message):
    request = Instance("generate_until", {}, ("6 * 7 =", {"until": ["."]} | kwargs), 0, ("sums", 3, 1))
    with pytest.raises((TypeError, ValueError), match=f"sums, document 3: {message}"):
        bert().generate_until([request], disable_tqdm=True)


def test_sampling_without_a_temperature_is_told(bert, caplog, monkeypatch):
    """Of a task with pass@k all answers would be one and the same."""
    monkeypatch.setattr(gen_kwargs, "_warned", set())
    settings, asked = bert().settings, {"until": ["."], "do_sample": True}
    gen_kwargs.generation_settings(asked | {"temperature": 0.5}, settings)
    gen_kwargs.generation_settings(asked | {"do_sample": False}, settings)
    assert "no effect" not in caplog.text
    gen_kwargs.generation_settings(asked, settings)
    assert "do_sample=True of the task has no effect at temperature 0" in caplog.text
