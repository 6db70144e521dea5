"""The plots of docs/: speed-up over published loops, parts of a step, accuracy by tokens per step, trainings, traffic.

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
from matplotlib.patches import Patch

from benchmarks import machine
from benchmarks.plot.bodies import draw_growth, growth_points
from benchmarks.plot.canvases import draw_memory, memory_points
from benchmarks.plot.edits import draw_lengths, length_points
from benchmarks.plot.rewards import draw_rewards, reward_points
from benchmarks.plot.style import BLUE, GREEN, GREY, ORANGE, PURPLE, open_frame, save
from benchmarks.plot.traffic import draw_traffic, traffic_points
from benchmarks.sampling_tables import PROGRAMS, card_and_ours, sampler_and_model, step_parts

Points = list[dict[str, object]]
DESCRIPTION = "{http://purl.org/dc/elements/1.1/}description"
# line of each sampler; llada2 is a ring around the points of threshold, since both choose the same tokens
STYLES = {
    "generate": dict(color=BLUE, marker="s"),
    "threshold": dict(color=ORANGE, marker="o"),
    "factor": dict(color=GREEN, marker="^"),
    "llada2": dict(color=ORANGE, marker="o", markersize=11, markerfacecolor="none", linestyle="none"),
    "entropy-bound": dict(color=PURPLE, marker="D"),
}
# of the parts of a step; head and choice are one operation in dllm
STEP_COLOURS = {"body": BLUE, "head": PURPLE, "choice": ORANGE, "head and choice": GREEN, "rest": GREY}
NAMES = {  # of the samplers in the legend, each with its setting
    "generate": "generate: tokens per step",
    "threshold": "threshold: least confidence",
    "factor": "factor: factor of the confidences",
    "llada2": "llada2: least confidence (same tokens as threshold)",
    "entropy-bound": "entropy-bound: gamma, nats",
}


def speed_points(rows: Sequence[dict]) -> Points:
    """Tokens per second of the authors' loop and of dllm's fastest program, for each row of kind "sampler"."""
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
    """The speed-up of each case as a bar, in a panel for each machine."""
    machines = list(dict.fromkeys(point["machine"] for point in points))
    on = {name: [point for point in points if point["machine"] == name] for name in machines}
    figure = Figure(figsize=(9, 1.2 + 0.55 * len(points) + 0.5 * len(machines)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)  # inches
    heights = [len(points) for points in on.values()]
    panels = figure.subplots(len(machines), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for panel, (name, cases) in zip(panels, on.items(), strict=True):
        panel.set_title(name, loc="left", fontsize=10)
        for point in cases:
            times = point["dllm"] / point["loop"]
            case = point["case"].replace(": ", "\n", 1)
            panel.barh(case, times, color=BLUE, height=0.6)
            text = dict(textcoords="offset points", va="center", fontsize=9)
            panel.annotate(speed_label(point), (times, case), (4, 0), **text)
        panel.axvline(1, color=GREY, linewidth=1, linestyle="--")
        panel.invert_yaxis()
        panel.margins(x=0.45)  # room for the labels
        open_frame(panel)
    panels[-1].set_xlabel("speed-up over the published loop (dashed line: equal speed)")
    figure.suptitle("Speed of dllm against the loop that each sampler's authors publish", fontsize=11)
    return figure


def speed_label(point: dict[str, object]) -> str:
    """The text beside a bar: the speed-up and both speeds.

    Example:
        >>> speed_label({"loop": 10.0, "dllm": 25.0})
        '2.5x, 10.0 to 25.0 tokens/s'
    """
    return f"{point['dllm'] / point['loop']:.1f}x, {point['loop']:.1f} to {point['dllm']:.1f} tokens/s"


def step_points(rows: Sequence[dict]) -> Points:
    """Milliseconds of the parts of a step, for each program in each row of kind "sampler_steps"."""
    points = []
    for row in rows:
        if row["kind"] == "sampler_steps":
            settings = row["settings"]
            case = f"{sampler_and_model(settings)}, T {settings['temperature']:g}, batch {settings['batch']}"
            for name, result in row["providers"].items():
                if "mean_ms_per_step" in result:
                    parts = step_parts(result)
                    if parts["head"] is None:  # one operation
                        parts = {"head and choice" if part == "choice" else part: ms for part, ms in parts.items()}
                    parts = {part: round(ms, 1) for part, ms in parts.items() if ms is not None}
                    points.append({"case": case, "program": PROGRAMS.get(name, name), "ms": parts})
    return points


def draw_steps(points: Points) -> Figure:
    """The parts of a step of each program as a stacked bar, in a panel for each case."""
    cases = list(dict.fromkeys(point["case"] for point in points))
    of = {case: [point for point in points if point["case"] == case] for case in cases}
    figure = Figure(figsize=(9, 1.2 + 0.4 * len(points) + 0.5 * len(cases)), layout="constrained")
    heights = [len(programs) for programs in of.values()]
    panels = figure.subplots(len(cases), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, (case, programs) in zip(panels, of.items(), strict=True):
        panel.set_title(case, loc="left", fontsize=10)
        for point in programs:
            left = 0.0
            for part, ms in point["ms"].items():
                panel.barh(point["program"], ms, left=left, color=STEP_COLOURS[part], height=0.65)
                left += ms
            panel.annotate(f"{left:.0f} ms", (left, point["program"]), (4, 0), textcoords="offset points", va="center")
        panel.invert_yaxis()
        panel.margins(x=0.15)
        open_frame(panel)
    panels[-1].set_xlabel("milliseconds per denoising step")
    figure.legend(
        handles=[Patch(color=colour, label=part) for part, colour in STEP_COLOURS.items()],
        loc="outside lower center",
        ncols=len(STEP_COLOURS),
        frameon=False,
    )
    return figure


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
    """Accuracy with 95 % intervals against tokens per step, a line for each sampler, with the setting at each point."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)  # inches
    axes = figure.subplots()
    for sampler in dict.fromkeys(point["sampler"] for point in points):
        own = sorted((p for p in points if p["sampler"] == sampler), key=lambda point: point["tokens_per_forward"])
        _line(axes, sampler, own)
    axes.set(xlabel="tokens per step (tokens of the answers / forward passes)", ylabel="exact answers")
    axes.set_xlim(left=0)
    axes.set_ylim(top=1)
    axes.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))
    counts = " or ".join(dict.fromkeys(str(point["questions"]) for point in points))
    figure.suptitle(
        f"Accuracy of the shipped model on {counts} word problems with numbers not seen in training\n"
        "bars: 95 % intervals; number at a point: the sampler's setting, as in the legend",
        fontsize=11,
    )
    axes.grid(axis="y", color=GREY, alpha=0.25)
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    open_frame(axes)
    return figure


