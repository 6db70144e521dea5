"""The training curve of a run, drawn from the run's own logs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

_log = logging.getLogger("dllm")


def draw_curve(log_history: Sequence[Mapping[str, float]], path: str | Path) -> Path | None:
    """Plot training and evaluation loss, and below them the learning rate, over steps, as a PNG.

    Args:
        log_history: `trainer.state.log_history`, or the same from a checkpoint's trainer_state.json.
        path: the file to write; its folder is made.

    Returns:
        The path; None if the logs hold no loss or matplotlib is not installed (which is logged).

    Example:
        >>> draw_curve([], "curve.png") is None
        True
    """
    series = {name: _points(log_history, name) for name in ("loss", "eval_loss", "learning_rate")}
    if not series["loss"] and not series["eval_loss"]:
        return None
    try:
        from matplotlib.figure import Figure
    except ImportError:
        _log.warning("no training curve: matplotlib is not installed")
        return None
    figure = Figure(figsize=(8, 6), layout="constrained")
    losses, rate = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    for name, label, style in (("loss", "training", "-"), ("eval_loss", "evaluation", "o--")):
        if series[name]:
            losses.plot(*zip(*series[name], strict=True), style, label=label, linewidth=1.2, markersize=4)
    losses.set_ylabel("loss")
    losses.legend(frameon=False)
    if series["learning_rate"]:
        rate.plot(*zip(*series["learning_rate"], strict=True), color="#7a9a4a", linewidth=1.2)
    rate.set_ylabel("learning rate")
    rate.set_xlabel("optimizer step")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _points(log_history: Sequence[Mapping[str, float]], name: str) -> list[tuple[float, float]]:
    return [(entry["step"], entry[name]) for entry in log_history if name in entry]
