"""Plot of what evaluation takes."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.plot.style import BLUE, GREY, open_frame, save


def evaluation_row(row: dict, path: Path) -> Path:
    """Draw the seconds of a request, published and here, for each kind of request.

    Args:
        row: a row of kind "evaluation".
        path: the PNG to write; its folder is made.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    panel, results = figure.subplots(), row["results"]
    for shift, program, color in ((-0.2, "published", GREY), (0.2, "dllm", BLUE)):
        each = [result[f"{program}_seconds"]["median"] / result["requests"] for result in results]
        panel.bar([place + shift for place in range(len(results))], each, width=0.4, color=color, label=program)
    for place, result in enumerate(results):
        height = result["published_seconds"]["median"] / result["requests"]
        panel.annotate(f"{result['faster']:.0f}x", (place, height), ha="center", va="bottom")
    names = [f"{result['kind']}\n{result['target_tokens']:.0f} tokens" for result in results]
    panel.set_xticks(range(len(results)), names)
    panel.set(ylabel="seconds of a request", yscale="log")
    open_frame(panel)
    panel.legend(frameon=False)
    return save(figure, path)
