"""Plot of the body on a CPU: time against canvas length and against batch, with the floor of its products."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import machine
from benchmarks.plot.style import BLUE, GREEN, GREY, ORANGE, PURPLE, open_frame, save

COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
MARKERS = ("o", "s", "^", "D", "v", "P")
FLOOR = "its linear layers alone"
FEWEST = 3  # shapes that make a line


def growth_points(rows: Sequence[dict]) -> list[dict[str, object]]:
    """Milliseconds of floor and bodies in every shape, for each row of kind "cpu_bodies" with several shapes."""
    points = []
    for row in rows:
        if row["kind"] == "cpu_bodies" and len(row["results"]) >= FEWEST:
            model = f"{Path(row['settings']['model']).name} {row['settings']['dtype']}"
            shared = {"machine": machine.short_name(row["machine"]), "model": model}
            for result in row["results"]:
                times = {FLOOR: result["floor"]["seconds"]}
                times |= {name: body["seconds"] for name, body in result["bodies"].items() if "seconds" in body}
                where = shared | {"batch": result["batch"], "length": result["length"]}
                points += [
                    where | {"program": name, "ms": round(1000 * seconds["median"], 2)}
                    for name, seconds in times.items()
                ]
    return points


def draw_growth(points: Sequence[dict[str, object]]) -> Figure:
    """Two panels with a line for each model and program: against length in the smallest batch, and against batch."""
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    by_length, by_batch = figure.subplots(1, 2, sharey=True)
    batch = min(point["batch"] for point in points)
    length = Counter(point["length"] for point in points).most_common(1)[0][0]
    _lines(by_length, [point for point in points if point["batch"] == batch], "length")
    _lines(by_batch, [point for point in points if point["length"] == length], "batch")
    by_length.set(xlabel=f"tokens of the canvas, batch {batch}", ylabel="milliseconds of the body")
    by_batch.set(xlabel=f"batch, canvas of {length} tokens")
    figure.legend(*by_length.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    machines = ", ".join(dict.fromkeys(point["machine"] for point in points))
    figure.suptitle(f"Time of the body and of its linear layers alone ({machines})", fontsize=11)
    return figure


def _lines(panel: Axes, points: Sequence[dict[str, object]], key: str) -> None:
    models = list(dict.fromkeys(point["model"] for point in points))
    programs = [name for name in dict.fromkeys(point["program"] for point in points) if name != FLOOR]
    for model in models:
        colour = COLOURS[models.index(model) % len(COLOURS)]
        for program in [*programs, FLOOR]:
            line = sorted((p[key], p["ms"]) for p in points if (p["model"], p["program"]) == (model, program))
            if line:
                marker = None if program == FLOOR else MARKERS[programs.index(program) % len(MARKERS)]
                style = dict(marker=marker, markersize=5, linestyle="-" if marker else "--")
                panel.plot(*zip(*line, strict=True), color=colour, label=f"{model}: {program}", **style)
    ticks = sorted({point[key] for point in points})
    panel.set(xscale="log", yscale="log")
    panel.xaxis.set_major_locator(ticker.FixedLocator(ticks))
    panel.xaxis.set_minor_locator(ticker.NullLocator())
    panel.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.0f}"))
    panel.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    panel.grid(color=GREY, alpha=0.25)
    open_frame(panel)


def body_growth(rows: Sequence[dict], path: Path) -> Path:
    """Draw rows of kind "cpu_bodies" with several shapes; the folder of `path` is made.

    Raises:
        ValueError: no row has at least three shapes.
    """
    if not (points := growth_points(rows)):
        raise ValueError(f"a plot of growth needs a row with at least {FEWEST} shapes")
    return save(draw_growth(points), path)
