"""The comparison of fixed batches with places that are taken at once, at its smallest."""

import json

from benchmarks import refill


def test_every_way_gives_the_same_answers(capsys):
    arguments = ["--requests", "3", "--rows", "2", "--rounds", "1", "--sampler", "threshold 0.9"]
    assert refill.main(arguments) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert [row["way"] for row in rows] == list(refill.ways(2))
    assert all(row["other"] == 0 and row["seconds"] >= row["until, s"] > 0 for row in rows)
