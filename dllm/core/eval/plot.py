"""The plot of an evaluation: scores with their 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from dllm.core.eval.scores import Score
from dllm.models.sources import need


def plot(scores: Sequence[Score], path: str | Path, title: str) -> None:
    """Draw scores between 0 and 1 into a picture; others, such as perplexities, in a panel of their own.

    Args:
        scores: at least one.
        path: of the picture; its suffix says the format.
        title: the model's name.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the picture cannot be written.
    """
    need("matplotlib", "eval")
    from matplotlib.figure import Figure

    shares = [score for score in scores if 0 <= score.value <= 1]
    others = [score for score in scores if not 0 <= score.value <= 1]
    panels = [panel for panel in (shares, others) if panel]
    rows = [len(panel) for panel in panels]
    figure = Figure(figsize=(8, 1.4 + 0.34 * sum(rows) + 0.6 * len(rows)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=rows)[:, 0]
    for ax, panel in zip(axes, panels, strict=True):
        _draw(ax, panel)
        if panel is shares:
            ax.set_xlim(0, 1)
        elif min((score.value for score in panel if math.isfinite(score.value)), default=0) > 0:
            ax.set_xscale("log")
    axes[0].set_title(title, loc="left", fontsize=11)
    axes[-1].set_xlabel("score and 95 % interval")
    figure.savefig(path, dpi=150)


def _draw(ax, panel: Sequence[Score]) -> None:
    for row, score in enumerate(panel):
        if score.low is not None and math.isfinite(score.high - score.low):
            line = dict(
                color="tab:blue", linewidth=5, alpha=0.35, solid_capstyle="butt"
            )  # ends where the interval ends
            ax.plot([score.low, score.high], [row, row], **line)
        if not math.isfinite(score.value):  # an infinite perplexity is nowhere on the axis
            ax.text(
                0.5, row, f"{score.value}", transform=ax.get_yaxis_transform(), ha="center", va="center", fontsize=7
            )
            continue
        ax.plot([score.value], [row], "o", color="tab:blue", markersize=5, clip_on=False)
        text = dict(xytext=(0, 6), textcoords="offset points", ha="center", fontsize=7)
        ax.annotate(f"{score.value:.4g}", (score.value, row), **text)
    ax.set_yticks(range(len(panel)), [_name(score) for score in panel], fontsize=8)
    ax.set_ylim(len(panel) - 0.4, -0.8)
    ax.grid(axis="x", alpha=0.3)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _name(score: Score) -> str:
    return f"{score.task}  {score.metric}" + ("" if score.filter == "none" else f" ({score.filter})")
