"""Pages of this repository: their code blocks, and whether the commands that they name exist with those options."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import re
import shlex
from pathlib import Path

from tests import programs

ROOT = Path(__file__).parents[1]
README, DOCS = ROOT / "README.md", ROOT / "docs"
PAGES = sorted(ROOT.glob("*.md")) + sorted(DOCS.glob("*.md")) + sorted((ROOT / "benchmarks").glob("*.md"))


def name_of(page: Path) -> str:
    """The page's path in the repository, which names a test."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[str]:
    """The contents of a page's fenced code blocks in one of `languages`."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [content for language, content in found if language in languages]


def run_python(page: Path) -> int:
    """Run a page's Python in one namespace, top to bottom, as a reader would paste it; return the number of blocks."""
    namespace = {"__name__": page.stem}
    found = blocks(page, "python")
    for block in found:
        exec(compile(block, str(page), "exec"), namespace)
    return len(found)


def commands(page: Path) -> list[list[str]]:
    """The words of every command in a page's shell blocks and code spans, without prompts, comments and settings."""
    found = []
    spans = re.findall(r"`((?:bash|dllm|make|pip|pytest|python)(?: [^`]+)?)`", page.read_text())
    for line in [*spans, *_shell_lines(page)]:
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|&;")
        lexer.whitespace_split = True
        for separator, words in itertools.groupby(lexer, lambda word: word.strip("|&;") == ""):
            words = list(itertools.dropwhile(lambda word: re.match(r"\w+=", word), words))
            if words and not separator:
                found.append(words)
    return [words for words in found if len(words) > 1]


def _shell_lines(page: Path) -> list[str]:
    text = "\n".join(blocks(page, "sh", "bash", "shell", "console"))
    return text.replace("\\\n", " ").splitlines()


def check(words: list[str]) -> None:
    """Fail where a command names a program, module, file, target or option that is not there."""
    program, *arguments = words
    program = program.removeprefix(".venv/bin/")
    assert program in CHECKS, f"{program}: a page names a program that this test does not know"
    CHECKS[program](arguments)


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
    elif arguments[0].endswith(".py"):
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
