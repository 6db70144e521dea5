"""Shared parts of the programs: parsing of options, exit codes, delayed Ctrl-C, folders (:mod:`dllm.folders`)."""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dllm import exits
from dllm.exits import Interrupted
from dllm.folders import check_free, whole_folder

__all__ = [
    "at_least_one",
    "check_free",
    "dtype_name",
    "exit_code",
    "held_interrupts",
    "whole_folder",
    "yes_or_no",
]

_CAN_MASK = hasattr(signal, "pthread_sigmask")  # not on Windows


def yes_or_no(text: str) -> bool:
    """Parse the value of a boolean option: true or false, yes or no, 1 or 0.

    Example:
        >>> yes_or_no("True"), yes_or_no("no")
        (True, False)
    """
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"expected True or False, got {text!r}")
    return known[text.lower()]


def at_least_one(text: str) -> int:
    """Parse the value of an option that is a positive integer.

    Example:
        >>> at_least_one("20_000")
        20000
    """
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return number


def dtype_name(text: str) -> str:
    """Parse a dtype: torch's name of it, or one of the short names fp32, bf16 and fp16.

    Example:
        >>> dtype_name("bf16"), dtype_name("float32")
        ('bfloat16', 'float32')
    """
    known = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    return known.get(text, text)


def exit_code(work: Callable[[], object]) -> int:
    """:func:`dllm.exits.exit_code` for a program that can be resumed after an interruption.

    Example:
        >>> exit_code(lambda: "done")
        0
    """

    def resumable() -> object:
        try:
            return work()
        except KeyboardInterrupt:
            raise Interrupted("interrupted: what is done is kept, the same command goes on from there") from None

    return exits.exit_code("error", resumable)


@contextmanager
def held_interrupts() -> Iterator[None]:
    """Delay Ctrl-C until the end of this context, also for processes that are started in it. A process pool may wait
    for ever if some of its processes are interrupted.

    Example:
        >>> with held_interrupts():
        ...     pass
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread handles signals
        yield
        return
    received = []
    # the mask covers this thread only: the handler also delays a signal that another thread receives
    handler = signal.signal(signal.SIGINT, lambda *_: received.append(True))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if _CAN_MASK else None
    try:
        yield
    finally:
        if _CAN_MASK:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGINT, handler)
    if received:
        raise KeyboardInterrupt
