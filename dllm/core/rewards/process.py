"""A process that computes rewards, and is ended when it takes too long."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import weakref
from typing import Any

# Nothing but sys is imported before the paths are those of the parent: the working folder may hold a random.py.
_START = "import sys; sys.path[:] = sys.argv[1:]; from dllm.core.rewards.child import serve; serve()"


class ProcessEnded(Exception):
    """The process of the rewards ended before it answered."""


class RewardProcess:
    """A fresh Python interpreter that runs :func:`dllm.core.rewards.child.serve`, until `close()`.

    It is an interpreter of its own and no fork of this process: a fork would keep the memory of the training alive,
    copy every page of it that training then writes to, and inherit locks of threads that it does not have (torch, CUDA,
    NCCL). A signal or a thread in this process would not end a loop inside C code (`9**9**9`, a regular expression).
    """

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, *map(str, sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONHASHSEED": "0"},  # sets in the same order in every process
            start_new_session=True,  # Ctrl-C is for the training; what a reward has started ends with it
        )
        self._requests: queue.SimpleQueue = queue.SimpleQueue()
        self._replies: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(
            target=_exchange, args=(self._process, self._requests, self._replies), daemon=True, name="rewards"
        ).start()
        self.close = weakref.finalize(self, _end, self.owner, self._process, self._requests)

    @property
    def usable(self) -> bool:
        """Whether it runs, and was started by this process and not by one that this is a fork of."""
        return os.getpid() == self.owner and self._process.poll() is None

    def ask(self, request: Any, seconds: float) -> Any:
        """The answer to a request.

        Raises:
            TimeoutError: there is none after `seconds`.
            ProcessEnded: the process has ended.
        """
        self._requests.put(pickle.dumps(request, pickle.HIGHEST_PROTOCOL))
        try:
            reply = self._replies.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(f"no answer within {seconds:g} s") from None
        if reply is None:
            raise ProcessEnded(f"exit status {self._process.wait()}")
        return pickle.loads(reply)


def send(stream: Any, message: bytes) -> None:
    """Write a message, its length before it."""
    stream.write(len(message).to_bytes(8, "little") + message)
    stream.flush()


def receive(stream: Any) -> bytes | None:
    """Read a message; None if the stream has ended."""
    head = stream.read(8)
    message = stream.read(int.from_bytes(head, "little"))
    return message if len(head) == 8 and len(message) == int.from_bytes(head, "little") else None


def _exchange(process: subprocess.Popen, requests: queue.SimpleQueue, replies: queue.SimpleQueue) -> None:
    """Write requests and read replies: in a thread, as both block for as long as a reward takes."""
    reply: bytes | None = b""
    # closing writes what is left, to a process that may have ended
    with contextlib.suppress(OSError), process.stdout, process.stdin:
        while reply is not None and (request := requests.get()) is not None:
            reply = None
            with contextlib.suppress(OSError):
                send(process.stdin, request)
                reply = receive(process.stdout)
            replies.put(reply)


def _end(owner: int, process: subprocess.Popen, requests: queue.SimpleQueue) -> None:
    if os.getpid() != owner:
        return  # in a fork of the owner
    requests.put(None)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()
