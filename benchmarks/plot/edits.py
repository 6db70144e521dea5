"""Plot of Edit Flows: the length of an answer against the time of sampling, from masks and from nothing."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from benchmarks.plot.style import BLUE, GREEN, GREY, ORANGE, PURPLE, open_frame

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, GREY)


def length_points(rows: Sequence[dict]) -> list[dict[str, object]]:
    """The lengths of a few answers at the times at which they change, for each arm in rows of kind "edit_lessons"."""
    return [
        {"arm": name, "masks": result["masks"]} | {key: shown[key] for key in ("question", "times", "lengths")}
        for row in rows
        if row["kind"] == "edit_lessons"
        for name, result in row["results"].items()
        for shown in result["lengths"]
    ]


def draw_lengths(points: Sequence[dict[str, object]]) -> Figure:
    """A panel for each arm, with a line of steps for each answer; a question has the same colour in all panels."""
    arms = list(dict.fromkeys(point["arm"] for point in points))
    questions = list(dict.fromkeys(point["question"] for point in points))
    colour = {question: COLOURS[number % len(COLOURS)] for number, question in enumerate(questions)}
    figure = Figure(figsize=(9, 1.6 + 2.4 * len(arms)), layout="constrained")
    panels = figure.subplots(len(arms), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
    for panel, arm in zip(panels, arms, strict=True):
        for point in (point for point in points if point["arm"] == arm):
            name = dict(color=colour[point["question"]], label=shortened(point["question"]))
            panel.step(point["times"], point["lengths"], where="post", linewidth=1.4, **name)
        masks = next(point["masks"] for point in points if point["arm"] == arm)
        start = f"{masks} masks" if masks else "nothing"
        panel.set_title(f"the answer begins as {start}", loc="left", fontsize=10)
        panel.set(ylabel="tokens of the answer", xlim=(0, 1))
        panel.set_ylim(bottom=0)
        panel.grid(axis="y", color=GREY, alpha=0.25)
        open_frame(panel)
    panels[-1].set_xlabel("time of sampling, t")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=1, frameon=False)
    figure.suptitle("Edit Flows: length of an answer against time", fontsize=11)
    return figure


def shortened(question: str, width: int = 90) -> str:
    """A question that fits into the legend.

    Example:
        >>> shortened("What is 6 * 7?", width=9)
        'What is…'
    """
    return question if len(question) <= width else question[:width].rpartition(" ")[0] + "…"
