"""Rewards of reinforcement learning: functions of completions, by name, each with a time limit.

A reward is a function `reward(completions, **columns) -> list[float | None]`, with one number for each completion. None
means that the reward does not apply to it. `completions` are texts, or lists of messages as TRL gives them. `prompts`
and every other column of the data set are keyword arguments, lists as long as `completions`.

    registry                    names of rewards
    completions, columns        texts of completions; what a reward is given and returns
    formats, mathematics        tags and answers; answers of MATH
    countdown, sudoku, code     puzzles; programs with tests
    timed, process, child       rewards within their time limits, in a process of their own
"""

from dllm.core.rewards.code import code_reward
from dllm.core.rewards.countdown import countdown_reward
from dllm.core.rewards.formats import (
    boxed_format_reward,
    correctness_reward,
    int_reward,
    soft_format_reward,
    strict_format_reward,
    xmlcount_reward,
)
from dllm.core.rewards.mathematics import correctness_math_reward
from dllm.core.rewards.registry import DEFAULT_SECONDS, Reward, get_reward, register_reward, reward_names
from dllm.core.rewards.sudoku import sudoku_reward
from dllm.core.rewards.timed import RewardError, TimedRewards

__all__ = [
    "DEFAULT_SECONDS",
    "Reward",
    "RewardError",
    "TimedRewards",
    "boxed_format_reward",
    "code_reward",
    "correctness_math_reward",
    "correctness_reward",
    "countdown_reward",
    "get_reward",
    "int_reward",
    "register_reward",
    "reward_names",
    "soft_format_reward",
    "strict_format_reward",
    "sudoku_reward",
    "xmlcount_reward",
]
