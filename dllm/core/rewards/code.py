"""Reward of programs: the share of tests that the code block of a completion passes."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dllm.core.rewards.completions import last_closed_answer, texts_of
from dllm.core.rewards.registry import register_reward
from dllm.sandbox import runs_to_its_end

CPU_SECONDS = 1  # of a test
WALL_SECONDS = 5.0  # of a test, on a machine that does other things besides
MEGABYTES = 1024
LONGEST = 100_000  # characters of a program; a longer one fails its tests
# Modules that a program may not import. Its tests may.
BLOCKED = frozenset(
    "asyncio builtins concurrent ctypes ftplib gc glob http importlib inspect io marshal multiprocessing os pathlib "
    "pickle pip platform pty requests resource runpy select shelve shutil signal site smtplib socket socketserver ssl "
    "subprocess sys telnetlib tempfile threading urllib webbrowser".split()
)
_BLOCK = re.compile(r"```[\w+-]*[ \t]*\n(.*?)```", re.DOTALL)
# The program as the module `solution`, which tests import; its names are also there without an import. Tests are
# compiled apart, as they may begin with `from __future__ import ...`.
_PROGRAM = """
import sys, types
solution = sys.modules["solution"] = types.ModuleType("solution")
exec(compile({program!r}, "solution.py", "exec"), vars(solution))
globals().update({{name: value for name, value in vars(solution).items() if not name.startswith("__")}})
exec(compile({tests!r}, "tests.py", "exec"))
"""


@register_reward("code", seconds=600.0)  # tests have limits of their own; this one is for a batch of endless programs
def code_reward(
    completions: Sequence[Any], *, tests: Sequence[str | Sequence[str]], **columns: Any
) -> list[float | None]:
    '''Share of tests that the program passes, and 0.5 more if the program stands in the answer.

    The program is the last code block of the last answer, or else of the completion; without a program, 0.0. Each test
    runs in a process of its own, with 1 second of CPU time and 1 GiB of memory. A program that imports a module of
    :data:`BLOCKED` (os, subprocess, socket, ...) passes no test. This keeps accidents away; it is no protection against
    hostile code.

    Args:
        completions: texts or lists of messages.
        tests: for each completion, a module with functions `test_...` without arguments, as pytest takes them, or a
            list of programs that fail by an exception. They find the program's names, and the module `solution`.

    Returns:
        Numbers in [0, 1.5]; None without tests.

    Raises:
        OSError: the system has no limits for processes (Windows).

    Example:
        >>> answer = """<answer>
        ... ```python
        ... def add(a, b):
        ...     return a + b
        ... ```
        ... </answer>"""
        >>> code_reward([answer], tests=[["assert add(2, 3) == 5", "assert add(2, 3) == 6"]])
        [1.0]
    '''
    pairs = list(zip(texts_of(completions), tests, strict=True))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(min(cores, 16)) as pool:  # threads, which only wait for processes
        return list(pool.map(lambda pair: _score(*pair), pairs))


def split_tests(tests: str | Sequence[str]) -> list[tuple[str, str]]:
    """The tests one by one: (code that defines it, code that calls it). Empty if there are none, or they do not parse.

    Example:
        >>> split_tests("from solution import f\\ndef test_f(): assert f() == 1")
        [('from solution import f\\ndef test_f(): assert f() == 1', 'test_f()')]
        >>> split_tests(["assert f() == 1"])
        [('assert f() == 1', '')]
    """
    if not isinstance(tests, str):
        return [(test, "") for test in tests]
    functions = [node for node in _parsed(tests) or () if isinstance(node, ast.FunctionDef)]
    return [(tests, f"{each.name}()") for each in functions if each.name.startswith("test") and not _has_to_get(each)]


def blocked_imports(program: str) -> set[str]:
    """The modules of :data:`BLOCKED` that a program imports; all of them if it does not parse.

    Example:
        >>> sorted(blocked_imports("import os.path as path, math\\nfrom sys import exit"))
        ['os', 'sys']
    """
    body = _parsed(program)
    if body is None:
        return set(BLOCKED)
    found: set[str] = set()
    for node in ast.walk(ast.Module(body, [])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.Name) and node.id == "__import__":
            found.add("importlib")
    return {name.partition(".")[0] for name in found} & BLOCKED


def _score(text: str, tests: str | Sequence[str]) -> float | None:
    parts = split_tests(tests)
    if not parts:
        return None
    in_answer = _BLOCK.findall(last_closed_answer(text) or "")
    blocks = in_answer or _BLOCK.findall(text)
    return (_share_passed(blocks[-1], parts) if blocks else 0.0) + (0.5 if in_answer else 0.0)


def _share_passed(program: str, parts: list[tuple[str, str]]) -> float:
    if len(program) > LONGEST or blocked_imports(program):
        return 0.0
    whole = len({tests for tests, _ in parts}) == 1
    # a right program, the aim of all training, takes one process instead of one for each test
    if whole and len(parts) > 1 and _passes(program, parts[0][0], "\n".join(call for _, call in parts)):
        return 1.0
    return sum(_passes(program, *part) for part in parts) / len(parts)


def _passes(program: str, tests: str, calls: str) -> bool:
    code = _PROGRAM.format(program=program, tests=tests) + calls
    return runs_to_its_end(code, cpu_seconds=CPU_SECONDS, wall_seconds=WALL_SECONDS, megabytes=MEGABYTES)


def _parsed(program: str) -> list[ast.stmt] | None:
    """The statements of a program; None if it is none."""
    try:
        return ast.parse(program).body
    except (SyntaxError, ValueError, MemoryError, RecursionError):  # null bytes; nested too deeply
        return None


def _has_to_get(function: ast.FunctionDef) -> bool:
    """Whether a function has arguments without a default: fixtures and parameters of pytest."""
    given = function.args
    return len(given.posonlyargs) + len(given.args) > len(given.defaults) or None in given.kw_defaults
