"""benchmarks/nemotron_diffusion.py on a tiny model: the row, its table, and the tokens of the published loop."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_row_its_table_and_the_same_tokens(tmp_path, capsys):
    from benchmarks import nemotron_diffusion, table

    sizes = ["--vocab", "600", "--block", "8", "--hidden", "128", "--repeats", "1", "--temperature", "0", "0.5"]
    assert nemotron_diffusion.main([*sizes, "--batch", "1", "3", "--threshold", "0.3", "--out", str(tmp_path)]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    (path,) = tmp_path.glob("*-nemotron_diffusion-*.json")
    row = json.loads(path.read_text())
    assert row["results"] == last["results"]
    assert [result["same_tokens"] for result in row["results"]] == [1.0, 1.0, None, None]
    for result in row["results"]:
        most = 2 * 8 + 1  # a run for each token, and for what the last block leaves in the cache
        assert 4 <= result["runs"]["published"] <= most and result["speedup"]["published"] == 1
    assert row["results"][0]["runs"]["sampler"] == row["results"][0]["runs"]["published"] - 1 < 16
    text = table.table([row])
    assert "| 600, 3 rows, 0, float32 |" in text and "python benchmarks/nemotron_diffusion.py --vocab 600" in text
