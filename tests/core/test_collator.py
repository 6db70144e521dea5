"""The corrupting collator: what it refuses, what it hands on."""

from __future__ import annotations

import logging
import pickle

import pytest
import torch

from dllm.core.schedulers import BaseAlphaScheduler, CosineAlphaScheduler, LinearAlphaScheduler
from dllm.core.trainers.collator import MDLMCollator
from tests.core.reference import Objective, corrupted
from tests.core.runs import SEED, VOCABULARY, pad_right, samples_of
from tests.models import MASK_ID, PAD_ID


def collator_of(base=pad_right, **options):
    defaults = dict(scheduler=LinearAlphaScheduler(), mask_id=MASK_ID, pad_id=PAD_ID, vocab_size=VOCABULARY, seed=SEED)
    return MDLMCollator(base=base, **(defaults | options))


def given(batch, **options):
    """A collator whose base gives this batch whatever the samples."""
    return collator_of(lambda _: batch, **options)([])


@pytest.mark.parametrize("right_shift", [False, True])
def test_against_the_formulae_one_sample_at_a_time(right_shift):
    samples = samples_of(6)
    batch = collator_of(right_shift=right_shift)(samples)
    columns = batch["input_ids"].shape[1]
    rows, targets, weights = [], [], []
    for i, sample in enumerate(samples):
        one = corrupted(sample["input_ids"], sample["labels"], SEED, 0, MASK_ID, Objective())
        length = len(one.tokens)
        assert batch["input_ids"][i].tolist() == one.noised + [PAD_ID] * (columns - length)
        assert batch["attention_mask"][i].tolist() == [1] * length + [0] * (columns - length)
        rows += [i * columns + (max(p - 1, 0) if right_shift else p) for p in one.masked]
        targets += [one.tokens[p] for p in one.masked]
        weights += one.weight
    corruption = batch["corruption"]
    assert corruption["rows"].tolist() == rows and corruption["targets"].tolist() == targets
    assert torch.allclose(corruption["weight"], torch.tensor(weights), rtol=1e-5)
    assert corruption["weight"].dtype == torch.float32
    assert corruption["maskable"].tolist() == [sum(label != -100 for label in s["labels"]) for s in samples]
    assert corruption["lengths"].tolist() == [len(s["input_ids"]) for s in samples]
    assert "labels" not in batch


def test_without_labels_all_that_is_attended_to_is_trained():
    def unlabelled(samples):
        batch = pad_right(samples)
        del batch["labels"]
        return batch

    samples = samples_of(6)
    batch = collator_of(unlabelled)(samples)
    assert batch["corruption"]["maskable"].tolist() == [len(s["input_ids"]) for s in samples]


def test_no_mask_where_nothing_is_padded():
    same = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}] * 2
    assert "attention_mask" not in collator_of()(same)
    assert collator_of()(same)["corruption"]["lengths"].tolist() == [3, 3]


def test_other_inputs_of_the_model_pass_through():
    batch = given({"input_ids": torch.tensor([[5, 6]]), "token_type_ids": torch.tensor([[0, 1]])})
    assert batch["token_type_ids"].tolist() == [[0, 1]]


def test_uniform_weight():
    weight = collator_of(uniform_weight=True)(samples_of(6))["corruption"]["weight"]
    assert len(weight) and bool((weight == 1).all())


def test_a_token_of_weight_zero_does_not_meet_the_head():
    """Cosine alpha has no slope at t = 1: everything is masked and nothing weighs anything."""
    batch = given({"input_ids": torch.tensor([[5, 6]])}, scheduler=CosineAlphaScheduler(), low=1 - 1e-9, high=1.0)
    assert batch["input_ids"].tolist() == [[MASK_ID, MASK_ID]]
    assert len(batch["corruption"]["rows"]) == 0


