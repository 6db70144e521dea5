"""How programs end: exit codes, one line for an expected error, a traceback for a bug."""

from __future__ import annotations

import contextlib
import gzip
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import zlib

import jinja2
import pytest
import safetensors
import torch

from dllm import cli
from dllm.exits import TRACEBACK, Interrupted, UsageError, ends_at_once, exit_code, explanation, is_expected, usage
from dllm.fast.sampling.loop import NoFiniteLogit


def called(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        return error
    raise AssertionError("it was to fail")


def checked(error):
    raise error


def needs_two(one, two):
    return one


EXPECTED = [
    lambda: checked(ValueError("steps must be at least 1, got 0")),
    lambda: checked(TypeError("text must be str, got int")),
    lambda: checked(jinja2.TemplateError("no such role")),
    lambda: jinja2.Template("{{ messages[0].name.deeper }}").render(messages=[{}]),
    lambda: checked(torch.OutOfMemoryError("CUDA out of memory")),
    lambda: checked(RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")),
    lambda: checked(MemoryError()),
    lambda: checked(NoFiniteLogit("row 0: no logit was finite at step 0")),
    lambda: open("/no/such/file"),
    lambda: b"\xff".decode(),
    lambda: json.loads("{"),
    lambda: __import__("no_such_package_anywhere"),
    lambda: checked(safetensors.SafetensorError("header too small")),
    lambda: gzip.decompress(gzip.compress(b"half of it is missing")[:20]),
    lambda: zlib.decompress(b"not packed"),
]
BUGS = [
    lambda: needs_two(1),
    lambda: None + 1,
    lambda: (lambda pair: needs_two(*pair))(None),
    lambda: list(zip([1], [1, 2], strict=True)),
    lambda: [][0],
    lambda: {}["name"],
    lambda: None.text,
    lambda: 1 // 0,
    lambda: torch.zeros(2) @ torch.zeros(3),
]


@pytest.mark.parametrize("number", range(len(EXPECTED)))
def test_an_expected_error_is_one_line(number, capsys, monkeypatch):
    assert is_expected(called(EXPECTED[number]))
    assert exit_code("program", EXPECTED[number]) == 1
    said = capsys.readouterr().err
    assert said.startswith("program: ") and said.count("\n") == 1 and len(said) > len("program: x\n")
    monkeypatch.setenv(TRACEBACK, "1")
    assert exit_code("program", EXPECTED[number]) == 1
    full = capsys.readouterr().err
    assert full.startswith("Traceback") and full.endswith(said)


@pytest.mark.parametrize("number", range(len(BUGS)))
def test_a_bug_is_not_hidden(number, capsys):
    error = called(BUGS[number])
    assert not is_expected(error)
    for work in (BUGS[number], lambda: in_usage(BUGS[number])):
        with pytest.raises(type(error)):
            exit_code("program", work)
        assert "please report it" in capsys.readouterr().err


def in_usage(work):
    with usage():
        work()


def test_exit_codes(capsys):
    assert exit_code("program", lambda: "done") == exit_code("program", lambda: 0) == 0
    assert exit_code("program", lambda: 3) == 3
    assert exit_code("program", lambda: in_usage(EXPECTED[0])) == 2
    assert capsys.readouterr().err == "program: steps must be at least 1, got 0\n"
    assert exit_code("program", lambda: in_usage(lambda: checked(NoFiniteLogit("row 0")))) == 1
    assert exit_code("program", lambda: checked(UsageError("no such option"))) == 2
    assert exit_code("program", lambda: checked(KeyboardInterrupt())) == 130
    assert exit_code("program", lambda: checked(Interrupted("stopped after step 3", 15))) == 143
    assert capsys.readouterr().err.endswith("program: interrupted\nprogram: stopped after step 3\n")


def test_explanations():
    assert explanation(called(lambda: open("/no/such/file"))) == "/no/such/file: No such file or directory"
    assert explanation(MemoryError()) == "out of memory: MemoryError"
    assert explanation(ValueError("first\n  second")) == "first second"
    assert explanation(jinja2.TemplateError("no such role")) == "the chat template failed: no such role"
    exceptions = pytest.importorskip("datasets.exceptions")
    error = exceptions.DatasetGenerationError("An error occurred")
    error.__cause__ = ValueError("line 3 is no JSON")
    assert explanation(error) == "An error occurred: line 3 is no JSON"


PROGRAM = "import sys; from dllm.exits import exit_code; sys.exit(exit_code('program', lambda: print('x' * {size})))"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
@pytest.mark.parametrize("size", [10, 100_000])  # what is written when the work ends, and in the middle of it
def test_output_that_goes_nowhere(size):
    program = PROGRAM.format(size=size)
    ended = 'import subprocess, sys; p = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, '
    ended += "stderr=subprocess.PIPE); p.stdout.close(); print(p.wait(), p.stderr.read().decode())"
    done = subprocess.run([sys.executable, "-c", ended, program], capture_output=True, text=True)
    assert done.stdout == "141 \n"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "program: [Errno 28] No space left on device\n")


LOADS = """
import signal
from dllm.exits import ends_at_once
with ends_at_once("program"):
    try:
        signal.raise_signal(signal.SIGINT)
    except BaseException:  # as callbacks do, and imports that look for several modules
        pass
print("it ran on")
"""


def test_an_interruption_that_nothing_can_swallow():
    done = subprocess.run([sys.executable, "-c", LOADS], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "program: interrupted\n")


IMPORTS = """
import signal, sys
from dllm import cli

class Finder:
    def find_spec(self, name, *_):
        if name.startswith("dllm."):
            try:
                signal.raise_signal(signal.SIGINT)
            except BaseException:
                raise ImportError("cannot load module more than once per process")

sys.meta_path.insert(0, Finder())
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("command", ["generate", "train", "eval"])
def test_a_command_that_is_interrupted_inside_an_import(command):
    done = subprocess.run([sys.executable, "-c", IMPORTS, command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, f"dllm {command}: interrupted\n")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a copy of this process")
@pytest.mark.parametrize("program, name", [("dllm.demo.generate", "load"), ("dllm.chat.program", "load_chosen")])
def test_a_command_that_is_interrupted_inside_a_load(program, name, monkeypatch):
    def load(*_):
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(importlib.import_module(program), name, load)
    child = os.fork()
    if not child:
        try:
            cli.main(["generate", "?"] if name == "load" else ["chat"])
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130


def test_an_interruption_is_an_exception_again_after_it():
    def load():
        with ends_at_once("program"):  # in a thread, whose signals go to the main one
            pass
        over.append(True)

    earlier, over = signal.getsignal(signal.SIGINT), []
    with ends_at_once("program"):
        thread = threading.Thread(target=load)
        thread.start()
        thread.join()
    assert over and signal.getsignal(signal.SIGINT) is earlier
