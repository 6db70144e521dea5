"""Scores: their intervals, their table, their plot; and the progress bar."""

from __future__ import annotations

import io
import math
import sys
import types

import pytest

from dllm.core.eval import progress
from dllm.core.eval.jobs import GENERATION, LIKELIHOOD, ROLLING
from dllm.core.eval.plot import plot
from dllm.core.eval.progress import Progress, duration
from dllm.core.eval.scores import scores_of, table


def found(value, stderr, count=50, metric="acc"):
    return scores_of(
        {
            "results": {"task": {"alias": "task", f"{metric},none": value, f"{metric}_stderr,none": stderr}},
            "n-samples": {"task": {"original": 99, "effective": count}},
            "n-shot": {"task": 5},
        }
    )[0]


@pytest.mark.parametrize("right", [0, 1, 25, 50])
def test_wilson(right):
    """The ends are those shares p for which the observed one lies 1.96 of p's own standard deviations away."""
    share = right / 50
    score = found(share, math.sqrt(share * (1 - share) / 49))
    for end in {score.low, score.high} - {0.0, 1.0}:
        assert abs(share - end) / math.sqrt(end * (1 - end) / 50) == pytest.approx(1.959964, rel=1e-6)
    assert 0 <= score.low <= share <= score.high <= 1 and score.high - score.low > 0.07


def test_other_intervals():
    assert (found(0.5, "N/A").low, found(0.5, "N/A").high) == (None, None)
    symmetric = found(0.5, 0.01)  # not that of a share of 50
    assert symmetric.high - 0.5 == pytest.approx(0.5 - symmetric.low) == pytest.approx(0.0195996, rel=1e-5)
    assert found(20.0, 50.0, metric="perplexity").low == 1.0


def test_the_table_and_the_plot(tmp_path):
    scores = [found(0.5, 0.05), found(20.0, 4.0, metric="perplexity")]
    cost = {"task": dict(forwards=12345, tokens_per_forward=1.5, tokens_per_second=9.75, seconds=3.0)}
    lines = table(scores, cost).splitlines()
    assert lines[0].split()[:3] == ["task", "metric", "score"]
    assert lines[1].split() == "task acc 0.5000 0.4020 to 0.5980 50 5 12,345 1.50 9.8 3.0".split()
    assert lines[2].split() == "perplexity 20.0000 12.1601 to 27.8399".split()
    plot(scores, tmp_path / "scores.png", "a model")
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def clock(monkeypatch):
    """The seconds that progress sees."""
    now = types.SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now.seconds)
    return now


def test_the_time_left_counts_work(monkeypatch, clock):
    """Two requests of ten are four fifths of the work: the bar promises a quarter of the time that has passed."""
    monkeypatch.setattr(sys, "stderr", shown := io.StringIO())
    bar = Progress({GENERATION: 1000}, shown=True)
    clock.seconds = 40
    bar.add(GENERATION, 400)
    clock.seconds = 80
    bar.add(GENERATION, 400, task="sums")
    bar._bar.refresh()
    told = shown.getvalue().rpartition("\r")[2]
    assert "80%" in told and "20.0 s left, sums" in told
    bar.close()
    silent = io.StringIO()
    monkeypatch.setattr(sys, "stderr", silent)
    Progress({GENERATION: 10}, shown=False).add(GENERATION, 3)
    assert silent.getvalue() == ""


def test_each_type_of_request_has_its_own_pace(clock):
    """Texts that take a hundred times as long a position do not spoil what is promised of likelihoods."""
    bar = Progress({GENERATION: 100, LIKELIHOOD: 1000, ROLLING: 50}, shown=False)
    assert bar.time_left() == "log-likelihoods and perplexities and texts are not timed yet"
    bar.begin(GENERATION)
    clock.seconds = 50
    bar.add(GENERATION, 50)
    assert bar.time_left() == "50.0 s left; log-likelihoods and perplexities are not timed yet"
    clock.seconds = 60  # between tasks: this is no time of the likelihoods
    bar.begin(LIKELIHOOD)
    clock.seconds = 62
    bar.add(LIKELIHOOD, 200)
    assert bar.time_left() == "58.0 s left; perplexities are not timed yet"  # 50 + 800 / 100
    bar.begin(ROLLING)
    clock.seconds = 63
    bar.add(ROLLING, 50)
    bar.add(LIKELIHOOD, 800)
    clock.seconds = 73
    bar.add(GENERATION, 50)
    assert bar.time_left() == "0.0 s left"


def test_durations():
    assert [duration(s) for s in (0.04, 59.9, 60, 3599, 3600, 90061)] == [
        "0.0 s", "59.9 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "25 h 1 min",
    ]  # fmt: skip
