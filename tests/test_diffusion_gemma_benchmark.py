"""benchmarks/diffusion_gemma.py on a tiny model: the row, its table and its plot."""

from __future__ import annotations

import json

import pytest

from tests.diffusion_gemma_models import needs_diffusion_gemma

pytestmark = [needs_diffusion_gemma, pytest.mark.usefixtures("one_thread")]


def test_a_row_its_table_and_its_plot(tmp_path, capsys):
    from benchmarks import diffusion_gemma, table

    sizes = ["--vocab", "600", "--canvas", "8", "--hidden", "32", "--steps", "2", "--repeats", "1"]
    where = ["--out", str(tmp_path), "--plot", str(tmp_path / "memory.svg")]
    assert diffusion_gemma.main([*sizes, "--batch", "1", "2", *where]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    (path,) = tmp_path.glob("*-diffusion_gemma-*.json")
    row = json.loads(path.read_text())
    assert row["results"] == last["results"] and [result["batch"] for result in row["results"]] == [1, 2]
    for result in row["results"]:
        assert (
            set(result["speedup"]) == {"transformers", "patched", "sampler"} and result["speedup"]["transformers"] == 1
        )
        assert result["body_seconds"] > 0
    text = table.table([row])
    assert "| 600, 2 rows of 8, float32 |" in text and "python benchmarks/diffusion_gemma.py --vocab 600" in text
    assert (tmp_path / "memory.svg").read_text().count("600 tokens") == 1
