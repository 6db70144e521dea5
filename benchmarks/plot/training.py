"""Plot of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import ticker
from matplotlib.figure import Figure

from benchmarks.plot.style import BLUE, ORANGE, open_frame, save


def training_curve(log: Sequence[dict], path: Path) -> Path:
    """Draw the loss, and the accuracy where it was measured, against training steps.

    Args:
        log: rows with `step` and `loss`, some with `accuracy`.
        path: the PNG to write.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    panel = figure.subplots()
    panel.plot([row["step"] for row in log], [row["loss"] for row in log], color=BLUE)
    panel.set(xlabel="step", ylabel="loss, nats per answer token", yscale="log")
    panel.yaxis.label.set_color(BLUE)
    measured = [row for row in log if "accuracy" in row]
    right = panel.twinx()
    right.plot([row["step"] for row in measured], [row["accuracy"] for row in measured], "o-", color=ORANGE)
    right.set(ylabel="exact answers", ylim=(0, 1.02))
    right.yaxis.label.set_color(ORANGE)
    right.yaxis.set_major_formatter(ticker.PercentFormatter(1))
    for side in (panel, right):
        open_frame(side, "top")
    return save(figure, path, dpi=100)
