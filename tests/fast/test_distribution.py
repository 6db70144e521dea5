"""`generate` draws from the law of the model card's loop: counts against exact, enumerated probabilities.

Every seed is a row of one batch, so tens of thousands of draws take one call. Thresholds: tests/goodness_of_fit.py.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from dllm.fast import generate
from tests.goodness_of_fit import P_MIN, chi_square_p
from tests.models import MASK_ID, make_prompt, tiny
from tests.reference_loop import reference_generate

pytestmark = pytest.mark.usefixtures("one_thread")
LOW = "low_confidence"
V = 12
SMALL = dict(num_hidden_layers=1, hidden_size=16, num_attention_heads=2, intermediate_size=16)


@pytest.fixture(scope="module")
def model(device):
    """A BERT of 12 tokens and one small layer that is unsure enough for every token to be drawn."""
    model = tiny("bert", seed=3, vocab_size=V, **SMALL).to(device)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.5)
    return model


@torch.no_grad()
def logits(model, canvases: list[list[int]], scale: float = 0.0, given: int = 2) -> torch.Tensor:
    """float64 [N, L, V] of the whole canvas, guided as the card does."""
    tokens = torch.tensor(canvases, device=next(model.parameters()).device)
    conditional = model(input_ids=tokens).logits.double().cpu()
    if scale == 0:
        return conditional
    tokens[:, :given] = MASK_ID
    unconditional = model(input_ids=tokens).logits.double().cpu()
    return unconditional + (scale + 1) * (conditional - unconditional)


def many(model, n: int, *arguments, **options) -> torch.Tensor:
    """Completions [n, gen_length] of one prompt of two tokens under n seeds."""
    prompt = make_prompt(model, 1, 2).expand(n, -1)
    return generate(model, prompt, *arguments, mask_id=MASK_ID, **options)[:, 2:].cpu()


@pytest.mark.covering(1)
@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("temperature, scale", [(0.5, 0.0), (1.0, 0.0), (1.0, 0.7), (1.7, 0.7)])
def test_one_token_follows_softmax(model, temperature, scale, impl):
    prompt = make_prompt(model, 1, 2)[0].tolist()
    law = (logits(model, [[*prompt, MASK_ID]], scale)[0, 2] / temperature).softmax(0)
    sampled = many(model, 20_000, 1, 1, 1, temperature, scale, LOW, seed=0, impl=impl)
    assert chi_square_p(torch.bincount(sampled[:, 0], minlength=V), law) > P_MIN


def law_of_two(model, temperature: float, remasking: str) -> torch.Tensor:
    """Exact joint law [V, V] of two positions committed one at a time.

    The first step draws both from softmax(l / T); which of them stays is decided by softmax(l), or by a fair coin; the
    other is drawn again given the one that stayed.
    """
    prompt = make_prompt(model, 1, 2)[0].tolist()
    first = logits(model, [[*prompt, MASK_ID, MASK_ID]])[0, 2:]
    right = logits(model, [[*prompt, a, MASK_ID] for a in range(V)])[:, 3]
    left = logits(model, [[*prompt, MASK_ID, b] for b in range(V)])[:, 2]
    draw, surety = (first / temperature).softmax(-1), first.softmax(-1)
    right, left = (right / temperature).softmax(-1), (left / temperature).softmax(-1)
    law = torch.zeros(V, V, dtype=torch.float64)
    for a, b in itertools.product(range(V), repeat=2):
        keep_left = 0.5 if remasking == "random" else float(surety[0, a] >= surety[1, b])
        weight = draw[0, a] * draw[1, b]
        law[a] += weight * keep_left * right[a]
        law[:, b] += weight * (1 - keep_left) * left[b]
    return law


@pytest.mark.parametrize("remasking", [LOW, "random"])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_two_tokens_follow_the_enumerated_law(model, temperature, remasking):
    law = law_of_two(model, temperature, remasking)
    assert float(law.sum()) == pytest.approx(1.0)
    sampled = many(model, 20_000, 2, 2, 2, temperature, 0.0, remasking, seed=100)
    counts = torch.bincount(sampled[:, 0] * V + sampled[:, 1], minlength=V * V)
    assert chi_square_p(counts, law.flatten()) > P_MIN
    other = law_of_two(model, temperature, "random" if remasking == LOW else LOW)
    assert chi_square_p(counts, other.flatten()) < 1e-10, "the two orders are told apart"


@pytest.mark.parametrize("remasking", [LOW, "random"])
def test_the_published_formula_has_the_same_law(model, remasking):
    """The card's own float64 noise, fewer draws: one loop per row."""
    n = 500
    prompts = make_prompt(model, 1, 2).expand(n, -1)
    sampled = reference_generate(
        model, prompts, 2, 2, 2, 1.0, 0.0, remasking, mask_id=MASK_ID, seeds=range(n), noise="card"
    )[:, 2:].cpu()
    counts = torch.bincount(sampled[:, 0] * V + sampled[:, 1], minlength=V * V)
    assert chi_square_p(counts, law_of_two(model, 1.0, remasking).flatten()) > P_MIN


