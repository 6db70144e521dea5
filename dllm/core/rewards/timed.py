"""Rewards within their time limits."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dllm.core.rewards.columns import accepted_columns, checked_columns, checked_values
from dllm.core.rewards.process import ProcessEnded, RewardProcess
from dllm.core.rewards.registry import NamedReward, Reward, named_reward

_log = logging.getLogger("dllm")

_START_SECONDS = 300.0  # for the imports of rewards, on a slow disk


class RewardError(RuntimeError):
    """A reward raised an error, or rewards failed on another rank. The message tells why."""


class TimedRewards:
    """Rewards that are computed together, each within its time limit.

    They run in one other process, which is ended and started anew when a reward takes too long or ends the process:
    then the reward counts as 0.0 for all completions of the call, and one line of the log says so. So a reward can
    neither stop a training run nor crash it. Functions that the other process cannot import (of a script, lambdas,
    closures) are sent as they are, with the values that they use, once. What a reward prints goes to stderr; variables
    that it changes change there only, and `random` begins with the same seed in every call, so that its numbers are the
    same in every process. A reward that was registered with `seconds=None` runs in this process, without a limit.

    Args:
        rewards: names, or functions. A function that is not registered has a limit of 10 seconds.

    Raises:
        ValueError: no rewards, an unknown name, or a reward that cannot be sent to the other process.
        TypeError: a reward is neither a name nor a function.

    Attributes:
        names: the names of the rewards, all different.

    Example:
        >>> def length(completions, **columns):
        ...     return [float(len(text)) for text in completions]
        >>> with TimedRewards(["correctness", length]) as rewards:
        ...     rewards.names, rewards(["<answer>42</answer>", "7"], {"answer": ["42", "42"]})
        (['correctness', 'length'], [[2.0, 0.0], [19.0, 1.0]])
    """

    def __init__(self, rewards: Sequence[str | Reward]) -> None:
        if isinstance(rewards, str) or callable(rewards):
            rewards = [rewards]
        self._rewards = [named_reward(reward) for reward in rewards]
        if not self._rewards:
            raise ValueError("there must be at least one reward, got none")
        self.names = _different(reward.name for reward in self._rewards)
        self._rewards = [each._replace(name=name) for each, name in zip(self._rewards, self.names, strict=True)]
        self._sent = [(each.name, _as_bytes(each)) for each in self._rewards if each.seconds is not None]
        self._process: RewardProcess | None = None

    def check_columns(self, names: Iterable[str]) -> None:
        """Check that a data set with these columns, and `prompts`, has what the rewards need.

        Raises:
            ValueError: a column is missing.
        """
        names = [*names, "prompts"]
        for reward in self._rewards:
            accepted_columns(reward, names)

    def __call__(
        self, completions: Sequence[Any], columns: Mapping[str, Sequence[Any]] | None = None
    ) -> list[list[float | None]]:
        """The values of each reward, in the order of `names`, each a list as long as `completions`.

        Args:
            completions: texts or lists of messages.
            columns: `prompts` and the columns of the data set, lists as long as `completions`.

        Raises:
            ValueError: a column is missing or has another length, or a reward does not return finite numbers or None.
            RewardError: a reward raises an error; the message has its traceback.
        """
        completions = list(completions)
        columns = checked_columns(columns or {}, len(completions))
        taken = [accepted_columns(reward, columns) for reward in self._rewards]
        try:
            return self._compute(completions, columns, taken)
        except BaseException:
            self.close()  # its answers may belong to a call that was interrupted
            raise

    def close(self) -> None:
        """End the other process. The next call starts another."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def __enter__(self) -> TimedRewards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _compute(
        self, completions: list[Any], columns: dict[str, list[Any]], taken: list[list[str]]
    ) -> list[list[float | None]]:
        values: list[list[float | None]] = []
        number, has_batch = 0, False
        for reward, names in zip(self._rewards, taken, strict=True):
            if reward.seconds is None:
                returned = reward.function(completions=list(completions), **{name: columns[name] for name in names})
                values.append(checked_values(reward.name, returned, len(completions)))
                continue
            batch = None if has_batch else ("batch", completions, columns)
            answer = self._answer(reward, batch, ("compute", number, names, reward.seconds))
            has_batch = answer is not None
            values.append([0.0] * len(completions) if answer is None else _values(reward, *answer))
            number += 1
        return values

    def _answer(self, reward: NamedReward, batch: tuple | None, request: tuple) -> tuple[str, Any] | None:
        """The answer of the other process; None, and the process ended, if there is none in time."""
        process = self._process if batch is None else self._started()
        try:
            if batch is not None:
                process.ask(batch, _START_SECONDS)
            return process.ask(request, reward.seconds)
        except TimeoutError:
            why = f"took longer than {reward.seconds:g} s (register_reward(..., seconds=...) sets this limit)"
        except ProcessEnded as error:
            why = f"ended its process ({error})"
        self.close()
        _log.warning("the reward %s %s: it counts as 0.0 for all completions of this call", reward.name, why)
        return None

    def _started(self) -> RewardProcess:
        """The other process, with the rewards."""
        if self._process is not None and self._process.usable:
            return self._process
        self._process = RewardProcess()
        try:
            refused = self._process.ask(("rewards", self._sent), _START_SECONDS)
        except (TimeoutError, ProcessEnded) as error:
            raise RuntimeError(f"the process that computes rewards did not start: {error}") from error
        if refused is not None:
            _, name, why = refused
            raise ValueError(f"the reward {name} cannot be loaded in the process that computes rewards: {why}. {_HINT}")
        return self._process


_HINT = "Define it in the script or in a module that can be imported, or register it with seconds=None"


def _values(reward: NamedReward, kind: str, content: Any) -> list[float | None]:
    if kind == "raised":
        raise RewardError(f"the reward {reward.name} raised an error:\n{content}")
    if kind == "wrong":
        raise ValueError(content)
    return content


def _different(names: Iterable[str]) -> list[str]:
    """The names, with a number behind those that were there before."""
    found: list[str] = []
    for name in names:
        others = sum(name == before.partition(" ")[0] for before in found)
        found.append(f"{name} {others + 1}" if others else name)
    return found


def _as_bytes(reward: NamedReward) -> bytes:
    try:
        import dill
    except ImportError as error:
        raise ImportError("dill is not installed: pip install 'dllm[train]'") from error
    try:
        return dill.dumps(reward.function, recurse=True)  # of a script's variables, those that the function uses
    except Exception as error:
        raise ValueError(
            f"the reward {reward.name} cannot be sent to the process that computes rewards: {error}. {_HINT}"
        ) from error
