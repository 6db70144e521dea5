"""The two plots of docs/: speed-up over the authors' loops, and accuracy against tokens per step.

Each plot is drawn from a list of points, and its file carries these points as JSON, so that a reader finds the exact
numbers and a check finds a plot that is out of date without drawing it anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import machine
from benchmarks.plot.style import BLUE, GREEN, GREY, ORANGE, PURPLE, open_frame, save
from benchmarks.sampling_tables import card_and_ours, sampler_and_model

Points = list[dict[str, object]]
DESCRIPTION = "{http://purl.org/dc/elements/1.1/}description"
# line of each sampler; a hollow marker where two samplers choose the same tokens
STYLES = {
    "generate": dict(color=BLUE, marker="s"),
    "threshold": dict(color=ORANGE, marker="o"),
    "factor": dict(color=GREEN, marker="^"),
    "llada2": dict(color=ORANGE, marker="o", markersize=11, markerfacecolor="none", linestyle="none"),
    "entropy-bound": dict(color=PURPLE, marker="D"),
}
NAMES = {
    "generate": "generate: tokens per step, of the whole canvas",
    "threshold": "threshold",
    "llada2": "llada2 (same tokens as threshold, in one block)",
    "entropy-bound": "entropy-bound: gamma, nats",
}


def speed_points(rows: Sequence[dict]) -> Points:
    """Tokens per second of the authors' loop and of the fastest program of ours, for each row of kind "sampler"."""
    points = []
    for row in rows:
        if row["kind"] == "sampler":
            settings, (card, ours) = row["settings"], card_and_ours(row)
            what = f"{sampler_and_model(settings)}, batch {settings['batch']}, T {settings['temperature']:g}"
            speeds = [round(result["tokens_per_second"], 2) for result in (card, ours)]
            where = machine.short_name(row["machine"])
            points.append({"machine": where, "case": what, "loop": speeds[0], "dllm": speeds[1]})
    return points


def draw_speed(points: Points) -> Figure:
    """A bar for each case, as long as the speed-up, and a panel for each machine."""
    machines = list(dict.fromkeys(point["machine"] for point in points))
    on = {name: [point for point in points if point["machine"] == name] for name in machines}
    figure = Figure(figsize=(9, 1.0 + 0.55 * len(points) + 0.5 * len(machines)), layout="constrained")
    heights = [len(points) for points in on.values()]
    panels = figure.subplots(len(machines), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for panel, (name, cases) in zip(panels, on.items(), strict=True):
        panel.set_title(name, loc="left", fontsize=10)
        for point in cases:
            times = point["dllm"] / point["loop"]
            panel.barh(point["case"].replace(": ", "\n", 1), times, color=BLUE, height=0.6)
            panel.text(times, point["case"].replace(": ", "\n", 1), f" {speed_label(point)}", va="center", fontsize=9)
        panel.axvline(1, color=GREY, linewidth=1, linestyle="--")
        panel.invert_yaxis()
        panel.margins(x=0.45)  # room for the labels
        open_frame(panel)
    panels[-1].set_xlabel("speed-up over the loop that the sampler's authors publish (dashed line: equal speed)")
    return figure


def speed_label(point: dict[str, object]) -> str:
    """What stands beside a bar.

    Example:
        >>> speed_label({"loop": 10.0, "dllm": 25.0})
        '2.5x, 10.0 to 25.0 tokens/s'
    """
    return f"{point['dllm'] / point['loop']:.1f}x, {point['loop']:.1f} to {point['dllm']:.1f} tokens/s"


def accuracy_points(rows: Sequence[dict]) -> Points:
    """Exact answers of the shipped model to word problems, for each sampler and setting, greedy, one block."""
    points = []
    for row in rows:
        if row["kind"] != "quality" or row["settings"]["model"] != "shipped":
            continue
        for result in row["results"]:
            if result["task"] == "problems" and result["temperature"] == 0:
                kept = ("tokens_per_step", "threshold", "factor", "gamma", "tokens_per_forward", "accuracy")
                point = {"sampler": result.get("sampler", "generate"), "questions": result["questions"]}
                points.append(point | {name: result[name] for name in (*kept, "interval_95") if name in result})
    return points


def draw_accuracy(points: Points) -> Figure:
    """A line for each sampler, its setting beside each point, with 95 % intervals."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for sampler in dict.fromkeys(point["sampler"] for point in points):
        own = sorted((p for p in points if p["sampler"] == sampler), key=lambda point: point["tokens_per_forward"])
        _line(axes, sampler, own)
    axes.set(xlabel="tokens per step: tokens of an answer / forward passes", ylabel="exact answers")
    axes.set_xlim(left=0)
    axes.set_ylim(top=1)
    axes.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))
    counts = " or ".join(dict.fromkeys(str(point["questions"]) for point in points))
    axes.set_title(f"shipped model, {counts} word problems with numbers not seen in training", loc="left", fontsize=10)
    axes.grid(axis="y", color=GREY, alpha=0.25)
    axes.legend(frameon=False, loc="lower right", title="sampler, its setting beside each point")
    open_frame(axes)
    return figure


def _line(axes: Axes, sampler: str, points: Points) -> None:
    """The line of one sampler. The setting of a point stands above it, of `factor` below it."""
    style = STYLES.get(sampler, {})
    x, y = ([point[name] for point in points] for name in ("tokens_per_forward", "accuracy"))
    ends = [[abs(point["interval_95"][end] - point["accuracy"]) for point in points] for end in (0, 1)]
    axes.errorbar(x, y, yerr=ends, capsize=2, elinewidth=0.7, label=NAMES.get(sampler, sampler), **style)
    if sampler == "llada2":
        return  # the settings of `threshold`
    for point, *at in zip(points, x, y, strict=True):
        shift, side = ((-4, -12), "right") if sampler == "factor" else ((4, 5), "left")
        text = dict(textcoords="offset points", fontsize=8, ha=side, color=style.get("color"))
        axes.annotate(setting_label(point), at, shift, **text)


def setting_label(point: dict[str, object]) -> str:
    """The setting of a point: tokens per step, or the threshold, factor or gamma."""
    return f"{next(point[name] for name in ('tokens_per_step', 'threshold', 'factor', 'gamma') if name in point):g}"


class Plot(NamedTuple):
    """A published plot: what it shows of the rows, and how that is drawn."""

    points: Callable[[Sequence[dict]], Points]
    draw: Callable[[Points], Figure]


PLOTS = {"speed.svg": Plot(speed_points, draw_speed), "accuracy.svg": Plot(accuracy_points, draw_accuracy)}


def points_of(name: str, rows: Sequence[dict]) -> Points:
    """What the plot called `name` shows of the rows.

    Raises:
        ValueError: the rows have nothing for it.
    """
    if not (points := PLOTS[name].points(rows)):
        raise ValueError(f"no chosen row has anything for {name}")
    return points


def write(name: str, points: Points, folder: Path) -> Path:
    """Draw the plot called `name` from its points and write it into `folder`."""
    return save(PLOTS[name].draw(points), folder / name, description=json.dumps(points))


def read_points(path: Path) -> Points:
    """The points that a plot was drawn from; none where the file is missing or carries none."""
    if not path.exists():
        return []
    found = ElementTree.parse(path).getroot().find(f".//{DESCRIPTION}")
    return [] if found is None else json.loads(found.text)
