"""The benchmark of Edit Flows' speed: both programs do the same, rows say what was measured, wrong losses end it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import edit_flows, edit_programs, models
from benchmarks.edit_toy import PROMPT, Toy
from tests.models import MASK_ID, tiny

SHORT = ["--batch", "2", "--answers", "6", "10", "--masks", "8", "--tau", "0.1", "--repeats", "2"]
SHORT += ["--sampling-repeats", "1"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A tiny ModernBERT in a folder whose config names all special tokens."""
    path = tmp_path_factory.mktemp("models") / "tiny-modernbert"
    model = tiny("modernbert", bos_token_id=4, eos_token_id=2)
    model.config.mask_token_id = MASK_ID
    model.save_pretrained(path)
    return str(path)


@pytest.fixture
def toy(folder) -> Toy:
    toy = Toy(models.load(folder, torch.float32, torch.device("cpu")), (6, 10), masks=8, seed=0)
    toy.fit_rates(steps=100)
    return toy


def test_measures_both_programs(folder, tmp_path, capsys):
    status = edit_flows.main(["--model", folder, "--out", str(tmp_path), *SHORT])
    printed = capsys.readouterr().out
    case = json.loads(printed.splitlines()[-1])["cases"][0]
    row = json.loads(Path(case["row"]).read_text())
    training, sampling = row["training"], row["sampling"]
    assert status == 0 and row["kind"] == "edit_flows" and row["settings"]["answers"] == [6, 10]
    assert training["losses"]["ours"] == pytest.approx(training["losses"]["published"], rel=1e-5)
    assert sampling["same_texts"] == 1.0 and len(sampling["ours"]["answer_tokens"]) == 2
    for found in (training, sampling):
        medians = [found[program]["seconds"]["median"] for program in edit_programs.PROGRAMS]
        assert found["faster"] == pytest.approx(medians[0] / medians[1])
        assert f"{found['faster']:.1f}x" in printed
        unused = found["published"]["split_seconds"]["unused"] / medians[1]
        assert 0 < unused == pytest.approx(found["faster"] - found["faster_than_without_unused"])
        assert "unused" not in found["ours"]["split_seconds"]
    assert training["floor"]["seconds"]["runs"] == 2
    assert f"the floor is {training['share_of_floor']:.0%} of" in printed


def test_a_wrong_loss_is_not_timed(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(edit_programs, "MAX_W", 1e-3)  # of the published program alone
    assert edit_flows.main(["--model", folder, "--out", str(tmp_path), *SHORT]) == 1
    assert "losses must be equal" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_bad_options_end_it(folder, tmp_path, capsys):
    options = ["--model", folder, "--out", str(tmp_path)]
    for wrong in (["--answers", "9", "8"], ["--tau", "0"], ["--batch", "0"]):
        with pytest.raises(SystemExit):
            edit_flows.main([*options, *wrong])
    assert edit_flows.main([*options, "--answers", "6", "200"]) == 2
    assert "at most 96 tokens" in capsys.readouterr().err


def test_samples_have_the_tokens_that_were_asked_for(toy):
    samples = toy.samples(20, number=1, different=2)
    assert all(len(set(sample["input_ids"][PROMPT:])) <= 2 for sample in samples)
    assert {len(sample["input_ids"]) - PROMPT for sample in samples} == set(range(6, 11))
    assert samples == toy.samples(20, number=1, different=2) != toy.samples(20, number=2, different=2)


def test_rates_tell_masks_from_words(toy):
    """Masks are substituted or deleted; words stay."""
    batch = toy.collate(toy.samples(8, number=50))
    with torch.no_grad():
        rates = toy.model.rates(toy.model.hidden_states(batch["input_ids"], batch.get("attention_mask")))
    masks = batch["input_ids"] == MASK_ID
    changes = rates[..., :2].sum(2)
    assert changes[masks].mean() > 2 * changes[:, :PROMPT].mean()
    assert all(parameter.grad is None for parameter in toy.model.parameters())
    assert all(parameter.requires_grad for parameter in toy.model.parameters())
