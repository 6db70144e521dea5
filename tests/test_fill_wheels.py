"""The script that fills a folder with wheels: which ones it asks for, and that torch is not among them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "fill_wheels.sh"
FAKE = """#!/usr/bin/env bash
# stands in for the interpreter: notes down what pip is asked for, and runs everything else
[[ $1 == -m ]] || exec "{python}" "$@"
printf '%s\\n' "$*" >>"{log}"
while [[ $# -gt 0 ]]; do
  case $1 in
    --constraint) cp "$2" "{log}.constraints" ;;
    --find-links) cp "$2"/*.whl "{wheels}/" 2>/dev/null ;;
  esac
  shift
done
exit 0
"""


@pytest.fixture
def fill(tmp_path):
    """Runs the script; returns what it printed, the pip commands and the constraints they were given."""
    log, wheels, python = tmp_path / "log", tmp_path / "wheels", tmp_path / "python"
    wheels.mkdir()
    python.write_text(FAKE.format(python=sys.executable, log=log, wheels=wheels))
    python.chmod(0o755)

    def run(*arguments, **environment):
        words = ["bash", str(SCRIPT), *(arguments or (str(wheels),))]
        environment = {**os.environ, "PYTHON": str(python), **environment}
        done = subprocess.run(words, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout, log.read_text().splitlines(), Path(f"{log}.constraints").read_text().splitlines()

    run.wheels = wheels
    return run


def test_the_pins_are_those_of_the_other_python(fill):
    for version, numpy in (("3.10", "numpy==2.2.6"), ("3.13", "numpy==2.4.6")):
        said, commands, pins = fill(PYTHON_VERSION=version)
        assert numpy in pins and not any(";" in pin or pin.startswith(("torch==", "triton==")) for pin in pins)
        assert f"--python-version {version} " in commands[-1] and "--only-binary=:all:" in commands[-1]
        assert said.startswith("0 wheels in ")


def test_torch_is_stood_in_for(fill):
    _, commands, _ = fill()
    assert "pytest" in commands[0].split() and any(line.endswith(" liger-kernel") for line in commands)
    assert not any(word.startswith("torch") for line in commands for word in line.split())
    assert not list(fill.wheels.glob("torch-*"))  # nor is the stand-in left behind


def test_torch_where_it_is_asked_for(fill):
    _, commands, pins = fill(TORCH="torch==2.11.0")
    assert "torch==2.11.0" in commands[0].split() and "torch==2.11.0" in pins


def test_named_packages_only(fill, tmp_path):
    _, commands, _ = fill(str(tmp_path / "wheels"), "liger-kernel")
    assert len(commands) == 1 and commands[0].endswith(" liger-kernel")


def test_no_folder():
    done = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 2 and "scripts/fill_wheels.sh DIR" in done.stderr and "set -" not in done.stderr
