"""The README keeps its word: its Python runs, its numbers were measured, its picture is there and small."""

from __future__ import annotations

import re

import pytest

from benchmarks import table
from tests.documents import DOCS, README, blocks, run_python


def test_it_begins_with_the_two_commands():
    assert [line.split()[:2] for line in blocks(README, "sh")[0].splitlines()] == [["make", "demo"], ["make", "test"]]


def test_python_runs():
    assert run_python(README)


def test_results_are_those_that_were_measured(capsys):
    assert table.main(["--check"]) == 0, capsys.readouterr().err


def test_speeds_and_shares_stand_in_generated_tables_only():
    """Numbers such as 1.9x and 90.4 % come from rows; outside the tables nobody would notice that they are old."""
    written = re.sub(r"<!-- results:begin.*?results:end -->", "", README.read_text(), flags=re.DOTALL)
    assert re.findall(r"\d+(?:\.\d+)? ?(?:%|x\b|times\b)", written) == []


def test_the_picture_moves_and_is_small():
    """A step a frame, below the megabyte that pages load at once; remade by scripts/denoising_gif.sh."""
    image = pytest.importorskip("PIL.Image").open(DOCS / "denoising.gif")
    assert "](docs/denoising.gif)" in README.read_text()
    assert image.n_frames > 40 and image.info["loop"] == 0
    assert (DOCS / "denoising.gif").stat().st_size < 1_000_000
