"""Scores with confidence intervals, read from the results of lm-evaluation-harness; and their table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# of the standard normal distribution: 95 % lie within so many standard deviations
_Z = 1.959963984540054


class Score(NamedTuple):
    """One metric of one task.

    task, metric, filter: names.
    value, stderr: stderr is None where the metric has none.
    low, high: a 95 % interval; None without a standard error.
    samples: documents; None for groups.
    shots: number of examples in the prompt, as lm-evaluation-harness gives it.
    """

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    low: float | None
    high: float | None
    samples: int | None
    shots: Any


def scores_of(results: Mapping[str, Any]) -> list[Score]:
    """All scores, task by task.

    The interval of a share of right answers is Wilson's, which also holds at 0 % and 100 %, where the standard error is
    0. The others are symmetric, but that of a perplexity does not reach below 1.

    Example:
        >>> found = {"results": {"sums": {"acc,none": 0.0, "acc_stderr,none": 0.0}}, "n-samples": {"sums":
        ...     {"effective": 8}}, "n-shot": {"sums": 0}}
        >>> score, = scores_of(found)
        >>> score.low, round(score.high, 3)
        (0.0, 0.324)
    """
    scores = []
    for task, metrics in results["results"].items():
        samples = results.get("n-samples", {}).get(task, {}).get("effective")
        for key, value in metrics.items():
            name, _, chosen = key.partition(",")
            if not chosen or name.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            stderr = metrics.get(f"{name}_stderr,{chosen}")
            stderr = float(stderr) if isinstance(stderr, (int, float)) and math.isfinite(stderr) else None
            low, high = _interval(float(value), stderr, samples)
            if low is not None and "perplexity" in name:
                low = max(low, 1.0)
            shots = results.get("n-shot", {}).get(task)
            scores.append(Score(task, name, chosen, float(value), stderr, low, high, samples, shots))
    return scores


def _interval(value: float, stderr: float | None, samples: int | None) -> tuple[float | None, float | None]:
    if stderr is None:
        return None, None
    if samples and samples > 1 and 0 <= value <= 1:
        of_share = math.sqrt(value * (1 - value) / (samples - 1))
        if math.isclose(stderr, of_share, rel_tol=1e-6, abs_tol=1e-12):
            middle = (value + _Z**2 / (2 * samples)) / (1 + _Z**2 / samples)
            half = _Z / (1 + _Z**2 / samples) * math.sqrt(value * (1 - value) / samples + _Z**2 / (4 * samples**2))
            return max(0.0, middle - half), min(1.0, middle + half)
    return value - _Z * stderr, value + _Z * stderr


def table(scores: Sequence[Score], costs: Mapping[str, Mapping[str, Any]]) -> str:
    """The scores, and what each task has cost, as text in columns.

    Args:
        scores: to be shown.
        costs: of each task, as :meth:`dllm.core.eval.usage.Usage.as_dict`.
    """
    head = ("task", "metric", "score", "95% interval", "n", "shots", "forwards", "tok/fwd", "tok/s", "seconds")
    rows, previous = [], None
    for score in scores:
        cost = costs.get(score.task) if score.task != previous else None
        rows.append((*_score_cells(score, score.task == previous), *_cost_cells(cost)))
        previous = score.task
    return "\n".join(columns((head, *rows), left=2))


def columns(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Rows of cells as lines. The first `left` columns are words and stand on the left, the others on the right.

    Example:
        >>> columns([("task", "n"), ("sums", "100")])
        ['task    n', 'sums  100']
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = zip(row, widths, strict=True)
        aligned = (cell.ljust(w) if column < left else cell.rjust(w) for column, (cell, w) in enumerate(cells))
        lines.append("  ".join(aligned).rstrip())
    return lines


def _score_cells(score: Score, again: bool) -> tuple[str, ...]:
    metric = score.metric if score.filter == "none" else f"{score.metric} ({score.filter})"
    interval = "" if score.low is None else f"{score.low:.4f} to {score.high:.4f}"
    samples = "" if score.samples is None or again else str(score.samples)
    shots = "" if score.shots is None or again else str(score.shots)
    return "" if again else score.task, metric, f"{score.value:.4f}", interval, samples, shots


def _cost_cells(cost: Mapping[str, Any] | None) -> tuple[str, ...]:
    if cost is None:
        return ("",) * 4
    rate = "" if cost["tokens_per_second"] is None else f"{cost['tokens_per_second']:.1f}"
    return f"{cost['forwards']:,}", f"{cost['tokens_per_forward']:.2f}", rate, f"{cost['seconds']:.1f}"
