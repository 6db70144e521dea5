"""Plot of single operations: time in multiples of the least possible time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.plot.style import BLUE, GREY, open_frame, save


def kernel_rows(rows: Sequence[dict], path: Path) -> Path:
    """Draw the time of every program on every case in multiples of the case's floor, a panel for each operation.

    Args:
        rows: rows of kind "kernel"; those without a floor or a measurement of dllm are left out.
        path: the PNG to write; its folder is made.
    """
    panels: dict[str, list[dict]] = {}
    for row in rows:
        if "floor_seconds" in row and "seconds" in row["providers"]["ours"]:
            panels.setdefault(row["settings"]["op"], []).append(row)
    cases = sum(map(len, panels.values()))
    heights = [len(cases) for cases in panels.values()] or [1]
    figure = Figure(figsize=(9, 1.2 + 0.28 * cases + 0.7 * len(panels)), layout="constrained")
    axes = figure.subplots(len(heights), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for panel, (op, of_op) in zip(axes, panels.items(), strict=False):
        panel.set_title(op, loc="left", fontsize=10)
        panel.axvline(1, color=GREY, linewidth=1, zorder=0)
        for row in of_op:
            for name, result in row["providers"].items():
                if "seconds" in result:
                    times = result["seconds"]["median"] / row["floor_seconds"]
                    style = {"color": BLUE, "s": 42} if name == "ours" else {"color": GREY, "s": 12}
                    panel.scatter(times, row["title"], zorder=2, **style)
        panel.invert_yaxis()
        panel.set_xscale("log")
        open_frame(panel)
    axes[-1].set_xlabel("time in multiples of the floor; large: ours, small: the others")
    return save(figure, path)
