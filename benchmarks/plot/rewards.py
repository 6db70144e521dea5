"""Plot of reinforcement learning: the reward and the divergence from the reference, over the steps."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import ticker
from matplotlib.figure import Figure

from benchmarks.plot.style import BLUE, GREY, ORANGE, open_frame

REWARDS = {"exact": "right answers", "equation": "written as an equation"}


def reward_points(rows: Sequence[dict]) -> list[dict[str, object]]:
    """The curves in rows of kind "grpo_lessons": for each name in the logs its steps and values."""
    return [
        {"curve": name, "steps": [step for step, _ in curve], "values": [round(value, 4) for _, value in curve]}
        for row in rows
        if row["kind"] == "grpo_lessons"
        for name, curve in row["results"]["curves"].items()
    ]


def draw_rewards(points: Sequence[dict[str, object]]) -> Figure:
    """A panel for each reward over the optimizer steps, and one for the divergence."""
    of = {point["curve"]: (point["steps"], point["values"]) for point in points}
    figure = Figure(figsize=(9, 8), layout="constrained")
    *rewards, divergence = figure.subplots(len(REWARDS) + 1, 1, sharex=True)
    for panel, (name, meaning) in zip(rewards, REWARDS.items(), strict=True):
        panel.plot(*of[f"rewards/{name}"], color=BLUE, linewidth=1.2, label="in training, temperature 1")
        panel.plot(*of[f"eval_rewards/{name}"], "o--", color=ORANGE, markersize=4, label="other numbers, temperature 0")
        panel.set(ylabel=meaning, ylim=(0, 1))
        panel.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))
    rewards[0].legend(frameon=False, loc="lower right")
    divergence.plot(*of["kl"], color=BLUE, linewidth=1.2)
    divergence.set_yscale("symlog", linthresh=1)  # it begins at 0
    divergence.set(ylabel="divergence, nats a token", xlabel="optimizer step")
    for panel in (*rewards, divergence):
        panel.grid(axis="y", color=GREY, alpha=0.25)
        open_frame(panel)
    figure.suptitle("diffu-GRPO on sums in words, a kind of question that the bundled model never learnt", fontsize=11)
    return figure
