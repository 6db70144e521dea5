"""Plot of requests that arrive at random: how long short ones wait, by load and policy."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from benchmarks.plot.style import BLUE, GREEN, GREY, ORANGE, open_frame

COLOURS = {"one at a time": GREY, "static": ORANGE, "continuous": BLUE}  # by how the policy's name begins


def traffic_points(rows: Sequence[dict]) -> list[dict[str, object]]:
    """Waiting times of short requests for each policy and load, in rows of kind "serving"."""
    return [
        {
            "panel": f"{result['sampler']}, {result['where']}",
            "policy": result["policy"],
            "load": result["load"],
            "p50": result["short"]["p50"],
            "p95": result["short"]["p95"],
        }
        for row in rows
        if row["kind"] == "serving"
        for result in row["results"]
        if result["load"] is not None and "short" in result
    ]


def draw_traffic(points: Sequence[dict[str, object]]) -> Figure:
    """Seconds until short answers are complete against the load, a panel for each sampler and place of measuring."""
    panels = list(dict.fromkeys(point["panel"] for point in points))
    figure = Figure(figsize=(9, 0.8 + 3.2 * len(panels)), layout="constrained")
    for axes, name in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
        of_panel = [point for point in points if point["panel"] == name]
        for policy in dict.fromkeys(point["policy"] for point in of_panel):
            own = sorted((p for p in of_panel if p["policy"] == policy), key=lambda point: point["load"])
            colour = next((colour for begin, colour in COLOURS.items() if policy.startswith(begin)), GREEN)
            for wait, style in (("p50", "o-"), ("p95", "^:")):
                waits = [point[wait] for point in own]
                axes.plot([p["load"] for p in own], waits, style, color=colour, label=f"{policy}, {wait}")
        axes.set_title(name, loc="left", fontsize=10)
        axes.set(yscale="log", ylabel="seconds")
        axes.grid(axis="y", color=GREY, alpha=0.25)
        open_frame(axes)
    axes.set_xlabel("arrivals, over what is answered one at a time")
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=3)
    figure.suptitle("Until a short answer is complete, long ones in between", fontsize=11)
    return figure
