"""Plots of measured rows as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import matplotlib.ticker
from matplotlib.figure import Figure

matplotlib.use("Agg")

PARTS = {"body": "#4878a8", "head_sampling": "#e08a3c", "transfer": "#7a9a4a"}
UNKNOWN = "#9a9a9a"


def sampler_rows(rows: Sequence[dict], path: Path) -> Path:
    """Milliseconds per step of every provider in every case, stacked by part, with the speed-up beside each bar.

    Args:
        rows: rows of kind "sampler"; those without a measurement are left out.
        path: the PNG to write; its folder is made.
    """
    measured = [row for row in rows if any("ms_per_step" in r for r in row.get("providers", {}).values())]
    bars = sum(len(row["providers"]) for row in measured)
    figure = Figure(figsize=(9, 1.2 + 0.42 * bars + 0.55 * len(measured)), layout="constrained")
    panels = figure.subplots(max(len(measured), 1), 1, squeeze=False)[:, 0]
    for panel, row in zip(panels, measured, strict=False):
        _case(panel, row)
    if measured:
        panels[-1].set_xlabel("milliseconds per denoising step (median)")
        handles = [matplotlib.patches.Patch(color=colour, label=part) for part, colour in _labels(measured)]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def _case(panel: matplotlib.axes.Axes, row: dict) -> None:
    """One case: a bar for each provider. Parts are measured in a run of their own and scaled to the counted runs."""
    settings, results = row["settings"], row["providers"]
    sampler = settings.get("sampler", "generate")
    sampler = "" if sampler == "generate" else f"{sampler}{' (approximate)' * settings['approximate']}, "
    panel.set_title(
        f"{sampler}{Path(settings['model']).name} {settings['dtype']}, batch {settings['batch']}, "
        f"temperature {settings['temperature']:g}",
        loc="left",
        fontsize=10,
    )
    for name, result in results.items():
        if "ms_per_step" not in result:
            panel.barh(name, 0)
            panel.text(0, name, f" {result.get('error', 'not measured')}"[:90], va="center", fontsize=8)
            continue
        total = result["ms_per_step"]["median"]
        left = 0.0
        for part, width in _scaled_parts(result, total).items():
            panel.barh(name, width, left=left, color=PARTS.get(part, UNKNOWN), height=0.65)
            left += width
        speed = f" {result['speedup']:.2f}x" if "speedup" in result else ""
        panel.text(total, name, f" {total:.1f} ms{speed}", va="center", fontsize=9)
    panel.invert_yaxis()
    panel.margins(x=0.18)
    panel.spines[["top", "right"]].set_visible(False)


def _scaled_parts(result: dict, total: float) -> dict[str, float]:
    """A step's parts, scaled so that they add up to `total`; one whole where the parts are unknown."""
    parts = {part: ms for part, ms in result.get("split_ms_per_step", {}).items() if ms}
    if not parts:
        return {"whole step": total}
    scale = total / sum(parts.values())
    return {part: ms * scale for part, ms in parts.items()}


def _labels(rows: Sequence[dict]) -> list[tuple[str, str]]:
    """The legend: what the colours mean."""
    labels = [("body", PARTS["body"]), ("head + sampling", PARTS["head_sampling"]), ("transfer", PARTS["transfer"])]
    whole = any("split_ms_per_step" not in r and "ms_per_step" in r for row in rows for r in row["providers"].values())
    return labels + [("not taken apart", UNKNOWN)] * whole


def kernel_rows(rows: Sequence[dict], path: Path) -> Path:
    """Time of every program on every case in multiples of the case's floor, a panel for each operation.

    Args:
        rows: rows of kind "kernel"; those without a floor or a measurement of ours are left out.
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
        panel.axvline(1, color=UNKNOWN, linewidth=1, zorder=0)
        for row in of_op:
            for name, result in row["providers"].items():
                if "seconds" in result:
                    times = result["seconds"]["median"] / row["floor_seconds"]
                    style = {"color": PARTS["body"], "s": 42} if name == "ours" else {"color": UNKNOWN, "s": 12}
                    panel.scatter(times, row["title"], zorder=2, **style)
        panel.invert_yaxis()
        panel.set_xscale("log")
        panel.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("time in multiples of the floor; large: ours, small: the others")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def quality_row(row: dict, path: Path) -> Path:
    """Accuracy against forward passes for an answer, a line for each task and way to sample, with 95 % intervals.

    Dashed: 98 % of what a task gives with one token a step, where that was measured.

    Args:
        row: a row of kind "quality".
        path: the PNG to write; its folder is made.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    panel = figure.subplots()
    lines: dict[str, list[dict]] = {}
    for result in row["results"]:
        lines.setdefault(_line(result), []).append(result)
    for name, results in lines.items():
        results = sorted(results, key=lambda result: result["forwards"])
        accuracy = [result["accuracy"] for result in results]
        below, above = ([abs(r["interval_95"][end] - r["accuracy"]) for r in results] for end in (0, 1))
        forwards = [result["forwards"] for result in results]
        panel.errorbar(forwards, accuracy, yerr=[below, above], marker="o", capsize=3, label=name)
    known = [result for result in row["results"] if result.get("share_of_one_a_step")]
    exact = {(r["task"], r["temperature"]): r["accuracy"] / r["share_of_one_a_step"] for r in known}
    for accuracy in exact.values():
        panel.axhline(0.98 * accuracy, color=UNKNOWN, linestyle="--", linewidth=1, zorder=0)
    panel.set(xlabel="forward passes for an answer", ylabel="exact answers", ylim=(0, 1.02), xscale="log")
    panel.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    panel.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    panel.xaxis.set_major_locator(matplotlib.ticker.LogLocator(base=2))
    panel.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def _line(result: dict) -> str:
    """The line that a quality result is a point of."""
    name = (
        result["sampler"]
        + " (approximate)" * result["approximate"]
        + ", random order" * (result.get("remasking") == "random")
    )
    return f"{result['task']}, {name}, temperature {result['temperature']:g}"


def training_curve(log: Sequence[dict], path: Path) -> Path:
    """Loss, and exact answers where they were measured, over training steps.

    Args:
        log: rows with `step` and `loss`, some with `accuracy`.
        path: the PNG to write.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    panel = figure.subplots()
    panel.plot([row["step"] for row in log], [row["loss"] for row in log], color=PARTS["body"])
    panel.set(xlabel="step", ylabel="loss, nats per token of an answer", yscale="log")
    panel.yaxis.label.set_color(PARTS["body"])
    measured = [row for row in log if "accuracy" in row]
    right = panel.twinx()
    right.plot(
        [row["step"] for row in measured], [row["accuracy"] for row in measured], "o-", color=PARTS["head_sampling"]
    )
    right.set(ylabel="exact answers", ylim=(0, 1.02))
    right.yaxis.label.set_color(PARTS["head_sampling"])
    right.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))
    for side in (panel, right):
        side.spines["top"].set_visible(False)
    figure.savefig(path, dpi=100)
    return path
