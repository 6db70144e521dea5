"""The training curve of a run, drawn from the run's own logs."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

_log = logging.getLogger("dllm")


# What a curve shows: a panel for each group of entries.
LOSSES = (("loss", "eval_loss"),)


def draw_curve(
    log_history: Sequence[Mapping[str, float]], path: str | Path, panels: Sequence[Sequence[str]] = LOSSES
) -> Path | None:
    """Plot logged values, training and evaluation, and below them the learning rate, over steps, as a PNG.

    Args:
        log_history: `trainer.state.log_history`, or the same from a checkpoint's trainer_state.json.
        path: the file to write; its folder is made.
        panels: names of the entries that share a panel; those that the logs do not have are left out.

    Returns:
        The path; None if the logs hold none of the entries or matplotlib is not installed (which is logged).

    Example:
        >>> draw_curve([], "curve.png") is None
        True
    """
    points = {name: _points(log_history, name) for name in ("learning_rate", *itertools.chain(*panels))}
    shown = [names for names in panels if any(points[name] for name in names)]
    if not shown:
        return None
    try:
        from matplotlib.figure import Figure
    except ImportError:
        _log.warning("no training curve: matplotlib is not installed")
        return None
    figure = Figure(figsize=(8, 3 + 3 * len(shown)), layout="constrained")
    *tall, low = figure.subplots(len(shown) + 1, 1, sharex=True, height_ratios=[3] * len(shown) + [1])
    for panel, names in zip(tall, shown, strict=True):
        for name in filter(points.get, names):
            evaluation = name.startswith("eval_")
            label, style = ("evaluation", "o--") if evaluation else ("training", "-")
            panel.plot(*zip(*points[name], strict=True), style, label=label, linewidth=1.2, markersize=4)
        panel.set_ylabel(names[0])
        panel.legend(frameon=False)
    if points["learning_rate"]:
        low.plot(*zip(*points["learning_rate"], strict=True), color="#7a9a4a", linewidth=1.2)
    low.set_ylabel("learning rate")
    low.set_xlabel("optimizer step")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _points(log_history: Sequence[Mapping[str, float]], name: str) -> list[tuple[float, float]]:
    return [(entry["step"], entry[name]) for entry in log_history if name in entry]
