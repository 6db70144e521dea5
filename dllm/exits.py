"""Exit codes and error messages of all commands.

Exit codes: 0 success; 1 failure; 2 invalid command line; 130 interrupted by Ctrl-C, 143 by SIGTERM; 141 the reader of
stdout has closed it (SIGPIPE). An expected error, such as a missing file, is printed as one line on stderr. Any other
error is a bug and keeps its traceback. If the environment variable DLLM_TRACEBACK is set, every error has a traceback.
"""

from __future__ import annotations

import contextlib
import dis
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from types import FrameType

TRACEBACK = "DLLM_TRACEBACK"
_BROKEN_PIPE = 128 + 13  # as a shell reports SIGPIPE

# Other exceptions with causes outside the program, by module: files, templates, the network, memory, rewards. Only
# modules that are already imported are looked up, since no other can have raised anything.
_EXTERNAL = {
    "datasets.exceptions": ("DatasetsError",),
    "dllm.core.rewards.timed": ("RewardError",),
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
    """The command line is invalid."""


class Interrupted(KeyboardInterrupt):
    """A program was stopped by a signal, in a state from which it can resume.

    Args:
        message: what has been saved, and how to resume.
        signum: number of the signal.
    """

    def __init__(self, message: str, signum: int = signal.SIGINT):
        super().__init__(message)
        self.signum = signum


def exit_code(program: str, work: Callable[[], object]) -> int:
    """Run a program; returns its exit code: the result of `work` if that is an int, otherwise as listed above.

    Args:
        program: its name, which begins the line on stderr.
        work: the whole program, slow imports included.

    Raises:
        Exception: an unexpected error, see :func:`is_expected`.

    Example:
        >>> exit_code("example", lambda: print("done"))
        done
        0
    """
    try:
        result = work()
        if sys.stdout is not None:
            sys.stdout.flush()  # now: a failure at interpreter exit would get neither the line nor the exit code
    except KeyboardInterrupt as error:
        if _is_first():
            _print_error(program, str(error) or "interrupted", error)
        return 128 + getattr(error, "signum", signal.SIGINT)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _stdout_is_closed():
            return _BROKEN_PIPE
        if not is_expected(error):
            print(f"{program}: unexpected error; please report it with this traceback", file=sys.stderr)
            raise
        return _failed(program, error)
    return result if type(result) is int else 0


@contextlib.contextmanager
def usage() -> Iterator[None]:
    """Context manager: expected errors in its body mean that the command line is invalid, exit code 2.

    Raises:
        UsageError: in place of an expected ImportError, OSError, TypeError or ValueError.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except (ImportError, OSError, TypeError, ValueError) as error:
        if not is_expected(error):
            raise
        raise UsageError(explanation(error)) from error


@contextlib.contextmanager
def ends_at_once(program: str) -> Iterator[None]:
    """Context manager: Ctrl-C in its body ends the process with exit code 130 and one line, without an exception.

    It is for programs that have nothing to lose while they load. A KeyboardInterrupt that is raised inside an import, a
    destructor or a callback of C++ gets lost there, or aborts the process. In a thread other than the main one, which
    no signal reaches, it does nothing.

    Args:
        program: its name, which begins the line on stderr.
    """

    def end(signum: int, frame: FrameType | None) -> None:
        if os.environ.get(TRACEBACK):
            traceback.print_stack(frame)
        if _is_first():
            os.write(2, f"{program}: interrupted\n".encode())  # print could have been interrupted itself
        os._exit(128 + signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier)


def is_expected(error: BaseException) -> bool:
    """Whether an error has a cause outside the program, so that it is not a bug.

    A TypeError or ValueError is expected if a `raise` statement raised it, as checks of arguments do. One raised by the
    interpreter, such as a call with too many arguments, is a bug. Subclasses of the two are always expected: they are
    about data.

    Example:
        >>> is_expected(FileNotFoundError("no such file")), is_expected(KeyError("name"))
        (True, False)
    """
    if type(error) in (TypeError, ValueError):
        return _raised_by_statement(error)
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):  # torch, on a CPU
        return True
    known = (
        EOFError,
        FloatingPointError,
        ImportError,
        MemoryError,
        OSError,
        TypeError,
        ValueError,
        *_external_errors(),
    )
    return isinstance(error, known)


def explanation(error: BaseException) -> str:
    """The message of an error, in one line.

    Example:
        >>> explanation(FileNotFoundError(2, "No such file or directory", "/no/such/file"))
        '/no/such/file: No such file or directory'
    """
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.errno and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, MemoryError):
        return f"out of memory: {text}"
    if isinstance(error, _external_errors("jinja2")):
        return f"the chat template failed: {text}"
    if isinstance(error, _external_errors("datasets.exceptions")) and error.__cause__ is not None:
        return f"{text}: {explanation(error.__cause__)}"
    return text


def _external_errors(*modules: str) -> tuple[type[BaseException], ...]:
    loaded = [(sys.modules[name], _EXTERNAL[name]) for name in modules or _EXTERNAL if name in sys.modules]
    return tuple(getattr(module, name) for module, names in loaded for name in names if hasattr(module, name))


def _raised_by_statement(error: BaseException) -> bool:
    trace = error.__traceback__
    if trace is None:
        return True
    while trace.tb_next is not None:
        trace = trace.tb_next
    return dis.opname[trace.tb_frame.f_code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"


def _is_first() -> bool:
    """Whether this is the process that prints, of those that a launcher has started."""
    return os.environ.get("RANK", "0") == "0"


def _failed(program: str, error: Exception) -> int:
    _print_error(program, explanation(error), error)
    return 2 if isinstance(error, UsageError) else 1


def _print_error(program: str, line: str, error: BaseException) -> None:
    if os.environ.get(TRACEBACK):
        traceback.print_exception(type(error), error, error.__traceback__)
    print(f"{program}: {line}", file=sys.stderr)


def _stdout_is_closed() -> bool:
    """Whether the reader of stdout has closed it. If so, buffered output is dropped: flushing it at exit would fail."""
    try:
        output = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        return False
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(output, 0)
        if not poll.poll(0):  # the broken pipe is another one
            return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True
