"""The benchmark of block caches, on a model of two tiny layers."""

import json
from pathlib import Path

from benchmarks import cached_decoding

SMALL = "--layers 2 --hidden 32 --heads 2 --vocab 97 --prompt 5 --new 12 --block 4 --steps 6 --repeats 1 --device cpu"


def test_cached_decoding(tmp_path, capsys):
    assert cached_decoding.main([*SMALL.split(), "--out", str(tmp_path)]) == 0
    row = json.loads(Path(json.loads(capsys.readouterr().out.strip().splitlines()[-1])["row"]).read_text())
    results = {result["loop"]: result for result in row["results"]}
    assert list(results) == ["bd3lm recomputed", "bd3lm cached", "full canvas", "dual cache"]
    assert row["same_tokens"] == 1.0 and all(result["forwards"] == 6 for result in row["results"])
    assert [results[name]["cache_bytes"] > 0 for name in results] == [False, True, False, True]
    assert results["bd3lm cached"]["speedup"] > 0 and results["dual cache"]["first_seconds"]["runs"] == 3
