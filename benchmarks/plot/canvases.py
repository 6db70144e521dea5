"""Plot of the memory of a step of uniform diffusion against the batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks import machine
from benchmarks.plot.style import BLUE, GREEN, ORANGE, open_frame, save

COLOURS = {"transformers": ORANGE, "patched": GREEN, "sampler": BLUE}


def memory_points(rows: Sequence[dict]) -> list[dict[str, object]]:
    """Megabytes at the peak of each program, for each vocabulary, dtype and batch of rows of kind "diffusion_gemma"."""
    return [
        {
            "machine": machine.short_name(row["machine"]),
            "model": f"{result['vocab']} tokens, {result['dtype']}",
            "batch": result["batch"],
            "program": name,
            "MB": round(result["peak_bytes"][name] / 1e6, 2),
        }
        for row in rows
        if row["kind"] == "diffusion_gemma"
        for result in row["results"]
        for name in COLOURS
        if result["peak_bytes"].get(name)
    ]


def draw_memory(points: Sequence[dict[str, object]]) -> Figure:
    """Peak memory of each program against the number of rows, a panel for each vocabulary and dtype."""
    models = list(dict.fromkeys(point["model"] for point in points))
    figure = Figure(figsize=(4.2 * len(models), 3.4), layout="constrained")
    panels = figure.subplots(1, len(models), squeeze=False, sharey=True)[0]
    for panel, model in zip(panels, models, strict=True):
        of_model = [point for point in points if point["model"] == model]
        for name, colour in COLOURS.items():
            line = sorted((point["batch"], point["MB"]) for point in of_model if point["program"] == name)
            if line:
                panel.plot(*zip(*line, strict=True), "o-", color=colour, label=name)
        panel.set(xlabel="rows", yscale="log", title=model)
        panel.set_xticks(sorted({point["batch"] for point in of_model}))
        open_frame(panel)
    panels[0].set_ylabel("peak memory growth, MB")
    panels[0].legend(frameon=False)
    return figure


def plot_canvas_memory(row: dict, path: Path) -> Path:
    """Write the plot of one row to a PNG or SVG, whose folder is made."""
    return save(draw_memory(memory_points([row])), path)