def test_epochs_draw_other_masks_and_reach_other_processes():
    collate, samples = collator_of(), samples_of(8)
    loader = torch.utils.data.DataLoader(
        samples, batch_size=8, collate_fn=collate, num_workers=1, persistent_workers=True
    )
    seen = []
    for epoch in (0, 1, 0):
        collate.epoch = epoch
        (batch,) = loader
        assert torch.equal(batch["input_ids"], collate(samples)["input_ids"])
        seen.append(batch["input_ids"])
    assert torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[1])


def test_nothing_to_mask_is_said_once(caplog):
    batch = {"input_ids": torch.tensor([[5, 6]]), "labels": torch.full((1, 2), -100)}
    collate = collator_of(lambda _: dict(batch))
    with caplog.at_level(logging.WARNING, "dllm"):
        for _ in range(3):
            assert len(collate([])["corruption"]["rows"]) == 0
    assert caplog.text.count("no token that may be masked") == 1


def test_given_times_take_the_place_of_drawn_ones():
    """Against plain arithmetic: everything at t = 1, nothing at t = 0, in between what is below the sample's own t."""
    times, samples = torch.tensor([1.0, 0.0, 0.25]), samples_of(3)
    batch = collator_of(lambda s: pad_right(s) | {"times": times}, low=0.4, high=0.6, uniform_weight=True)(samples)
    masked = (batch["input_ids"] == MASK_ID).sum(1).tolist()
    assert masked[:2] == [int(batch["corruption"]["maskable"][0]), 0]
    assert "times" not in batch and len(batch["corruption"]["rows"]) == sum(masked)
    weight = collator_of(lambda s: pad_right(s) | {"times": times})(samples)["corruption"]["weight"]
    torch.testing.assert_close(weight, torch.tensor([1 / (1 + 1e-6)] * masked[0] + [1 / (0.25 + 1e-6)] * masked[2]))


def test_given_times_mask_that_share():
    tokens = torch.arange(5, 130).repeat(200, 1)
    batch = given({"input_ids": tokens, "times": torch.full((200,), 0.3), "seeds": torch.arange(200)})
    share = float((batch["input_ids"] == MASK_ID).double().mean())
    assert abs(share - 0.3) < 5 * (0.3 * 0.7 / tokens.numel()) ** 0.5  # five standard deviations


def test_given_seeds_take_the_place_of_the_text():
    """The same text twice, in one batch: other masks under another seed, the same under the same."""
    tokens = torch.arange(5, 105).repeat(3, 1)
    batch = given({"input_ids": tokens, "seeds": torch.tensor([7, 8, 7]), "times": torch.full((3,), 0.5)})
    one, other, again = batch["input_ids"]
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert "seeds" not in batch
    lone = given({"input_ids": tokens[:1], "seeds": torch.tensor([7]), "times": torch.tensor([0.5])}, seed=SEED + 1)
    assert torch.equal(lone["input_ids"][0], one)


@pytest.mark.parametrize(
    "error, pattern, entry",
    [
        (ValueError, r"times must lie in \[0, 1\], got 1.5 for row 1", dict(times=torch.tensor([1.0, 1.5]))),
        (ValueError, r"times must lie in \[0, 1\], got nan for row 0", dict(times=torch.tensor([torch.nan, 1.0]))),
        (ValueError, r"times.*\[2\].*got \[1, 2\]", dict(times=torch.ones(1, 2))),
        (ValueError, r"seeds.*\[2\].*got \[3\]", dict(seeds=torch.arange(3))),
        (TypeError, r"times.*float32, got float64", dict(times=torch.ones(2, dtype=torch.float64))),
        (TypeError, r"seeds.*int64, got list", dict(seeds=[1, 2])),
    ],
)
def test_bad_times_and_seeds(error, pattern, entry):
    with pytest.raises(error, match=pattern):
        given({"input_ids": torch.tensor([[5, 6], [7, 8]])} | entry)


