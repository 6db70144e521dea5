"""Rewards within their limits: whatever a reward does, the training goes on, with the same numbers everywhere."""

from __future__ import annotations

import functools
import gc
import logging
import os
import time

import pytest

from dllm.core.rewards import TimedRewards, get_reward, register_reward
from dllm.core.rewards.registry import _registry
from tests.core.rewards import other_rewards

TEXTS = ["<answer>42</answer>", "7", ""]
COLUMNS = {"answer": ["42"] * 3, "prompts": ["?"] * 3}


@pytest.fixture(autouse=True)
def registry_as_before():
    before = dict(_registry)
    yield
    _registry.clear()
    _registry.update(before)


def limited(function, seconds: float | None = 0.5):
    return register_reward(f"test_{getattr(function, '__name__', 'reward')}", seconds=seconds)(function)


def test_the_numbers_are_those_of_the_functions():
    names = ["correctness", "int", "boxed_format"]
    with TimedRewards(names) as rewards:
        for _ in range(2):
            assert rewards(TEXTS, COLUMNS) == [get_reward(name)(TEXTS, **COLUMNS) for name in names]
        assert rewards([], {"answer": []}) == [[], [], []]


@pytest.mark.parametrize("name", ["endless", "sleeping", "hanging_in_c", "leaves_a_process", "crashing"])
def test_a_reward_that_does_not_return_counts_as_zero(name, caplog):
    if name == "leaves_a_process" and os.name != "posix":
        pytest.skip("no fork")
    reward = limited(getattr(other_rewards, name))
    with TimedRewards(["int", reward, "correctness"]) as rewards, caplog.at_level(logging.WARNING, "dllm"):
        rewards.check_columns(["answer"])
        began = time.monotonic()
        assert rewards(TEXTS, COLUMNS) == [[0.5, 0.5, 0.0], [0.0] * 3, [2.0, 0.0, 0.0]]
        assert time.monotonic() - began < 15  # two processes are started, on a machine that does other things besides
    (line,) = caplog.messages
    assert reward.__name__ in line and "0.0 for all" in line


def test_functions_of_every_kind():
    scale = 3.0
    kinds = [
        lambda completions, **columns: [scale * len(text) for text in completions],
        functools.partial(lambda completions, by, **columns: [by] * len(completions), by=2.0),
        other_rewards.brief,  # takes no columns
        lambda completions, answer: [None, float(answer[1])],
    ]
    columns = {"answer": ["1", "2"], "more": [[1], {}]}
    with TimedRewards(kinds) as rewards:
        assert rewards.names == ["<lambda>", "<lambda> 2", "brief", "<lambda> 3"]
        assert rewards(["7", "abcd"], columns) == [[3.0, 12.0], [2.0, 2.0], [1.0, 0.25], [None, 2.0]]


def test_the_same_numbers_in_every_process():
    values = []
    for _ in range(3):
        with TimedRewards([other_rewards.ordered]) as rewards:
            values += [rewards(["a", "b"]), rewards(["a", "b"])]
    assert all(value == values[0] for value in values)


def test_the_other_process_is_light_and_keeps_the_streams_clean(capfd):
    with TimedRewards([other_rewards.loaded, other_rewards.reading]) as rewards:
        assert rewards(["a"]) == [[0.0], [0.0]]
    out, err = capfd.readouterr()
    assert out == "" and "seen by a reward" in err and "seen by its process" in err


def test_a_reward_without_a_limit_runs_here():
    seen = []

    def here(completions, **columns):
        seen.append(os.getpid())
        return [1, True, None]

    with TimedRewards([limited(here, None)]) as rewards:
        assert rewards(TEXTS, COLUMNS) == [[1.0, 1.0, None]] and seen == [os.getpid()]


@pytest.mark.parametrize("seconds", [5.0, None])
@pytest.mark.parametrize(
    ("returned", "told"),
    [
        ([1.0], "3 numbers"),
        ([1.0, float("nan"), 1.0], "finite"),
        ([1.0, float("inf"), 1.0], "finite"),
        ([1.0, "2", 1.0], "finite"),
        ([1.0, [2.0], 1.0], "finite"),
        (None, "a list"),
        ("abc", "a list"),
        (1.0, "a list"),
    ],
)
def test_wrong_results(returned, told, seconds):
    def wrong(completions, **columns):
        return returned

    with TimedRewards([limited(wrong, seconds)]) as rewards, pytest.raises(ValueError, match=f"test_wrong.*{told}"):
        rewards(TEXTS, COLUMNS)


@pytest.mark.parametrize("name", ["raising", "exiting"])
def test_errors_of_a_reward_end_the_training_with_its_traceback(name):
    with TimedRewards([getattr(other_rewards, name), "int"]) as rewards:
        with pytest.raises(RuntimeError, match=rf"(?s)the reward {name} raised.*{name}\(|other_rewards.py"):
            rewards(["a"])
        with pytest.raises(RuntimeError, match=name):
            rewards(["a"])


def test_bad_input():
    with pytest.raises(ValueError, match="did you mean 'countdown'"):
        TimedRewards(["countdwn"])
    with pytest.raises(TypeError, match="a name or a function"):
        TimedRewards([3])
    with pytest.raises(ValueError, match="at least one"):
        TimedRewards([])
    rewards = TimedRewards(["correctness", "int"])
    for columns, told in [
        ({"prompts": ["?"] * 3}, "correctness needs the column answer, got prompts"),
        ({"answer": ["42"] * 2}, "answer must have 3 entries"),
        ({"answer": "42 "}, "answer must be a list"),
    ]:
        with pytest.raises(ValueError, match=told):
            rewards(TEXTS, columns)
    with pytest.raises(ValueError, match="needs the column answer, got prompt"):
        rewards.check_columns(["prompt"])
    TimedRewards([lambda prompts, completions, answer, **columns: []]).check_columns(["prompt", "answer"])
    assert rewards._process is None  # nothing was started for any of this
    for seconds in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="seconds"):
            register_reward("new", seconds=seconds)
    with pytest.raises(ValueError, match=r"taken by the reward dllm.core.rewards.formats.int_reward"):
        register_reward("int")(lambda completions: [])
    with pytest.raises(ValueError, match="at least one character"):
        register_reward("")
    numbers = (float(number) for number in range(3))
    with pytest.raises(ValueError, match=r"cannot be sent.*seconds=None"):
        TimedRewards([lambda completions, **columns: [next(numbers) for _ in completions]])


def test_the_process_ends_with_its_owner():
    rewards = TimedRewards(["int"])
    rewards(["1"])
    process = rewards._process._process
    del rewards
    gc.collect()
    assert process.poll() is not None


def test_a_process_that_was_ended_between_calls_is_started_again():
    with TimedRewards(["int"]) as rewards:
        rewards(["1"])
        rewards._process._process.kill()
        rewards._process._process.wait()
        assert rewards(["1"]) == [[0.5]]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_of_the_owner_uses_a_process_of_its_own():
    with TimedRewards(["int"]) as rewards:
        rewards(["1"])
        if (fork := os.fork()) == 0:
            code = 1
            try:
                code = 0 if rewards(["1"]) == [[0.5]] else 2
                rewards.close()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]) == 0
        assert rewards(["1"]) == [[0.5]]
