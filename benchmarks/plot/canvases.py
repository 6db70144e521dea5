"""Plot of the memory of a step of uniform diffusion against the batch."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.plot.style import BLUE, GREEN, ORANGE, open_frame, save

COLOURS = {"transformers": ORANGE, "patched": GREEN, "sampler": BLUE}


def plot_canvas_memory(row: dict, path: Path) -> Path:
    """Draw the peak memory of each program against the number of rows, a panel for each vocabulary and dtype.

    Args:
        row: of kind "diffusion_gemma".
        path: the PNG or SVG to write; its folder is made.
    """
    kinds = list(dict.fromkeys((result["vocab"], result["dtype"]) for result in row["results"]))
    figure = Figure(figsize=(4.2 * len(kinds), 3.4), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    for panel, kind in zip(panels, kinds, strict=True):
        results = [result for result in row["results"] if (result["vocab"], result["dtype"]) == kind]
        for name, colour in COLOURS.items():
            measured = [(r["batch"], r["peak_bytes"][name]) for r in results if r["peak_bytes"].get(name)]
            if measured:
                batches, peaks = zip(*sorted(measured), strict=True)
                panel.plot(batches, [peak / 1e6 for peak in peaks], "o-", color=colour, label=name)
        panel.set(xlabel="rows", yscale="log", title=f"{kind[0]} tokens, {kind[1]}")
        panel.set_xticks(sorted({result["batch"] for result in results}))
        open_frame(panel)
    panels[0].set_ylabel("peak memory growth, MB")
    panels[0].legend(frameon=False)
    return save(figure, path)
