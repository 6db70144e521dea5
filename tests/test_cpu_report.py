"""The report of a CPU: its commands are valid, what is measured is not measured again, and targets read the rows."""

from __future__ import annotations

import importlib
import shlex

import pytest

from benchmarks import cpu_report, cpu_targets, report
from benchmarks.target import verdict

SMALL = "--tokens 4 --experts 4 --chosen 2 --width 16 --inner 16 --repeats 1 --dtype float32"
TINY, WRONG = f"cpu_experts {SMALL}", "cpu_experts --chosen 0"


@pytest.mark.parametrize("command", [command for part in cpu_report.PARTS.values() for command in part])
def test_every_command_is_valid(command, tmp_path):
    program, *words = shlex.split(command)
    module = importlib.import_module(f"benchmarks.{program}")
    assert module.parse([*words, "--out", str(tmp_path)]).out == tmp_path


def test_what_is_measured_is_not_measured_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cpu_report, "PARTS", {"right": (TINY,), "wrong": (WRONG,)})
    assert cpu_report.main(["--out", str(tmp_path)]) == 1
    (row,) = tmp_path.glob("*.json")
    text = (tmp_path / cpu_report.FILE).read_text()
    assert f"- `{cpu_report.full(WRONG)}`" in text and f"1. `{cpu_report.full(TINY)}`" in text
    assert "got '0'" in (tmp_path / "log.txt").read_text() and "exit status 2" in capsys.readouterr().out
    assert cpu_report.main(["right", "--out", str(tmp_path)]) == 0
    assert f"{TINY}: measured before" in capsys.readouterr().out and list(tmp_path.glob("*.json")) == [row]
    monkeypatch.setattr("benchmarks.machine.commit", lambda: "another")
    assert not cpu_report.has_rows(tmp_path, TINY)


def test_a_report_without_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu_report, "PARTS", {"wrong": (WRONG,)})
    assert cpu_report.main(["--out", str(tmp_path)]) == 1
    assert "No row was written." in (tmp_path / cpu_report.FILE).read_text()


@pytest.mark.parametrize("words", [["lungs"], ["--parts", "head"]])
def test_invalid_options(words, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        cpu_report.main([*words, "--out", str(tmp_path)])
    assert end.value.code == 2 and words[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    "command, rule",
    [
        ("cached_decoding --layers 0", "a whole number of at least 1, got '0'"),
        ("cpu_head --rows 4 -1", "a whole number of at least 1, got '-1'"),
        ("cpu_kernels --repeats x", "a whole number of at least 1, got 'x'"),
        ("training_step --budget nan", "must be above 0, got nan"),
        ("quality --questions 0", "a whole number of at least 1, got '0'"),
    ],
)
def test_counts_that_cannot_be_meant_end_a_program(command, rule, capsys):
    program, *words = command.split()
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"benchmarks.{program}").parse(words)
    assert end.value.code == 2 and rule in capsys.readouterr().err


def test_every_target_reads_published_rows():
    rows = report.chosen_rows()
    assert all(verdict(target, rows).worst for target in cpu_targets.TARGETS)


def test_the_worst_case_counts():
    def row(card, ours, eight_bits):
        speeds = {"card": card, "ours-eager": ours / 2, "ours-compiled": ours, "ours-int8": eight_bits}
        settings = dict(model="modernbert-base", batch=1, dtype="bfloat16", temperature=0.0)
        results = {name: {"tokens_per_second": speed} for name, speed in speeds.items()}
        return {"kind": "sampler", "settings": settings, "providers": results | {"card-compile": {"error": "no"}}}

    exact, approximate = (verdict(target, [row(10, 30, 60), row(10, 19, 20)]) for target in cpu_targets.TARGETS[:2])
    assert (exact.worst.value, exact.worst.where, exact.word) == (1.9, "ours-compiled", "missed")
    assert (approximate.worst.value, approximate.word) == (2.0, "met")
    assert verdict(cpu_targets.TARGETS[2], [row(10, 30, 60)]).word == "not measured"  # of another temperature
