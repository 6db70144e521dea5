"""Answers on disk: read again by any rank, torn lines, keys, what tells models apart; a killed run loses none."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from dllm.core.eval.fingerprint import fingerprint
from dllm.core.eval.journal import Entry, Journal, key_of
from tests import programs

ENTRY = Entry([-1.25, True], 3, 2, 0.5, 0.0)


def test_what_is_written_is_read(tmp_path):
    first = Journal(tmp_path, rank=1)
    first.write("a", ENTRY)
    first.write("b", Entry('line\nand "quote" \N{SNOWMAN} \ud800', 3, 2, 0.5))
    for rank in (0, 1, 7):
        again = Journal(tmp_path, rank=rank)
        assert again.entries == first.entries
    assert Journal(None).read("a") is None


def test_a_torn_line_is_cut_off(tmp_path, caplog):
    journal = Journal(tmp_path)
    for name in "abc":
        journal.write(name, ENTRY)
    file = tmp_path / "rank-0.jsonl"
    whole = file.read_bytes()
    for length in (len(whole) - 1, len(whole) - 20, len(whole) // 3 + 1, 1, 0):
        file.write_bytes(whole[:length])
        kept = whole[:length].count(b"\n")
        again = Journal(tmp_path)
        assert len(again.entries) == kept
        again.write("d", ENTRY)
        lines = file.read_bytes().splitlines()
        assert len(lines) == kept + 1 and json.loads(lines[-1])["key"] == "d"


def test_a_damaged_line_is_run_again(tmp_path, caplog):
    journal = Journal(tmp_path)
    for name in "abc":
        journal.write(name, ENTRY)
    file = tmp_path / "rank-0.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    for damaged in (b"\0\0\0\n", b'{"key": "b"}\n', b"[1]\n", lines[1][:30] + b"\n"):
        file.write_bytes(lines[0] + damaged + lines[2])
        caplog.clear()
        assert set(Journal(tmp_path).entries) == {"a", "c"}
        assert "line 2 is not whole" in caplog.text


def test_a_key_is_of_everything():
    base = dict(kind="loglikelihood", arguments=("a", "b"), seed=1, settings={"mc_num": 8}, fingerprint="f")
    others = [
        dict(kind="generate_until"), dict(arguments=("a", "c")), dict(seed=2), dict(settings={"mc_num": 9}),
        dict(settings={}), dict(fingerprint="g"), dict(arguments=("ab", "")),
    ]  # fmt: skip
    keys = {key_of(**base | other) for other in [{}, *others]}
    assert len(keys) == len(others) + 1


def test_models_are_told_apart(shipped):
    model, tokenizer = shipped
    before = fingerprint(model, tokenizer)
    assert fingerprint(copy.deepcopy(model), tokenizer) == before
    trained = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(1e-4 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    assert fingerprint(trained, tokenizer) != before
    assert fingerprint(copy.deepcopy(model).to(torch.bfloat16), tokenizer) != before
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["a token"])
    assert fingerprint(model, other) != before


def test_settings_on_which_answers_depend(bert, tmp_path):
    """A run is resumed with another batch size or device, and not with other settings. The model's own, such as the
    dtype, are in its fingerprint."""
    from lm_eval.api.instance import Instance

    requests = [Instance("loglikelihood", {}, ("6 * 7 =", " 42"), 0, ("sums", 0, 1))]
    keys = {}
    for name, given in {
        "same": {}, "batch": dict(batch_size=3), "journal": dict(journal=str(tmp_path)), "steps": dict(steps=7),
        "rows": dict(tokens_per_forward=64), "mc": dict(mc_num=32), "cfg": dict(cfg=1.0), "seed": dict(seed=5),
        "dtype": dict(dtype="bfloat16"), "frame": dict(add_special_tokens=False),
        "published": dict(likelihood="as-published"),
        "published, batch": dict(likelihood="as-published", batch_size=16),
    }.items():  # fmt: skip
        lm = bert(**dict(seed=0) | given)
        (keys[name],) = lm.answering.keys("loglikelihood", lm.jobs("loglikelihood", requests))
    same = {name for name, key in keys.items() if key == keys["same"]}
    assert same == {"same", "batch", "journal", "rows", "steps", "dtype"}
    assert len({keys[name] for name in keys.keys() - same}) == len(keys) - len(same)


@pytest.mark.parametrize("count", [10])
def test_killed_at_any_moment(tmp_path, tasks, count):
    """Ten times a run is killed with signal 9, each time at another moment. What was answered stays answered, and in
    the end all numbers are those of a run that nobody killed."""
    done = programs.run("-m", "tests.core.eval.killed", str(tmp_path), tasks, str(count))
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["killed"] == count
    kept = told["kept"]  # answers in the journal after each kill
    assert kept == sorted(kept) and 0 < kept[-1] <= told["requests"]
    assert told["lost"] == 0
    assert told["resumed"] == kept[-1] and told["answered"] == told["requests"]
    assert told["results"] == told["undisturbed"]