def _line(axes: Axes, sampler: str, points: Points) -> None:
    """The line of one sampler, with the setting of each point above its interval; for `factor` below it."""
    style = STYLES.get(sampler, {})
    x, y = ([point[name] for point in points] for name in ("tokens_per_forward", "accuracy"))
    ends = [[abs(point["interval_95"][end] - point["accuracy"]) for point in points] for end in (0, 1)]
    axes.errorbar(x, y, yerr=ends, capsize=2, elinewidth=0.7, label=NAMES.get(sampler, sampler), **style)
    if sampler == "llada2":
        return  # `threshold` has the same settings
    below = sampler == "factor"
    text = dict(textcoords="offset points", fontsize=9, ha="center", va="top" if below else "bottom")
    for point, at in zip(points, x, strict=True):
        end = at, point["interval_95"][0 if below else 1]
        axes.annotate(setting_label(point), end, (0, -3 if below else 3), color=style.get("color"), **text)


def setting_label(point: dict[str, object]) -> str:
    """The setting of a point: tokens per step, or the threshold, factor or gamma."""
    return f"{next(point[name] for name in ('tokens_per_step', 'threshold', 'factor', 'gamma') if name in point):g}"


class Plot(NamedTuple):
    """A published plot. points: takes the rows and returns the points; draw: draws them."""

    points: Callable[[Sequence[dict]], Points]
    draw: Callable[[Points], Figure]


PLOTS = {
    "speed.svg": Plot(speed_points, draw_speed),
    "steps.svg": Plot(step_points, draw_steps),
    "accuracy.svg": Plot(accuracy_points, draw_accuracy),
    "edit_lengths.svg": Plot(length_points, draw_lengths),
    "body_growth.svg": Plot(growth_points, draw_growth),
    "canvas_memory.svg": Plot(memory_points, draw_memory),
    "grpo.svg": Plot(reward_points, draw_rewards),
    "serving.svg": Plot(traffic_points, draw_traffic),
}


def points_of(name: str, rows: Sequence[dict]) -> Points:
    """The points of the plot called `name`.

    Raises:
        ValueError: no row has a point of it.
    """
    if not (points := PLOTS[name].points(rows)):
        raise ValueError(f"no chosen row has anything for {name}")
    return points


def write(name: str, points: Points, folder: Path) -> Path:
    """Draw the plot called `name` from its points and write it into `folder`."""
    return save(PLOTS[name].draw(points), folder / name, description=json.dumps(points))


def read_points(path: Path) -> Points:
    """The points that a plot was drawn from; empty where the file is missing or has none."""
    if not path.exists():
        return []
    found = ElementTree.parse(path).getroot().find(f".//{DESCRIPTION}")
    return [] if found is None else json.loads(found.text)
