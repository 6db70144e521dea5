"""Plot of reinforcement learning: rewards, right answers and the divergence from the reference, over the steps."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import ticker
from matplotlib.figure import Figure

from benchmarks.plot.style import BLUE, GREY, ORANGE, open_frame


def reward_points(rows: Sequence[dict]) -> list[dict[str, object]]:
    """The curves in rows of kind "grpo_lessons": for each name in the logs its steps and values."""
    return [
        {"curve": name, "steps": [step for step, _ in curve], "values": [round(value, 4) for _, value in curve]}
        for row in rows
        if row["kind"] == "grpo_lessons"
        for name, curve in row["results"]["curves"].items()
    ]


def draw_rewards(points: Sequence[dict[str, object]]) -> Figure:
    """Three panels over the optimizer steps: the mean reward, right answers to watched problems, and the divergence."""
    of = {point["curve"]: (point["steps"], point["values"]) for point in points}
    figure = Figure(figsize=(9, 7), layout="constrained")
    rewards, right, divergence = figure.subplots(3, 1, sharex=True)
    rewards.plot(*of["reward"], color=BLUE, linewidth=1.2, label="training, temperature 1")
    rewards.plot(*of["eval_reward"], "o--", color=ORANGE, markersize=4, label="watched problems, temperature 0")
    rewards.set_ylabel("reward of an answer")
    rewards.legend(frameon=False)
    right.plot(*of["eval_rewards/exact"], "o--", color=ORANGE, markersize=4)
    right.set_ylabel("exact answers")
    right.set_ylim(0, 1)
    right.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))
    divergence.plot(*of["kl"], color=BLUE, linewidth=1.2)
    divergence.set_yscale("symlog", linthresh=1)  # it begins at 0
    divergence.set(ylabel="divergence, nats a token", xlabel="optimizer step")
    for panel in (rewards, right, divergence):
        panel.grid(axis="y", color=GREY, alpha=0.25)
        open_frame(panel)
    figure.suptitle("diffu-GRPO on problems in wordings that the bundled model never learnt", fontsize=11)
    return figure
