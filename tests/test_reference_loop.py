"""The judge is judged: the reference loop against traces worked out by hand and against an enumerated law."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.goodness_of_fit import P_MIN, chi_square_p
from tests.reference_loop import Step, reference_generate, schedule

MASK = 4
pytestmark = pytest.mark.usefixtures("one_thread")


class Table(torch.nn.Module):
    """A model whose logits are read from a table by position; with `coupling`, also by the token to the left."""

    def __init__(self, logits: torch.Tensor, coupling: torch.Tensor | None = None):
        super().__init__()
        self.table, self.coupling = logits, coupling
        self.seen: list[list[int]] = []

    def forward(self, input_ids):
        self.seen.append(input_ids[0].tolist())
        logits = self.table[: input_ids.shape[1]].expand(len(input_ids), -1, -1)
        if self.coupling is not None:
            logits = logits + self.coupling[input_ids.roll(1, dims=1)]
        return SimpleNamespace(logits=logits)


def sure(*pairs: tuple[int, float]) -> torch.Tensor:
    """Logits [L, 5]: at each position one token stands out by a given amount."""
    logits = torch.zeros(len(pairs), 5)
    for position, (token, amount) in enumerate(pairs):
        logits[position, token] = amount
    return logits


def trace(model, *args, **kwargs) -> list[list[int]]:
    steps: list[Step] = []
    reference_generate(model, *args, mask_id=MASK, on_step=steps.append, **kwargs)
    return [step.canvas.tolist() for step in steps]


def test_schedule():
    assert schedule(10, 4) == [3, 3, 2, 2]
    assert schedule(2, 4) == [1, 1, 0, 0]
    assert schedule(64, 64) == [1] * 64


def test_trace_by_hand():
    """Two blocks of three, two steps each: 2 then 1 tokens; ties to the left; the surer second block waits."""
    model = Table(sure((0, 0), (1, 2.0), (2, 3.0), (1, 2.0), (0, 9.0), (3, 1.0), (2, 5.0)))
    prompt = torch.tensor([[0]])
    m = MASK
    assert trace(model, prompt, 4, 6, 3, 0.0, 0.0, "low_confidence") == [
        [0, 1, 2, m, m, m, m],
        [0, 1, 2, 1, m, m, m],
        [0, 1, 2, 1, 0, m, 2],
        [0, 1, 2, 1, 0, 3, 2],
    ]
    assert model.seen == [[0, *[m] * 6], [0, 1, 2, *[m] * 4], [0, 1, 2, 1, m, m, m], [0, 1, 2, 1, 0, m, 2]]


def test_none_commits_a_block_at_once_and_zero_steps_commit_nothing():
    model = Table(sure((0, 0), (1, 2.0), (2, 3.0), (3, 2.0), (0, 9.0)))
    prompt, m = torch.tensor([[0]]), MASK
    assert trace(model, prompt, 4, 4, 2, 0.0, 0.0, "none") == [
        [0, 1, 2, m, m],
        [0, 1, 2, m, m],
        [0, 1, 2, 3, 0],
        [0, 1, 2, 3, 0],
    ]
    assert trace(model, prompt, 6, 4, 2, 0.0, 0.0, "confidence")[1:3] == [[0, 1, 2, m, m]] * 2


def test_guidance_masks_the_prompt_and_extrapolates():
    """Token 2 leads without guidance by 1; the prompt speaks for token 3, so (s+1)(c - u) turns the choice."""
    coupling = torch.zeros(5, 5)
    coupling[0, 3] = 3.0
    model = Table(sure((0, 0), (2, 4.0)), coupling)
    prompt = torch.tensor([[0]])
    assert reference_generate(model, prompt, 1, 1, 1, 0.0, 0.0, "none", mask_id=MASK).tolist() == [[0, 2]]
    model.seen.clear()
    assert reference_generate(model, prompt, 1, 1, 1, 0.0, 0.5, "none", mask_id=MASK).tolist() == [[0, 3]]
    assert model.seen == [[0, MASK], [MASK, MASK]]


def test_a_proposed_mask_token_leaves_a_hole_that_stays_eligible():
    """The choice may be the mask token. The hole competes again, also against the next block."""
    model = Table(sure((0, 0), (MASK, 5.0), (2, 1.0), (3, 2.0), (0, 1.0)))
    assert trace(model, torch.tensor([[0]]), 4, 4, 2, 0.0, 0.0, "low_confidence") == [
        [0, MASK, MASK, MASK, MASK],
        [0, MASK, MASK, MASK, MASK],
        [0, MASK, MASK, MASK, MASK],
        [0, MASK, MASK, MASK, MASK],
    ]
    model.table[1] = sure((1, 0.5))[0]
    assert trace(model, torch.tensor([[0]]), 2, 4, 2, 0.0, 0.0, "low_confidence")[-1] == [0, 1, 2, 3, 0]


def test_left_padding_and_eos():
    model = Table(sure((0, 0), (1, 2.0), (2, 3.0), (3, 2.0), (0, 9.0), (1, 1.0)))
    prompt, attention = torch.tensor([[0, 0], [3, 0]]), torch.tensor([[1, 1], [0, 1]])
    full = reference_generate(model, prompt, 4, 4, 4, 0.0, 0.0, "confidence", mask_id=MASK, attention_mask=attention)
    assert full.tolist() == [[0, 0, 2, 3, 0, 1], [3, 0, 1, 2, 3, 0]]
    cut = reference_generate(
        model, prompt, 4, 4, 4, 0.0, 0.0, "confidence", mask_id=MASK, attention_mask=attention, eos_token_id=3
    )
    assert cut.tolist() == [[0, 0, 2, 3, 3, 3], [3, 0, 1, 2, 3, 3]]


@pytest.mark.covering(1)
@pytest.mark.parametrize("noise", ["card", "philox"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_law_of_two_tokens(noise, temperature):
    """Two positions, two steps, the second logits depend on the first token: all 16 outcomes enumerated."""
    generator = torch.Generator().manual_seed(2)
    table, coupling = torch.randn(3, 5, generator=generator), torch.randn(5, 5, generator=generator)
    table[:, MASK] = -torch.inf
    model = Table(table, coupling)

    def probability(canvas: list[int], position: int, T: float) -> list[float]:
        return (model(torch.tensor([canvas])).logits[0, position] / T).softmax(0).tolist()

    law = torch.zeros(5, 5, dtype=torch.float64)
    draw = [probability([0, MASK, MASK], p, temperature) for p in (1, 2)]
    surety = [probability([0, MASK, MASK], p, 1.0) for p in (1, 2)]
    for a in range(4):
        for b in range(4):
            weight = draw[0][a] * draw[1][b]
            if surety[0][a] >= surety[1][b]:
                law[a] += weight * torch.tensor(probability([0, a, MASK], 2, temperature), dtype=torch.float64)
            else:
                law[:, b] += weight * torch.tensor(probability([0, MASK, b], 1, temperature), dtype=torch.float64)
    n = 700
    arguments = dict(mask_id=MASK, seeds=range(n), noise=noise)
    prompts = torch.zeros(n, 1, dtype=torch.long)
    drawn = reference_generate(model, prompts, 2, 2, 2, temperature, 0.0, "low_confidence", **arguments)
    counts = torch.bincount(drawn[:, 1] * 5 + drawn[:, 2], minlength=25)
    possible = law.flatten() > 0
    assert counts[~possible].sum() == 0
    assert chi_square_p(counts[possible], law.flatten()[possible]) > P_MIN


@pytest.mark.parametrize("noise", ["card", "philox"])
def test_random_remasking_commits_in_uniform_order(noise):
    model, n = Table(sure((0, 0), (1, 2.0), (2, 3.0), (3, 2.0))), 600
    order: list[list[int]] = [[] for _ in range(n)]

    def note(step: Step) -> None:
        left = [p for p in (1, 2, 3) if step.canvas[p] != MASK and p not in order[step.row]]
        order[step.row] += left

    prompts = torch.zeros(n, 1, dtype=torch.long)
    reference_generate(model, prompts, 3, 3, 3, mask_id=MASK, seeds=range(n), noise=noise, on_step=note)
    counts = torch.bincount(torch.tensor([9 * a + 3 * b + c - 13 for a, b, c in order]), minlength=27)
    assert chi_square_p(counts[counts > 0], torch.full((6,), 1 / 6)) > P_MIN
