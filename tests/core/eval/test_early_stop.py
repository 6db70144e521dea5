"""The program that measures what it saves to end rows early."""

import json

import pytest

from benchmarks import early_stop

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_cost_falls_and_the_texts_stay(capsys):
    assert early_stop.main(["--questions", "1", "--batch-size", "1", "--block-size", "8"]) == 0
    row = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    whole, ends, sentence = (case["forwards"] for case in row["rows"])
    assert whole == 64 and sentence < ends < whole


def test_other_texts_are_reported(monkeypatch):
    monkeypatch.setitem(early_stop.CASES, "EOS", (("e",), {}))
    with pytest.raises(RuntimeError, match="texts must not depend on when a row ends"):
        early_stop.compare([8], 1, 1)
