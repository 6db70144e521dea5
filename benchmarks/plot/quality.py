"""Plot of accuracy against forward passes."""

from __future__ import annotations

from pathlib import Path

from matplotlib import ticker
from matplotlib.figure import Figure

from benchmarks.plot.style import GREY, open_frame, save


def quality_row(row: dict, path: Path) -> Path:
    """Draw accuracy against forward passes per answer, a line for each task and sampler, with 95 % intervals.

    Dashed lines: 98 % of the accuracy with one token per step, where that was measured.

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
        panel.axhline(0.98 * accuracy, color=GREY, linestyle="--", linewidth=1, zorder=0)
    panel.set(xlabel="forward passes per answer", ylabel="exact answers", ylim=(0, 1.02), xscale="log")
    panel.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    panel.xaxis.set_minor_formatter(ticker.NullFormatter())
    panel.xaxis.set_major_locator(ticker.LogLocator(base=2))
    panel.yaxis.set_major_formatter(ticker.PercentFormatter(1))
    open_frame(panel)
    panel.legend(frameon=False)
    return save(figure, path)


def _line(result: dict) -> str:
    """The name of the line that a quality result belongs to."""
    name = (
        result["sampler"]
        + " (approximate)" * result["approximate"]
        + ", random order" * (result.get("remasking") == "random")
        + ", weights of int8" * (result.get("quantize") == "int8")
        + ", compiled body" * bool(result.get("compile_body"))
    )
    return f"{result['task']}, {name}, temperature {result['temperature']:g}"