def test_none_draws_all_positions_at_once(model):
    """Two positions from the same forward pass: independent given the prompt."""
    prompt = make_prompt(model, 1, 2)[0].tolist()
    p = logits(model, [[*prompt, MASK_ID, MASK_ID]])[0, 2:].softmax(-1)
    sampled = many(model, 20_000, 2, 2, 2, 1.0, 0.0, "none", seed=7)
    counts = torch.bincount(sampled[:, 0] * V + sampled[:, 1], minlength=V * V)
    assert chi_square_p(counts, (p[0][:, None] * p[1]).flatten()) > P_MIN


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_random_remasking_commits_in_uniform_order(model, temperature):
    """All 24 orders of a block of four, in the first block and in the second."""
    canvases = []
    note = lambda told: canvases.append(told.canvas[:, 2:].cpu())  # noqa: E731
    many(model, 4_000, 8, 8, 4, temperature, 0.0, "random", seed=0, on_step=note)
    assert len(canvases) == 8
    for block in range(2):
        masked = torch.stack([c[:, 4 * block : 4 * block + 4] == MASK_ID for c in canvases[4 * block : 4 * block + 4]])
        when = masked.sum(0)  # the step at which each position was committed
        assert torch.equal(when.sort(1).values, torch.arange(4).expand(len(when), -1))
        counts = torch.stack([(when == torch.tensor(p)).all(1).sum() for p in itertools.permutations(range(4))])
        assert chi_square_p(counts, torch.full((24,), 1 / 24)) > P_MIN


def test_steps_positions_and_rows_draw_independently(model):
    """A head that is its bias alone has one law everywhere: positions, steps and seeds are independent."""
    constant = tiny("bert", seed=3, vocab_size=V, **SMALL).to(next(model.parameters()).device)
    with torch.no_grad():
        constant.get_output_embeddings().weight.zero_()
        bias = constant.get_output_embeddings().bias
        bias.copy_(torch.linspace(0, 1.5, V))
        bias[MASK_ID] = -20
    law = constant.get_output_embeddings().bias.detach().double().cpu().softmax(0)
    sampled = many(constant, 10_000, 4, 8, 4, 1.0, 0.0, "random", seed=0)
    pairs = (law[:, None] * law).flatten()
    for i, j in itertools.combinations(range(8), 2):
        assert chi_square_p(torch.bincount(sampled[:, i] * V + sampled[:, j], minlength=V * V), pairs) > P_MIN / 4
    neighbours = sampled[:-1, 0] * V + sampled[1:, 0]  # seeds s and s + 1
    assert chi_square_p(torch.bincount(neighbours[::2], minlength=V * V), pairs) > P_MIN
