"""The plain loop of DiffusionGemma decides what transformers' own generate decides, given the same random numbers."""

from __future__ import annotations

import pytest
import torch

from tests.diffusion_gemma_models import CANVAS, VOCAB, WINDOW, needs_diffusion_gemma, tiny_diffusion_gemma
from tests.reference_samplers.diffusion_gemma import Rules, accept, diffusion_gemma

pytestmark = [needs_diffusion_gemma, pytest.mark.usefixtures("one_thread")]

STEPS = 8
UNSURE = dict(entropy_bound=3.0)
SURE = dict(entropy_bound=2.0, confidence_threshold=1.4)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return tiny_diffusion_gemma()


def prompts(*lengths: int) -> tuple[list[list[int]], dict[str, torch.Tensor]]:
    """Random prompts, and what transformers takes for them: padded on the left."""
    draw = torch.Generator().manual_seed(sum(lengths))
    rows = [torch.randint(5, VOCAB - 5, (length,), generator=draw).tolist() for length in lengths]
    most = max(lengths)
    padded = torch.tensor([[0] * (most - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (most - len(row)) + [1] * len(row) for row in rows])
    return rows, {"input_ids": padded, "attention_mask": mask}


def compare(model: torch.nn.Module, lengths: tuple[int, ...], rules: Rules) -> tuple[int, int]:
    """Run both; assert that nothing differs. Returns how many decisions were compared and how many were accepted."""
    from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSamplerConfig

    from tests.transformers_draws import traced_generate

    rows, inputs = prompts(*lengths)
    seeds = [11 + 5 * number for number in range(len(rows))]
    sequences, traces, _ = traced_generate(
        model,
        inputs,
        seeds,
        max_new_tokens=rules.max_new_tokens,
        max_denoising_steps=rules.max_denoising_steps,
        sampler_config=EntropyBoundSamplerConfig(entropy_bound=rules.entropy_bound),
        stability_threshold=rules.stability_threshold,
        confidence_threshold=rules.confidence_threshold,
        eos_token_id=list(rules.eos) or None,
        pad_token_id=rules.pad,
    )
    compared = accepted = 0
    for number, row in enumerate(rows):
        ours = diffusion_gemma(model, row, rules, seed=seeds[number])
        for mine, theirs in zip(ours.canvases, traces[number], strict=False):  # their rows wait for the others
            live = [step for step in theirs if not step.frozen]
            assert len(live) == len(mine)
            for step, (a, b) in enumerate(zip(mine, live, strict=True)):
                for name in ("before", "sampled", "argmax", "accepted"):
                    assert torch.equal(getattr(a, name), getattr(b, name)), (number, step, name)
                assert (a.entropy - b.entropy).abs().max() < 3e-5
                assert a.over == b.over
                compared += 4 * CANVAS
                accepted += int(a.accepted.sum())
        got = sequences[number, inputs["input_ids"].shape[1] :].tolist()
        assert got[: len(ours.tokens)] == ours.tokens
        if rules.pad is not None:
            assert set(got[len(ours.tokens) :]) <= {rules.pad}
    return compared, accepted


@pytest.mark.parametrize("bound", [0.1, 3.0])
@pytest.mark.parametrize("lengths", [(5,), (5, 5, 5), (5, 12, 9)], ids=str)
def test_same_decisions(model, lengths, bound):
    rules = Rules(max_new_tokens=2 * CANVAS, max_denoising_steps=STEPS, entropy_bound=bound)
    compared, accepted = compare(model, lengths, rules)
    assert compared == len(lengths) * 2 * STEPS * 4 * CANVAS
    assert len(lengths) * 2 * STEPS < accepted < compared / 4  # some were accepted besides the first, not all


@pytest.mark.parametrize("lengths", [(WINDOW + 7,), (WINDOW + 1, 4, WINDOW - 1)], ids=str)
def test_contexts_beyond_the_window(model, lengths):
    assert compare(model, lengths, Rules(max_new_tokens=3 * CANVAS, max_denoising_steps=4, **UNSURE))[0] > 0


@pytest.mark.parametrize("stability", [0, 1, 2])
def test_rows_stop_at_steps_of_their_own(model, stability):
    rules = Rules(max_new_tokens=2 * CANVAS, max_denoising_steps=16, stability_threshold=stability, **SURE)
    assert compare(model, (5, 12, 9), rules)[0] < 3 * 2 * 16 * 4 * CANVAS  # some stopped before the last step


def test_rows_end_at_eos_and_are_padded(model):
    rules = Rules(max_new_tokens=3 * CANVAS, max_denoising_steps=4, **UNSURE)
    rows, _ = prompts(5, 12, 9)
    said = [diffusion_gemma(model, row, rules, seed=11 + 5 * n).tokens for n, row in enumerate(rows)]
    eos = (said[0][2], said[1][CANVAS + 3])  # in the first canvas of a row, in the second of another
    ended = Rules(max_new_tokens=3 * CANVAS, max_denoising_steps=4, eos=eos, pad=0, **UNSURE)
    assert compare(model, (5, 12, 9), ended)[0] > 0
    assert diffusion_gemma(model, rows[0], ended, seed=11).tokens == said[0][:3] + [0] * (CANVAS - 3)


def test_acceptance_by_hand():
    entropy = torch.tensor([0.3, 0.05, 2.0, 0.0])  # sorted 0, 0.05, 0.3, 2: before them 0, 0, 0.05, 0.35
    assert accept(entropy, 0.1).tolist() == [True, True, False, True]
    assert accept(entropy, 0.04).tolist() == [False, True, False, True]
    assert accept(entropy + 5, 0.1).tolist() == [False, False, False, True]
