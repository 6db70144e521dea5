"""The process that computes rewards, seen from inside. It imports neither torch nor transformers.

Requests and replies are pickled, each with its length before it:

    ("rewards", [(name, function as bytes), ...])   -> None, or ("refused", name, why)
    ("batch", completions, columns)                 -> None
    ("compute", number of the reward, columns, seconds)   -> ("values", list) or ("wrong" or "raised", why)
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import random
import sys
import traceback
from typing import Any

from dllm.core.rewards.columns import checked_values
from dllm.core.rewards.process import receive, send

_GRACE = 5.0  # seconds after the limit in which the parent ends this process, if it is still there


def serve() -> None:
    """Answer requests until the parent closes the stream."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # a reward that reads finds nothing, and what it prints goes where errors go
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    server = _Server()
    while (request := receive(requests)) is not None:
        kind, *arguments = pickle.loads(request)
        reply = getattr(server, kind)(*arguments)
        sys.stdout.flush()
        send(replies, pickle.dumps(reply, pickle.HIGHEST_PROTOCOL))


class _Server:
    def rewards(self, rewards: list[tuple[str, bytes]]) -> tuple[str, str, str] | None:
        import dill

        self._rewards = []
        for name, function in rewards:
            try:
                self._rewards.append((name, dill.loads(function)))
            except Exception as error:
                return "refused", name, f"{type(error).__name__}: {error}"
        return None

    def batch(self, completions: list[Any], columns: dict[str, list[Any]]) -> None:
        self._completions, self._columns = completions, columns

    def compute(self, number: int, columns: list[str], seconds: float) -> tuple[str, Any]:
        name, function = self._rewards[number]
        random.seed(0)  # the same number in every process, and after a restart
        with open(os.devnull, "w") as nothing:
            # ends this process if the parent was killed and cannot; a thread in C, so it also ends a loop in C
            faulthandler.dump_traceback_later(seconds + _GRACE, exit=True, file=nothing)
            try:
                given = {column: list(self._columns[column]) for column in columns}
                values = function(completions=list(self._completions), **given)
            except BaseException:
                return "raised", traceback.format_exc(limit=-8)
            finally:
                faulthandler.cancel_dump_traceback_later()
        try:
            return "values", checked_values(name, values, len(self._completions))
        except ValueError as error:
            return "wrong", str(error)
