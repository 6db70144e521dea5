"""What the programs have in common: options that are yes or no, exit codes, folders that appear whole or not at all."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dllm import exits
from dllm.exits import Interrupted

_CAN_MASK = hasattr(signal, "pthread_sigmask")  # not on Windows


def yes_or_no(text: str) -> bool:
    """The value of an option that is true or false, in the ways that scripts write it.

    Example:
        >>> yes_or_no("True"), yes_or_no("no")
        (True, False)
    """
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"expected True or False, got {text!r}")
    return known[text.lower()]


def at_least_one(text: str) -> int:
    """The value of an option that counts something.

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
    """The name that torch has for a dtype, given so or by the short names fp32, bf16 and fp16.

    Example:
        >>> dtype_name("bf16"), dtype_name("float32")
        ('bfloat16', 'float32')
    """
    known = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    return known.get(text, text)


def exit_code(work: Callable[[], object]) -> int:
    """:func:`dllm.exits.exit_code` of a program that goes on where it was interrupted.

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
    """Ctrl-C waits for the end of what is done here, and so for processes that are started here: a pool of which some
    are interrupted may wait for them for ever.

    Example:
        >>> with held_interrupts():
        ...     pass
    """
    if threading.current_thread() is not threading.main_thread():  # which alone is told of signals
        yield
        return
    came = []
    # where another thread of this process takes the signal, the mask of this one does not count: the handler waits, too
    handler = signal.signal(signal.SIGINT, lambda *_: came.append(True))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if _CAN_MASK else None
    try:
        yield
    finally:
        if _CAN_MASK:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGINT, handler)
    if came:
        raise KeyboardInterrupt


@contextmanager
def whole_folder(folder: Path, building: Path | None = None) -> Iterator[Path]:
    """A folder to write into, which becomes `folder` when all is written; nothing is left where that fails.

    Args:
        folder: that is to be; it must not exist, or be empty.
        building: where it is written until then, on the same disk; beside it, if not given.

    Raises:
        ValueError: there is something in `folder`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     with whole_folder(Path(place) / "made") as folder:
        ...         _ = (folder / "a.txt").write_text("all of it")
        ...     [path.name for path in (Path(place) / "made").iterdir()]
        ['a.txt']
    """
    check_free(folder)
    building = building or folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        yield building
        if folder.exists():
            folder.rmdir()
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def check_free(folder: Path) -> None:
    """Check that nothing is overwritten.

    Raises:
        ValueError: the folder exists and is not empty, or is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists: name another output, or remove it")
