"""Colours, frames and file output of all plots."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE, GREY = "#4878a8", "#e08a3c", "#7a9a4a", "#8a68a8", "#9a9a9a"
# text stays text; a fixed salt for ids, no date and no version, so that the same figure gives the same file
SVG = {"svg.hashsalt": "dllm", "svg.fonttype": "none"}


def save(figure: Figure, path: Path, *, dpi: int = 150, description: str | None = None) -> Path:
    """Write a figure as PNG or SVG, by the suffix of `path`; its folder is made.

    Args:
        description: text that an SVG carries in its metadata (dc:description).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None, "Creator": None, "Description": description} if path.suffix == ".svg" else None
    with matplotlib.rc_context(SVG):
        figure.savefig(path, dpi=dpi, metadata=metadata)
    return path


def open_frame(axes: Axes, *sides: str) -> None:
    """Remove the frame at `sides`, by default at the top and on the right."""
    axes.spines[list(sides or ("top", "right"))].set_visible(False)
