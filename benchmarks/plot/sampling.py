"""Plot of sampling speed: time of a denoising step by part, for every program."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from benchmarks.plot.style import BLUE, GREEN, GREY, ORANGE, open_frame, save

PARTS = {"body": BLUE, "head_sampling": ORANGE, "transfer": GREEN}


def sampler_rows(rows: Sequence[dict], path: Path) -> Path:
    """Draw the milliseconds per step of every provider in every case, stacked by part, with its speed-up.

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
        handles = [Patch(color=colour, label=part) for part, colour in _labels(measured)]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return save(figure, path)


def _case(panel: Axes, row: dict) -> None:
    """Draw one case, a bar for each provider. Parts come from a separate run, scaled to the counted runs."""
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
            panel.barh(name, width, left=left, color=PARTS.get(part, GREY), height=0.65)
            left += width
        speed = f" {result['speedup']:.2f}x" if "speedup" in result else ""
        panel.text(total, name, f" {total:.1f} ms{speed}", va="center", fontsize=9)
    panel.invert_yaxis()
    panel.margins(x=0.18)
    open_frame(panel)


def _scaled_parts(result: dict, total: float) -> dict[str, float]:
    """The parts of a step, scaled so that they add up to `total`; one part where they are unknown."""
    parts = {part: ms for part, ms in result.get("split_ms_per_step", {}).items() if ms}
    if not parts:
        return {"whole step": total}
    scale = total / sum(parts.values())
    return {part: ms * scale for part, ms in parts.items()}


def _labels(rows: Sequence[dict]) -> list[tuple[str, str]]:
    """The entries of the legend."""
    labels = [("body", BLUE), ("head + sampling", ORANGE), ("transfer", GREEN)]
    whole = any("split_ms_per_step" not in r and "ms_per_step" in r for row in rows for r in row["providers"].values())
    return labels + [("parts not measured", GREY)] * whole
