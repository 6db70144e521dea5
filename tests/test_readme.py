"""The README keeps its word: its Python runs, its commands exist with those options, its numbers were measured."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests import programs

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def blocks(*languages: str) -> list[str]:
    """The contents of README's fenced code blocks in one of `languages`."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    return [content for language, content in found if language in languages]


def commands() -> list[list[str]]:
    """The words of every command in README's shell blocks, without prompts, comments and settings before it."""
    found = []
    for block in blocks("sh", "bash", "shell", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|&;")
            lexer.whitespace_split = True
            for separator, words in itertools.groupby(lexer, lambda word: word.strip("|&;") == ""):
                words = list(itertools.dropwhile(lambda word: re.match(r"\w+=", word), words))
                if words and not separator:
                    found.append(words)
    return found


@functools.cache
def help_text(*program: str) -> str:
    """What a program of this repository prints for --help."""
    done = programs.run(*program, "--help")
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_program(program: list[str], arguments: list[str]) -> None:
    """Every option stands in the program's help; every argument that looks like a path of the repository exists."""
    options = {word.partition("=")[0] for word in arguments if re.match(r"-{1,2}[a-zA-Z]", word)}
    unknown = {option for option in options if not re.search(rf"(?<![\w-]){option}(?![\w-])", help_text(*program))}
    assert not unknown, f"{' '.join(program)} has no {unknown}"
    for word in arguments:
        if re.match(r"(tests|benchmarks|scripts|examples|docs)/", word):
            assert (ROOT / word.partition("::")[0]).exists(), f"there is no {word}"


def check_python(arguments: list[str]) -> None:
    if arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1]) is not None, f"there is no module {arguments[1]}"
        check_program(arguments[:2], arguments[2:])
    else:
        assert (ROOT / arguments[0]).is_file(), f"there is no {arguments[0]}"
        check_program(arguments[:1], arguments[1:])


def check_make(arguments: list[str]) -> None:
    """Targets and settings stand in the Makefile; ARGS suits the program that the target passes it on to."""
    makefile = (ROOT / "Makefile").read_text()
    for word in arguments:
        name, is_setting, value = word.partition("=")
        rule = rf"\b{name}\b" if is_setting else rf"^{name}:"
        assert re.search(rule, makefile, re.MULTILINE), f"the Makefile has no {name}"
        if name == "ARGS":
            recipe = re.search(rf"^{arguments[0]}:.*\n\t\$\(RUN\) (.*) \$\(ARGS\)$", makefile, re.MULTILINE)
            assert recipe, f"make {arguments[0]} passes no ARGS on"
            program = itertools.takewhile(lambda word: not word.startswith("--"), recipe[1].split())
            check_program(list(program), shlex.split(value))


def check_pip(arguments: list[str]) -> None:
    assert arguments[0] == "install"
    extras = re.search(r"optional-dependencies\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(), re.DOTALL)[1]
    for extra in re.findall(r"\.\[([\w,-]+)\]", " ".join(arguments)):
        for name in extra.split(","):
            assert re.search(rf"^{name} =", extras, re.MULTILINE), f"there is no extra {name}"


def check_bash(arguments: list[str]) -> None:
    assert (ROOT / arguments[0]).is_file(), f"there is no {arguments[0]}"


CHECKS = {
    "bash": check_bash,
    "make": check_make,
    "python": check_python,
    "pip": check_pip,
    "pytest": lambda arguments: check_program(["-m", "pytest"], arguments),
    "dllm": lambda arguments: check_program(["-m", "dllm.cli", *arguments[:1]], arguments[1:]),
    "git": lambda arguments: None,
    "cd": lambda arguments: None,
}


def test_commands_exist():
    found = commands()
    assert {("make", "demo"), ("make", "test")} <= {tuple(words) for words in found}
    for program, *arguments in found:
        program = program.removeprefix(".venv/bin/")
        assert program in CHECKS, f"{program}: README names a program that this test does not know"
        CHECKS[program](arguments)


def test_python_runs():
    """One namespace, top to bottom, as a reader would paste it."""
    found = blocks("python")
    assert found, "README shows no Python"
    namespace = {"__name__": "readme"}
    for block in found:
        exec(compile(block, str(README), "exec"), namespace)


def test_results_are_those_that_were_measured():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.table", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["README.md", "benchmarks/RESULTS.md", "benchmarks/LOG.md"])
def test_links_lead_somewhere(name):
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", (ROOT / name).read_text())
    assert links and [link for link in links if not (ROOT / name).parent.joinpath(link).exists()] == []


def test_tree_shows_what_is_there():
    """In the block that draws the tree: a name a line or several, two spaces or more between them and what they are."""
    tree = next(block for block in blocks("text") if re.search(r"^dllm/", block, re.MULTILINE))
    folders: dict[int, Path] = {}
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        parent = next((folders[i] for i in sorted(folders, reverse=True) if i < indent), ROOT)
        for name in itertools.takewhile(re.compile(r"[\w./]+[/.]\w*").fullmatch, re.split(r"\s{2,}", line.strip())):
            assert (parent / name).exists(), f"the tree shows {parent / name}"
            folders = {i: folder for i, folder in folders.items() if i < indent} | {indent: parent / name}
