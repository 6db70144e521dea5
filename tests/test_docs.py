"""Pages keep their word: Python in docs/ runs, commands and links exist, the tutorial runs top to bottom, shortened."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import documents, programs
from tests.documents import DOCS, PAGES, ROOT, blocks, name_of

TUTORIAL = DOCS / "teach-a-bert-to-chat.md"  # its commands run below
LOG = ROOT / "benchmarks" / "LOG.md"  # names programs as they were
# what makes a run of minutes one of seconds; each must occur
SHORTER = {
    "--nproc-per-node 2": "--nproc-per-node 1",
    "--num_train_epochs 80": "--max_steps 2",
    "[train:200,test:40]": "[train:40,test:4]",
    "--questions 100": "--questions 3",
    "--visualize False": "--visualize False --steps 4 --max_new_tokens 8 --block_size 8",
    "--chat True": "--chat True --steps 4 --max_new_tokens 8 --block_size 8",
}
SETS_UP = re.compile(r"^(make setup|\. \.venv/bin/activate|dllm doctor)\b")  # done already, where this runs


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=name_of)
def test_python_runs(page):
    if page.stem == "serving":
        pytest.importorskip("fastapi", reason="FastAPI has left Python 3.10")
    documents.run_python(page)


# the log tells of programs as they were; the tutorial's commands run below
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page not in (TUTORIAL, ROOT / "benchmarks/LOG.md")], ids=name_of
)
def test_commands_exist(page):
    for words in documents.commands(page):
        documents.check(words)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([\w-]+))?\)", page.read_text())
    for link, section in links:
        target = (page.parent / link).resolve() if link else page
        assert target.exists(), f"{page.name} links {link}"
        if section:
            titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert section in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [page for page in PAGES if page != LOG], ids=name_of)
def test_paths_exist(page):
    """Those in code spans; <op> stands for any operation."""
    folders = "benchmarks|csrc|dllm|dllm_kernels|docs|examples|scripts|tests"
    named = re.findall(rf"`((?:{folders})/[\w./<>-]*)`", page.read_text())
    assert [path for path in named if not (ROOT / path.replace("<op>", "truncation_floor")).exists()] == []


def test_every_page_can_be_reached_from_the_readme():
    reached, pages = set(), [documents.README]
    while pages:
        page = pages.pop()
        reached.add(page)
        linked = re.findall(r"\]\((?!https?:)([^)#\s]+\.md)", page.read_text())
        pages += {(page.parent / link).resolve() for link in linked} - reached
    assert set(PAGES) <= reached


def test_the_tree_shows_every_folder_and_only_what_is_there():
    """In the block of docs/architecture.md that begins with csrc/: names, two spaces or more, and what they are."""
    tree = next(block for block in blocks(DOCS / "architecture.md", "text") if block.startswith("csrc/"))
    folders: dict[int, Path] = {}
    shown = set()
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        parent = next((folders[i] for i in sorted(folders, reverse=True) if i < indent), ROOT)
        for name in itertools.takewhile(re.compile(r"[\w./]+[/.]\w*").fullmatch, re.split(r"\s{2,}", line.strip())):
            assert (parent / name).exists(), f"the tree shows {parent / name}"
            folders = {i: folder for i, folder in folders.items() if i < indent} | {indent: parent / name}
            shown.add(parent / name)
    packages = {file.parent for part in ("dllm", "dllm_kernels", "benchmarks") for file in (ROOT / part).rglob("*.py")}
    assert packages - shown == set()


# bash reads the tutorial and notes its commands, a folder each: words, and what was piped in. torchrun with one process
# is that process
NOTES = """
note() {
  local folder="$NOTES/$(ls "$NOTES" | wc -l)"
  mkdir "$folder"; printf '%s\\0' "$@" >"$folder/words"
  if [[ -p /dev/stdin ]]; then cat; fi >"$folder/stdin"
}
dllm() { note -m dllm.cli "$@"; }
torchrun() { [[ "$1 $2" == "--nproc-per-node 1" ]] && note "${@:3}"; }
python() { case $1 in -c) command python "$@" ;; -u) note "${@:2}" ;; *) note "$@" ;; esac; }
"""


def commands(script: str, folder: Path) -> list[tuple[list[str], str]]:
    """Words and input of the programs that a shell script starts, in order; it stops at the first line that fails."""
    folder.mkdir()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path, "NOTES": str(folder)}
    line = ["bash", "-euo", "pipefail", "-c", NOTES + script]
    done = subprocess.run(line, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    noted = [folder / str(number) for number in range(len(list(folder.iterdir())))]
    return [((one / "words").read_text().split("\0")[:-1], (one / "stdin").read_text()) for one in noted]


def test_the_tutorial_runs(tmp_path):
    """In a folder of its own beside the examples."""
    for name in ("examples", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    script = "\n".join(blocks(TUTORIAL, "sh"))
    for long, short in SHORTER.items():
        assert long in script, long
        script = script.replace(long, short)
    script = "\n".join(line for line in script.splitlines() if not SETS_UP.match(line))
    found = commands(script, tmp_path / "notes")
    assert len(found) == 6
    told = ""
    for words, lines in found:
        done = programs.run(*words, cwd=tmp_path, lines=lines, environment={"HF_HUB_OFFLINE": "1"})
        assert done.returncode == 0, (words, done.stderr[-3000:])
        told += done.stdout
    assert (tmp_path / "models/minilm-chat/checkpoint-final/model.safetensors").exists()
    assert '"questions": 3' in told
