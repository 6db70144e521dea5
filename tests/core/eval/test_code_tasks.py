"""Generated programs: what is made of an answer, and what a program may do."""

from __future__ import annotations

import os
import time

import pytest

from dllm.core.eval.tasks import code
from dllm.sandbox import runs_to_its_end

PROMPT = 'import math\n\n\ndef helper(x):\n    return x + 1\n\n\ndef add(a, b):\n    """Add."""\n'
DOCUMENT = dict(prompt=PROMPT, entry_point="add")

posix = pytest.mark.skipif(os.name != "posix", reason="limits of processes are those of Unix")


@posix
@pytest.mark.parametrize(
    "program",
    [
        "raise ValueError",
        "def f(:",
        "raise SystemExit(0)",
        "import os\nos._exit(0)",
        "assert 2 + 2 == 5",
        "import sys\nassert sys.stdin.read() == 'x'",
        "x = bytearray(1 << 40)",
        "import os\nassert 'DLLM_SECRET' in os.environ",
        "import sys\nassert len(sys.argv) > 1",
    ],
)
def test_a_program_that_fails(program, monkeypatch):
    monkeypatch.setenv("DLLM_SECRET", "1")
    assert not runs_to_its_end(program)


@posix
@pytest.mark.parametrize(
    "program", ["", "print('é' * 1000)", "open('x', 'w').write('y')", "import random, math, typing"]
)
def test_a_program_that_passes(program, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert runs_to_its_end(program)
    assert not list(tmp_path.iterdir())


@posix
@pytest.mark.parametrize("loop", ["while True: pass", "import time\ntime.sleep(1000)"])
def test_a_program_that_does_not_end_is_ended(loop):
    began = time.monotonic()
    assert not runs_to_its_end(loop, cpu_seconds=1, wall_seconds=2.0)
    assert time.monotonic() - began < 30


@posix
def test_what_a_program_leaves_behind_is_ended(tmp_path):
    alive = tmp_path / "alive"
    child = f"import time\nwhile True:\n    open({str(alive)!r}, 'a').write('x')\n    time.sleep(0.05)\n"
    program = (
        f"import os, subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {child!r}])\n"
        f"while not os.path.exists({str(alive)!r}): time.sleep(0.01)\n"
    )
    assert runs_to_its_end(program)
    size = alive.stat().st_size
    time.sleep(0.5)
    assert alive.stat().st_size == size


def test_pass_at_1_is_the_mean_over_the_programs():
    tests = ["assert one() == 1", "assert two() == 2"]
    programs = [["def one(): return 1"], ["def two(): return 3"]]
    assert code.pass_at_1(tests, programs) == 0.5
    with pytest.raises(ValueError):
        code.pass_at_1(tests, programs[:1])


@pytest.mark.parametrize(
    "answer",
    [
        "\n    return a + b\n```\nThis adds.",  # the body only
        "\ndef add(a, b):\n    return a + b\n```",
        "\n```python\ndef add(a, b):\n    return a + b\n```\nmore",  # the block is opened once more
        "\ndef add(a, b):\n    return plus(a, b)\n\ndef plus(a, b):\n    return a + b\n\nprint(add('x', 1))\nIt prints",
    ],
)
def test_the_program_of_an_instruct_answer(answer):
    ((program,),) = code.prompt_and_block([[answer]], [DOCUMENT])
    assert runs_to_its_end(f"{program}\nassert add(2, 3) == 5 and helper(1) == 2 and math.pi > 3")
    assert "print" not in program and "```" not in program


def test_an_answer_without_code_gives_a_program_that_fails():
    ((program,),) = code.prompt_and_block([["I cannot do this."]], [DOCUMENT])
    assert not runs_to_its_end(f"{program}\nassert add(2, 3) == 5")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("```python\nx = 1\n```", "x = 1\n"),
        ("words\n```\nx = 1", "x = 1"),  # never closed
        ("x = 1", "x = 1"),
    ],
)
def test_the_first_block(answer, expected):
    assert code.first_block([[answer]], [{}]) == [[expected]]


@pytest.mark.parametrize("answer", ["x = 1\n[DONE]\ny", "[BEGIN]\nx = 1\n[DONE]", "x = 1"])
def test_between_marks(answer):
    ((found,),) = code.between_marks([[answer]], [{}])
    assert found.strip() == "x = 1"


def test_decorators_and_assignments_stay_with_their_names():
    program = "import functools\nN = 2\nM = 3\n@functools.cache\ndef f(x: int = N) -> int:\n    return x\nf(1)\n"
    expected = "import functools\nN = 2\n@functools.cache\ndef f(x: int = N) -> int:\n    return x"
    assert code.keep_needed(program, ["f"]) == expected
    assert code.keep_needed(program, ["g"]) == program