@pytest.mark.parametrize(
    "error, pattern, batch",
    [
        (ValueError, r"labels must equal input_ids.*label 7 for token 6 at row 0, position 1", dict(labels=[[5, 7]])),
        (ValueError, r"labels.*vocabulary \[0, 131\), got 131 at row 0, position 0", dict(labels=[[131, 6]])),
        (ValueError, r"labels.*vocabulary \[0, 131\), got -1 ", dict(labels=[[5, -1]])),
        (ValueError, r"input_ids.*vocabulary.*got 131", dict(input_ids=[[131, 6]], labels=[[131, 6]])),
        (ValueError, r"input_ids.*vocabulary.*got -5", dict(input_ids=[[5, -5]], labels=[[5, -100]])),
        (ValueError, r"right padding.*padding_side", dict(attention_mask=[[0, 1]])),
        (ValueError, r"attention_mask.*\[1, 2\].*\[1, 3\]", dict(attention_mask=[[1, 1, 1]])),
        (ValueError, r"attention_mask.*\[1, 2\].*\[1, 1, 2, 2\]", dict(attention_mask=[[[[1, 1], [1, 1]]]])),
        (ValueError, r"one shape \[B, L\].*\[1, 2\].*\[1, 3\]", dict(labels=[[5, 6, 7]])),
        (ValueError, r"one shape \[B, L\].*\[2\]", dict(input_ids=[5, 6], labels=[5, 6])),
        (TypeError, r"labels.*int64.*float32", dict(labels=[[5.0, 6.0]])),
        (TypeError, r"input_ids.*int64.*float32", dict(input_ids=[[5.0, 6.0]])),
    ],
)
def test_bad_batches(error, pattern, batch):
    good = dict(input_ids=[[5, 6]], labels=[[5, -100]])
    with pytest.raises(error, match=pattern):
        given({name: torch.tensor(value) for name, value in (good | batch).items()})


def test_what_is_no_tensor():
    with pytest.raises(TypeError, match=r"labels.*int64.*list"):
        given({"input_ids": torch.tensor([[5, 6]]), "labels": [[5, 6]]})


@pytest.mark.parametrize("slope", [1.0, float("-inf"), float("nan")])
def test_weights_negative_or_not_finite(slope, monkeypatch):
    monkeypatch.setattr(BaseAlphaScheduler, "__registry__", {})

    class Wrong(BaseAlphaScheduler):
        def _alpha(self, t):
            return 1 - t

        def _alpha_derivative(self, t):
            return torch.full_like(t, slope)

    with pytest.raises(ValueError, match=r"weights of Wrong must be finite and at least 0"):
        given({"input_ids": torch.tensor([[5, 6]])}, scheduler=Wrong())


def test_it_can_be_sent_to_another_process():
    assert pickle.loads(pickle.dumps(MDLMCollator(**_plain(collator_of())))).epoch == 0


def _plain(collator):
    names = ("base", "scheduler", "mask_id", "pad_id", "vocab_size", "seed")
    return {name: getattr(collator, name) for name in names}


def test_a_mask_in_the_data_is_never_learnt(caplog):
    """Nothing could be predicted at it; the prompt, whose labels are -100, may have one."""
    tokens = torch.tensor([[MASK_ID, 5, MASK_ID, 6], [7, 8, 9, 10]])
    labels = torch.where(torch.tensor([[False, True, True, True]] * 2), tokens, -100)
    collate = collator_of(lambda _: {"input_ids": tokens.clone(), "labels": labels.clone()}, low=0.999)
    with caplog.at_level(logging.WARNING, "dllm"):
        corruption = [collate([])["corruption"] for _ in range(2)][-1]
    assert corruption["targets"].tolist() == [5, 6, 8, 9, 10] and corruption["maskable"].tolist() == [2, 3]
    assert caplog.messages == [
        "the data hold the mask token (1 of a batch, first at row 0, position 2): it is not learnt"
    ]
