"""The pages in docs/ keep their word: their Python runs, and the tutorial's commands run top to bottom, shortened."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import programs

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
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


def blocks(page: Path, language: str) -> list[str]:
    """The contents of a page's fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_python_runs(page):
    """One namespace, top to bottom, as a reader would paste it."""
    namespace = {"__name__": page.stem}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([\w-]+))?\)", page.read_text())
    for link, section in links:
        target = (page.parent / link).resolve() if link else page
        assert target.exists(), f"{page.name} links {link}"
        if section:
            titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert section in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


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
    script = "\n".join(blocks(DOCS / "teach-a-bert-to-chat.md", "sh"))
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
