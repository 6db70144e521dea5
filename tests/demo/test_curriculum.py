"""The lessons as forwards of a step: every row is there once, and what of it is masked."""

from __future__ import annotations

import importlib.util
from collections import Counter

import pytest
import torch

from dllm.core.schedulers import LinearAlphaScheduler
from dllm.core.trainers.collator import IGNORE, MDLMCollator
from dllm.demo.training import lessons
from dllm.demo.training.curriculum import FORWARDS, Curriculum, collator_input
from dllm.demo.training.lessons import Lessons, vocabulary

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(importlib.util.find_spec("chatterbot_corpus") is None, reason="chatterbot-corpus not installed"),
]
STEPS = [3, lessons.DRILL_FROM, lessons.TAIL_FROM]  # two batches in a step, three, some rows with tails


@pytest.fixture(scope="module")
def stream():
    return Lessons(vocabulary(), batch_size=9, seed=0)


@pytest.fixture(scope="module")
def collate(stream):
    tokenizer = stream.tokenizer
    return MDLMCollator(
        base=lambda items: items[0],
        scheduler=LinearAlphaScheduler(),
        mask_id=tokenizer.mask_token_id,
        pad_id=tokenizer.pad_token_id,
        vocab_size=len(tokenizer),
        seed=0,
        uniform_weight=True,
    )


def step_of(curriculum, number, processes):
    """All items of a step."""
    return [curriculum[item] for item in range(number * FORWARDS * processes, (number + 1) * FORWARDS * processes)]


def drawn(items) -> Counter:
    """Each row with what is drawn for it."""
    return Counter(
        (tuple(tokens.tolist()), float(t), int(seed))
        for item in items
        for tokens, t, seed in zip(item["input_ids"], item["times"], item["seeds"], strict=True)
    )


class TestItems:
    @pytest.mark.parametrize("number", STEPS)
    def test_every_row_is_taken_once_by_one_process(self, stream, number):
        rows = Counter(tuple(tokens.tolist()) for batch in stream[number] for tokens in batch.tokens)
        alone = drawn(step_of(Curriculum(stream, steps=9999, processes=1), number, 1))
        together = drawn(step_of(Curriculum(stream, steps=9999, processes=2), number, 2))
        assert alone == together
        assert Counter({row: 1 for row, *_ in alone}) == Counter(dict.fromkeys(rows, 1))
        assert alone.total() == rows.total()

    @pytest.mark.parametrize("processes", [1, 2])
    def test_no_forward_is_empty(self, processes):
        small = Lessons(vocabulary(), batch_size=4 * processes, seed=0)
        curriculum = Curriculum(small, steps=5, processes=processes)
        assert len(curriculum) == 5 * FORWARDS * processes
        assert all(len(item["input_ids"]) for item in step_of(curriculum, 4, processes))
        with pytest.raises(ValueError, match=rf"at least 4 for each process, {4 * processes + 4}, got {4 * processes}"):
            Curriculum(small, steps=5, processes=processes + 1)

    def test_any_order(self, stream):
        curriculum = Curriculum(stream, steps=9, processes=1)
        late = curriculum[20]["input_ids"]
        assert not torch.equal(curriculum[0]["input_ids"][:1, :9], late[:1, :9])
        assert torch.equal(curriculum[20]["input_ids"], late)


class TestMasks:
    def test_only_answers_are_masked_and_the_rest_is_kept(self, stream, collate):
        batch = stream[3][0]
        canvas = collate([collator_input(batch, 3, seed=0)])["input_ids"]
        chosen = canvas == collate.mask_id
        assert chosen.any() and not (chosen & ~batch.answer).any()
        assert torch.equal(canvas[~chosen], batch.tokens[~chosen])

    def test_every_share_is_as_likely(self, stream, collate):
        batch, shares = stream[3][0], []
        for number in range(400):
            masked = collate([collator_input(batch, number, seed=0)])["input_ids"] == collate.mask_id
            shares.append(masked.sum(1) / batch.answer.sum(1))
        counts = torch.histc(torch.stack(shares), bins=4, min=0, max=1) / (400 * len(batch.tokens))
        assert (counts - 0.25).abs().max() < 0.04  # over four standard deviations; t is spread over the rows besides

    def test_t_is_spread_evenly(self, stream):
        for batch in stream[lessons.DRILL_FROM]:
            times, rows = collator_input(batch, 7, seed=0)["times"], len(batch.tokens)
            assert (times * rows).floor().tolist() == list(range(rows))

    def test_another_step_or_seed_masks_others(self, stream, collate):
        batch = stream[3][0]
        one, again, later, other = (
            collate([collator_input(batch, number, seed)])["input_ids"]
            for number, seed in ((5, 0), (5, 0), (6, 0), (5, 1))
        )
        assert torch.equal(one, again)
        assert not torch.equal(one, later) and not torch.equal(one, other)

    def test_rows_with_a_tail_are_masked_from_there_on(self, stream, collate):
        batch = stream[lessons.TAIL_FROM][0]
        rows = collator_input(batch, lessons.TAIL_FROM, seed=0)
        masked = collate([rows])["input_ids"] == collate.mask_id
        tailed = [row for row in range(len(batch.tokens)) if batch.tail[row] >= 0]
        assert tailed == list(range(0, len(batch.tokens), lessons.TAIL_EVERY))
        for row in tailed:
            start = int(batch.tail[row])
            assert stream.tokenizer.decode(batch.tokens[row, start - 1]).strip() == "="
            assert masked[row, start:].all() and not masked[row, :start].any()
            assert (rows["labels"][row, :start] == IGNORE).all()
