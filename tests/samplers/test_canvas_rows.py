"""Rows of DiffusionGemmaSampler that join and leave: many prompts, rows that the caller ends, what a step shows."""

from __future__ import annotations

import pytest
import torch

from dllm.core.samplers import DiffusionGemmaSampler
from tests.diffusion_gemma_models import CANVAS, VOCAB, needs_diffusion_gemma, tiny_diffusion_gemma

pytestmark = [needs_diffusion_gemma, pytest.mark.usefixtures("one_thread")]

SETTINGS = dict(max_denoising_steps=12, entropy_bound=2.0, confidence_threshold=1.4, max_new_tokens=3 * CANVAS)


@pytest.fixture(scope="module")
def sampler() -> DiffusionGemmaSampler:
    return DiffusionGemmaSampler(tiny_diffusion_gemma())


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    draw = torch.Generator().manual_seed(3)
    return [torch.randint(5, VOCAB - 5, (length,), generator=draw).tolist() for length in (4, 19, 7, 12, 9)]


@pytest.fixture(scope="module")
def alone(sampler, prompts) -> list[list[int]]:
    rows = [sampler.sample([prompt], seed=[number], **SETTINGS)[0] for number, prompt in enumerate(prompts)]
    return [row.tolist() for row in rows]


@pytest.mark.parametrize("rows", [1, 2, 16])
def test_many_rows_are_each_as_alone(sampler, prompts, alone, rows):
    told = []
    done = sampler.sample_many(
        prompts, rows=rows, seed=list(range(5)), on_row=lambda number, row: told.append((number, row)), **SETTINGS
    )
    assert [row.tokens.tolist() for row in done] == alone
    assert sorted(number for number, _ in told) == list(range(5))
    assert all(done[number] is row and row.seconds > 0 for number, row in told)
    if rows == 1:
        assert [number for number, _ in told] == [1, 3, 4, 2, 0]  # the longest first


def test_a_place_is_taken_again_at_once(sampler, prompts):
    """Two rows together: no row waits for another one's end, so the decoder runs as often as the fuller place needs."""
    done = sampler.sample_many(prompts, rows=2, seed=list(range(5)), **SETTINGS)
    lengths = [row.forwards for row in done]
    places = [0, 0]
    for number in (1, 3, 4, 2, 0):
        places[places.index(min(places))] += lengths[number]
    seen = []
    decode = sampler._parts.decode
    sampler._parts.decode = lambda *arguments: seen.append(0) or decode(*arguments)
    try:
        sampler.sample_many(prompts, rows=2, seed=list(range(5)), **SETTINGS)
    finally:
        del sampler._parts.decode
    assert len(seen) == max(places) < sum(lengths)


def test_a_row_that_the_caller_ends(sampler, prompts, alone):
    asked = []

    def finished(row: int, tokens: list[int]) -> bool:
        asked.append((row, tokens))
        return row == 1

    found = sampler.sample(prompts, seed=list(range(5)), finished=finished, return_dict=True, **SETTINGS)
    for number, prompt in enumerate(prompts):
        row = found.sequences[number].tolist()
        kept = CANVAS if number == 1 else 3 * CANVAS
        assert row[: len(prompt) + kept] == alone[number][: len(prompt) + kept]
        assert set(row[len(prompt) + kept :]) <= {0}
        told = [tokens for row, tokens in asked if row == number]
        made = alone[number][len(prompt) :]
        assert told == [made[: CANVAS * canvas] for canvas in range(1, 2 if number == 1 else 3)]
    many = sampler.sample_many(prompts, rows=2, seed=list(range(5)), finished=finished, **SETTINGS)
    assert len(many[1].tokens) == len(prompts[1]) + CANVAS and many[1].forwards == found.stats.row_forwards[1]


def test_what_is_open_in_a_step(sampler, prompts):
    steps, ends = [], [3]
    found = sampler.sample(
        prompts[:2], seed=[0, 1], return_dict=True, on_step=steps.append, eos_token_ids=ends, **SETTINGS
    )
    for number, prompt in enumerate(prompts[:2]):
        begin = len(prompt)
        was = torch.zeros_like(steps[0].open[number])
        was[begin : begin + 3 * CANVAS] = True
        for step in steps:
            now = step.open[number]
            assert not bool((now & ~was).any())  # what is final stays so
            assert not bool(now[:begin].any()) and int(now.sum()) % CANVAS == 0
            final = ~now[: found.sequences.shape[1]]
            assert torch.equal(step.canvas[number][: len(final)][final], found.sequences[number][final])
            assert torch.equal(step.tentative[number][: len(final)][final], found.sequences[number][final])
            was = now
        assert not bool(was.any())


def test_rules_of_many_rows(sampler):
    assert sampler.sample_many([], rows=2, seed=0) == []
    for wrong, error in ((dict(rows=0), ValueError), (dict(finished=3), TypeError), (dict(on_row=3), TypeError)):
        with pytest.raises(error):
            sampler.sample_many([[5]], seed=0, **wrong)
    with pytest.raises(TypeError, match="finished must be callable"):
        sampler.sample([[5]], seed=0, finished="stop")
    with pytest.raises(TypeError, match="has no setting steps"):
        sampler.check([[5]], steps=3)
    with pytest.raises(ValueError, match=r"tokens must lie in \[0, 512\), got 512 in row 1"):
        sampler.check([[5], [512]])
