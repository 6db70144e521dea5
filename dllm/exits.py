"""How a program ends: its exit code, and one line on stderr for what can be foreseen to go wrong.

Exit codes: 0 done; 1 it could not be done; 2 a command line that makes no sense; 130 interrupted by Ctrl-C, 143 by
SIGTERM; 141 nobody reads the output any more. An error that was not foreseen is a bug, and keeps its traceback; with
the environment variable DLLM_TRACEBACK set every error shows one.
"""

from __future__ import annotations

import contextlib
import dis
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator

TRACEBACK = "DLLM_TRACEBACK"
_NOBODY_READS = 128 + 13  # as a shell reports SIGPIPE

# By module, the errors that tell of something outside the program: files, templates, the network, memory. They are
# looked up in modules that are loaded: the others cannot have raised anything.
_OUTSIDE = {
    "datasets.exceptions": ("DatasetsError",),
    "httpx": ("HTTPError",),
    "jinja2": ("TemplateError",),
    "pyarrow": ("ArrowException",),
    "requests": ("RequestException",),
    "safetensors": ("SafetensorError",),
    "torch": ("OutOfMemoryError",),
    "yaml": ("YAMLError",),
    "zlib": ("error",),
}


class UsageError(ValueError):
    """The command line makes no sense."""


class Interrupted(KeyboardInterrupt):
    """A program was stopped from outside, at a place where it can be gone on from.

    Args:
        message: what is kept, and how to go on.
        signum: of the signal.
    """

    def __init__(self, message: str, signum: int = signal.SIGINT):
        super().__init__(message)
        self.signum = signum


def exit_code(program: str, work: Callable[[], object]) -> int:
    """Do the work of a program; returns its exit code, the work's own where that returns an int.

    Args:
        program: its name, which begins the line on stderr.
        work: all of it, imports that take long included.

    Raises:
        Exception: what was not foreseen (:func:`foreseen`).

    Example:
        >>> exit_code("example", lambda: print("done"))
        done
        0
    """
    try:
        result = work()
        if sys.stdout is not None:
            sys.stdout.flush()  # here and not when Python ends, so that a failure has its line and its exit code
    except KeyboardInterrupt as error:
        if os.environ.get("RANK", "0") == "0":  # one process of many speaks
            _say(program, str(error) or "interrupted", error)
        return 128 + getattr(error, "signum", signal.SIGINT)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return _NOBODY_READS
        if not foreseen(error):
            print(f"{program}: an error that was not foreseen; please report it with these lines", file=sys.stderr)
            raise
        return _failed(program, error)
    return result if type(result) is int else 0


@contextlib.contextmanager
def usage() -> Iterator[None]:
    """Within it what is wrong is wrong with the command line: exit code 2.

    Raises:
        UsageError: in the place of a foreseen ImportError, OSError, TypeError or ValueError.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except (ImportError, OSError, TypeError, ValueError) as error:
        if not foreseen(error):
            raise
        raise UsageError(explanation(error)) from error


def foreseen(error: BaseException) -> bool:
    """Whether an error tells of something outside the program, and not of a bug in it.

    A TypeError or ValueError does if a `raise` statement raised it, as checks of arguments do: one of the interpreter's
    own (a function that is called with too many arguments) is a bug. Their subclasses tell of data.

    Example:
        >>> foreseen(FileNotFoundError("no such file")), foreseen(KeyError("name"))
        (True, False)
    """
    if type(error) in (TypeError, ValueError):
        return _raised_by_statement(error)
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):  # torch, on a CPU
        return True
    known = (EOFError, FloatingPointError, ImportError, MemoryError, OSError, TypeError, ValueError, *_outside())
    return isinstance(error, known)


def explanation(error: BaseException) -> str:
    """An error in one line.

    Example:
        >>> explanation(FileNotFoundError(2, "No such file or directory", "/no/such/file"))
        '/no/such/file: No such file or directory'
    """
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.errno and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError):
        return f"out of memory: {text}"
    if isinstance(error, _outside("jinja2")):
        return f"the chat template failed: {text}"
    if isinstance(error, _outside("datasets.exceptions")) and error.__cause__ is not None:
        return f"{text}: {explanation(error.__cause__)}"
    return text


def _outside(*modules: str) -> tuple[type[BaseException], ...]:
    loaded = [(sys.modules[name], _OUTSIDE[name]) for name in modules or _OUTSIDE if name in sys.modules]
    return tuple(getattr(module, name) for module, names in loaded for name in names if hasattr(module, name))


def _raised_by_statement(error: BaseException) -> bool:
    trace = error.__traceback__
    if trace is None:
        return True
    while trace.tb_next is not None:
        trace = trace.tb_next
    return dis.opname[trace.tb_frame.f_code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"


def _failed(program: str, error: Exception) -> int:
    _say(program, explanation(error), error)
    return 2 if isinstance(error, UsageError) else 1


def _say(program: str, line: str, error: BaseException) -> None:
    if os.environ.get(TRACEBACK):
        traceback.print_exception(type(error), error, error.__traceback__)
    print(f"{program}: {line}", file=sys.stderr)


def _nobody_reads() -> bool:
    """Whether the reader of stdout has gone. What stdout still holds is dropped: Python would fail on it at its end."""
    try:
        output = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        return False
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(output, 0)
        if not poll.poll(0):  # another pipe has broken
            return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True
