"""Code tasks: from an answer to a program, and pass@1.

The functions that make programs are filters of lm-eval: `responses[i]` are the answers to `documents[i]`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

from dllm.sandbox import runs_to_its_end

FENCE = "```"
_BLOCK = re.compile(r"```(?:[\w+-]*)[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
Responses = Sequence[Sequence[str]]
Documents = Sequence[dict[str, Any]]


def pass_at_1(references: Sequence[str], predictions: Sequence[Sequence[str]]) -> float:
    """The share of programs that pass their tests: pass@1 for any number of programs per question.

    Args:
        references: the tests of each question, as code that runs behind the program.
        predictions: the programs of each question.

    Example:
        >>> pass_at_1(["assert add(2, 3) == 5"], [["def add(a, b): return a + b", "def add(a, b): return a * b"]])
        0.5
    """
    passed = [
        runs_to_its_end(f"{program}\n{tests}\n")
        for tests, programs in zip(references, predictions, strict=True)
        for program in programs
    ]
    return sum(passed) / len(passed)


def prompt_and_text(responses: Responses, documents: Documents) -> list[list[str]]:
    """The prompt, and the answer up to its first code fence.

    Example:
        >>> prompt_and_text([["    return 1\\n```\\nThis returns 1."]], [{"prompt": "def one():\\n"}])
        [['def one():\\n    return 1\\n']]
    """
    return [
        [document["prompt"] + until_fence(text) for text in texts] for texts, document in _pairs(responses, documents)
    ]


def text_before_fence(responses: Responses, documents: Documents) -> list[list[str]]:
    """The answer up to its first code fence: its beginning has opened one."""
    return [[until_fence(text) for text in texts] for texts in responses]


def first_block(responses: Responses, documents: Documents) -> list[list[str]]:
    """The first code block of the answer, or the whole answer if it has none.

    Example:
        >>> first_block([["Here it is:\\n```python\\nx = 1\\n```\\nor\\n```\\nx = 2\\n```"]], [{}])
        [['x = 1\\n']]
    """
    return [[found[1] if (found := _BLOCK.search(text)) else text for text in texts] for texts in responses]


def between_marks(responses: Responses, documents: Documents) -> list[list[str]]:
    """What stands between [BEGIN] and [DONE]. The prompt may have opened with [BEGIN] already.

    Example:
        >>> between_marks([["x = 1\\n[DONE]\\nNext task"]], [{}])
        [['x = 1\\n']]
    """
    return [[text.split("[DONE]")[0].split("[BEGIN]")[-1] for text in texts] for texts in responses]


def prompt_and_block(responses: Responses, documents: Documents) -> list[list[str]]:
    """The prompt and the code of the Python block that the prompt has opened, reduced to what the entry point needs.

    What the prompt itself defines stays: some tests of HumanEval call it.
    """
    return [[_needed(document, text) for text in texts] for texts, document in _pairs(responses, documents)]


def keep_needed(program: str, names: Sequence[str]) -> str:
    """A program without the definitions that `names` do not need, without other statements, and without what stands
    behind its last line that parses. Imports stay. A program that does not define all of `names` is returned as it is.

    Example:
        >>> print(keep_needed("import math\\ndef f(): return g()\\ndef g(): return 1\\nprint(f())\\nThe end.", ["f"]))
        import math
        def f(): return g()
        def g(): return 1
    """
    lines, body = _longest_program(program)
    defined: dict[str, list[ast.stmt]] = {}
    for node in body:
        for name in _defined_by(node):
            defined.setdefault(name, []).append(node)
    if not set(names) <= set(defined):
        return program
    wanted, open_names = set(), list(names)
    while open_names:
        name = open_names.pop()
        if name in wanted or name not in defined:
            continue
        wanted.add(name)
        open_names += [used.id for node in defined[name] for used in ast.walk(node) if isinstance(used, ast.Name)]
    kept = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom) or wanted & set(_defined_by(node))]
    return "\n".join("\n".join(lines[_first_line(node) - 1 : node.end_lineno]) for node in kept)


def until_fence(text: str) -> str:
    """The text before the first code fence."""
    return text.split(FENCE)[0]


def _pairs(responses: Responses, documents: Documents) -> zip:
    return zip(responses, documents, strict=True)


def _needed(document: dict[str, Any], text: str) -> str:
    """The program of one answer to a question of HumanEval."""
    answer = text.split(f"{FENCE}python", 1)[-1].removeprefix("\n")  # an answer that opens its block again begins there
    program = f"{document['prompt']}\n{until_fence(answer)}"
    own = [name for node in _longest_program(document["prompt"])[1] for name in _defined_by(node)]
    return keep_needed(program, [*own, document["entry_point"]])


def _longest_program(text: str) -> tuple[list[str], list[ast.stmt]]:
    """The longest beginning, in lines, that is a program; and its statements."""
    lines = text.split("\n")  # as ast counts them
    for count in range(len(lines), 0, -1):
        try:
            return lines[:count], ast.parse("\n".join(lines[:count])).body
        except (SyntaxError, ValueError):  # ValueError: null bytes
            continue
    return [], []


def _defined_by(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]


def _first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
