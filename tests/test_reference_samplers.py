"""The judges are judged: every rule of the reference samplers once, against cases worked out by hand."""

from __future__ import annotations

import doctest
import importlib
import math
import pkgutil

import pytest
import torch

import tests.reference_samplers as judges
from dllm.core.schedulers import CosineAlphaScheduler, LinearAlphaScheduler
from dllm_kernels import philox
from dllm_kernels.draw import draw
from tests.goodness_of_fit import P_MIN, binomial_p, chi_square_p
from tests.reference_loop import _log_softmax, reference_generate
from tests.reference_samplers import (
    Trace,
    dream,
    entropy_bound,
    first_difference,
    llada,
    llada2,
    mdlm_infill,
    mdlm_sample,
    rnd1,
    schedule_b,
    threshold_decode,
    time_grid,
)
from tests.reference_samplers.row import _filter
from tests.reference_samplers.rules import Confidence, at_least, by_factor, surest, within_budget
from tests.test_reference_loop import MASK, Table, sure

M = MASK
# largest probability .55 .50 .54; margin of the two largest .40 .00 .425; entropy 1.18 .69 1.33
A, B, C = (0.55, 0.15, 0.15, 0.15, 1e-9), (0.5, 0.5, 1e-9, 1e-9, 1e-9), (0.54, 0.115, 0.115, 0.115, 0.115)
LINEAR = LinearAlphaScheduler()
pytestmark = pytest.mark.usefixtures("one_thread")


def canvases(trace: Trace) -> list[list[int]]:
    assert torch.equal(trace.history[-1], trace.canvas) and len(trace.history) == trace.forwards + 1
    return [canvas.tolist() for canvas in trace.history]


def order(trace: Trace) -> list[list[int]]:
    return [step.committed for step in trace.steps]


def law(*rows: tuple[float, ...]) -> Table:
    """A model whose probabilities over its five tokens are given, [L, 5]."""
    return Table(torch.tensor(rows).log())


def confident(*probabilities: float) -> Confidence:
    exact = torch.tensor(probabilities, dtype=torch.float64).log()
    return Confidence(exact.float(), exact)


def wandering(seed: int = 0, length: int = 12) -> Table:
    """Random logits that depend on the left neighbor; the mask token is never likely."""
    generator = torch.Generator().manual_seed(seed)
    table, coupling = torch.randn(length, 5, generator=generator), torch.randn(5, 5, generator=generator)
    table[:, M] -= 30
    return Table(2 * table, 2 * coupling)


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(judges.__path__)])
def test_examples(name):
    assert doctest.testmod(importlib.import_module(f"tests.reference_samplers.{name}")).failed == 0


# schedules


def test_schedule_b():
    assert schedule_b(10, 4, LINEAR) == [2, 3, 2, 3]  # 10/4 = 2.5 to even, 8/3, 5/2 to even, the rest
    assert schedule_b(1, 4, LINEAR) == [1] and schedule_b(0, 4, LINEAR) == [] and schedule_b(7, 1, LINEAR) == [7]
    assert schedule_b(8, 8, LINEAR) == [1] * 8
    # 4/3, then half of 3: 1 - 1/3 : 2/3 in float32 is a bit below 1/2, so 1.4999...; exact arithmetic would say 1, 2, 1
    assert schedule_b(4, 3, LINEAR) == [1, 1, 2]
    assert schedule_b(10, 2, CosineAlphaScheduler()) == [3, 7]  # p = 1 - cos(pi/4) = 0.293


def test_binomial_schedule_by_hand_and_in_law():
    def uniform(i: int, step: int, start: int) -> float:
        address = (torch.tensor(x) for x in (5, 1, start + i, step))
        return (int(philox.words(*address, philox.RANDOM_CONFIDENCE)[0]) // 512 + 0.5) / 2**23

    first = sum(uniform(i, 0, 3) < 1 / 3 for i in range(9))
    second = sum(uniform(i, 1, 3) < 1 / 2 for i in range(9 - first))
    want = [k for k in (first, second, 9 - first - second) if k]
    assert schedule_b(9, 3, LINEAR, seed=5, start=3) == want
    counts = torch.zeros(6)
    for seed in range(600):
        got = schedule_b(5, 2, LINEAR, seed=seed)
        assert sum(got) == 5
        counts[0 if len(got) == 1 and _first_draw(seed) == 0 else got[0]] += 1
    pmf = torch.tensor([math.comb(5, k) / 32 for k in range(6)])
    assert chi_square_p(counts, pmf) > P_MIN


def _first_draw(seed: int) -> int:
    address = torch.tensor(seed), torch.tensor(1), torch.arange(5), torch.tensor(0)
    return int((philox.words(*address, philox.RANDOM_CONFIDENCE)[0] < 2**31).sum())


def test_time_grid():
    assert time_grid(1, 1e-3) == [1.0]
    assert time_grid(4, 1e-3) == pytest.approx([0.24975, 0.332889, 0.499001, 1.0], abs=1e-6)


# rules


def test_surest():
    c = confident(0.5, 0.9, 0.5, 0.2)
    assert surest(c, [0, 1, 2, 3], 2).positions == [1, 0]  # the tie goes to the left
    assert surest(c, [2, 3], 1).positions == [2] and surest(c, [2, 3], 9).positions == [2, 3]
    assert surest(c, [0, 1, 2], 2).gap == 0 and surest(c, [0, 1], 1).gap > 1e5
    nothing = Confidence(torch.tensor([-torch.inf, torch.nan, -3.0]), torch.zeros(3).double())
    assert surest(nothing, [0, 1, 2], 3).positions == [2, 0, 1]


def test_at_least():
    c = confident(0.5, 0.9, 0.75, 0.5)
    exactly = float(c.value[2].exp())
    assert at_least(c, [0, 1, 2, 3], exactly).positions == [1, 2]
    assert at_least(c, [0, 1, 2, 3], exactly, strictly=True).positions == [1]
    assert at_least(c, [0, 1, 2, 3], 0.95).positions == [1]
    assert at_least(c, [0, 1, 2, 3], 0.95, k=3).positions == [1, 2, 0]
    assert at_least(c, [0, 1, 2, 3], 0.95, k=0).positions == []
    assert at_least(c, [0, 1, 2, 3], 0.4, k=1).positions == [1, 2, 0, 3]
    assert at_least(c, [0, 1], 0.9).gap < 1 < at_least(c, [0, 1], 0.7).gap


def test_by_factor():
    """Bars of factor 0.3: 0.85, 0.9, 0.925."""
    assert by_factor(confident(0.91, 0.95, 0.92), [0, 1, 2], 0.3).positions == [1, 2]
    assert by_factor(confident(0.91, 0.95, 0.93), [0, 1, 2], 0.3).positions == [1, 2]  # 0.91 < 0.925
    assert by_factor(confident(0.93, 0.95, 0.93), [0, 1, 2], 0.3).positions == [1, 0, 2]
    assert by_factor(confident(0.1, 0.2), [0, 1], 0.3).positions == [1]


def test_within_budget():
    entropy = torch.tensor([0.5, 0.125, 0.25, 1.0], dtype=torch.float64)
    c = Confidence(-entropy.float(), -entropy)
    for gamma, want in [(0.0, [1]), (0.124, [1]), (0.125, [1, 2]), (0.375, [1, 2, 0]), (0.9, [1, 2, 0, 3])]:
        assert within_budget(c, [0, 1, 2, 3], gamma).positions == want
    assert within_budget(c, [0, 1, 2, 3], 0.375).gap == 0 and within_budget(c, [0, 1, 2, 3], 0.3).gap > 1e5
    assert within_budget(c, [0, 3], 0.5).positions == [0, 3]


def test_filter():
    x = torch.tensor([[0.05, 0.5, 0.15, 0.3], [0.3, 0.4, 0.3, 1e-9]]).log()

    def kept(top_p=None, top_k=None):
        return [[v for v in range(4) if row[v]] for row in _filter(x, top_p, top_k, [0, 1])[0]]

    assert kept() == kept(top_p=1.0) == kept(top_k=4) == [[0, 1, 2, 3]] * 2
    assert kept(top_p=0.45) == [[1], [0, 1, 2]]  # ties at the boundary all stay
    assert kept(top_p=0.85) == [[1, 2, 3], [0, 1, 2]] and kept(top_p=1e-9) == [[1], [1]]
    assert kept(top_k=1) == [[1], [1]] and kept(top_k=2) == [[1, 3], [0, 1, 2]]
    assert kept(top_p=0.85, top_k=2) == [[1, 3], [0, 1, 2]] and kept(top_p=0.45, top_k=3)[0] == [1]
    assert _filter(x, 0.5, None, [0])[1] < 4 < 1e5 < _filter(x, 0.6, None, [0])[1]
    assert _filter(x, None, 2, [1])[1] == 0 and _filter(x, None, 2, [0])[1] > 1e5


# MDLM and LLaDA


def test_mdlm_trace_by_hand():
    """Blocks of three and two from the prompt's end, two steps each: 2, 1 and 1, 1; the surer second block waits."""
    model = Table(sure((0, 0), (1, 2.0), (2, 3.0), (1, 2.0), (0, 9.0), (3, 1.0)))
    assert canvases(mdlm_sample(model, [0], mask_id=M, max_new_tokens=5, block_size=3, steps=4)) == [
        [0, M, M, M, M, M],
        [0, 1, 2, M, M, M],
        [0, 1, 2, 1, M, M],
        [0, 1, 2, 1, 0, M],
        [0, 1, 2, 1, 0, 3],
    ]
    assert model.seen == [[0, M, M, M, M, M], [0, 1, 2, M, M, M], [0, 1, 2, 1, M, M], [0, 1, 2, 1, 0, M]]


def test_mdlm_lengths_steps_and_scheduler():
    model = wandering()
    by_length = mdlm_sample(model, [0, 1], mask_id=M, max_new_tokens=None, max_length=9)
    assert [len(by_length.canvas), by_length.forwards] == [9, 7]  # 128 steps, 121 of them commit nothing
    assert mdlm_sample(model, [], mask_id=M, max_new_tokens=4, steps=1).forwards == 1
    assert mdlm_sample(model, [1], mask_id=M, max_new_tokens=0).canvas.tolist() == [1]
    # three blocks of 2, 2, 1 and ceil(4/3) = 2 steps each
    assert [len(c) for c in order(mdlm_sample(model, [0], mask_id=M, max_new_tokens=5, block_size=2, steps=4))] == [
        1
    ] * 5
    cosine = mdlm_sample(model, [0], mask_id=M, max_new_tokens=10, steps=2, scheduler=CosineAlphaScheduler())
    assert [len(c) for c in order(cosine)] == [3, 7]
    drawn = mdlm_sample(
        model, [0, 0], mask_id=M, max_new_tokens=9, block_size=5, steps=4, stochastic_transfer=True, seed=3
    )
    want = [schedule_b(m, 2, LINEAR, seed=3, start=start) for m, start in [(5, 2), (4, 7)]]
    assert [len(c) for c in order(drawn)] == want[0] + want[1]


def test_confidence_is_the_probability_of_the_choice():
    """.5 twice has the smaller entropy, .55 is the surer choice."""
    trace = mdlm_sample(law((0.2,) * 5, B, A), [0], mask_id=M, max_new_tokens=2, steps=2)
    assert order(trace) == [[2], [1]]


def test_suppressed_tokens():
    model = Table(sure((0, 0), (1, 5.0), (2, 1.0)))
    arguments = dict(mask_id=M, max_new_tokens=2, steps=2)
    assert canvases(mdlm_sample(model, [0], **arguments))[1:] == [[0, 1, M], [0, 1, 2]]
    assert canvases(mdlm_sample(model, [0], begin_suppress_tokens=[1], **arguments))[1:] == [[0, M, 2], [0, 1, 2]]
    assert canvases(mdlm_sample(model, [0], suppress_tokens=[1], **arguments))[1:] == [[0, M, 2], [0, 0, 2]]
    everything = mdlm_sample(model, [0], begin_suppress_tokens=range(5), **arguments)
    assert canvases(everything)[1:] == [[0, 1, M], [0, 1, 2]]  # no law is left: ties, from the left


def test_right_shift():
    """Position p reads p-1; position 0 reads its own logits."""
    model = Table(sure((3, 2.0), (1, 3.0), (2, 4.0)))
    assert mdlm_sample(model, [0], mask_id=M, max_new_tokens=2, right_shift_logits=True).canvas.tolist() == [0, 3, 1]
    assert mdlm_infill(model, [M, 0, M], mask_id=M, right_shift_logits=True).canvas.tolist() == [3, 0, 1]


def test_guidance_masks_what_was_given():
    coupling = torch.zeros(5, 5)
    coupling[0, 3] = 3.0
    model = Table(sure((0, 0), (2, 4.0), (2, 4.0)), coupling)
    arguments = dict(mask_id=M, max_new_tokens=1, cfg_scale=0.5)
    assert mdlm_sample(model, [0], mask_id=M, max_new_tokens=1).canvas.tolist() == [0, 2]
    model.seen.clear()
    guided = mdlm_sample(model, [0], **arguments)
    assert guided.canvas.tolist() == [0, 3] and guided.forwards == 1 and model.seen == [[0, M], [M, M]]
    assert mdlm_sample(model, [0], cfg_keep_tokens=[0], **arguments).canvas.tolist() == [0, 2]
    model.seen.clear()
    mdlm_infill(model, [0, M, M], mask_id=M, steps=2, cfg_scale=0.5)
    # what was committed is no given token: it stays visible
    assert model.seen == [[0, M, M], [M, M, M], [0, M, 2], [M, M, 2]]


def test_infill_by_hand():
    model = Table(sure((1, 1.0), (3, 9.0), (1, 2.0), (2, 3.0), (3, 9.0), (0, 5.0)))
    trace = mdlm_infill(model, [M, 0, M, M, 1, M], mask_id=M, block_size=2, steps=6)
    assert canvases(trace) == [
        [M, 0, M, M, 1, M],
        [1, 0, M, M, 1, M],
        [1, 0, M, 2, 1, M],
        [1, 0, 1, 2, 1, M],
        [1, 0, 1, 2, 1, 0],
    ]
    assert [step.block for step in trace.steps] == [0, 1, 1, 2]
    assert order(mdlm_infill(model, [M, 0, M, M, 1, M], mask_id=M, steps=4)) == [[5], [3], [2], [0]]
    full = mdlm_infill(model, [1, 2], mask_id=M)
    assert full.canvas.tolist() == [1, 2] and full.forwards == 0
    assert mdlm_infill(model, [], mask_id=M).forwards == 0


def test_noise_addresses():
    """Token noise and random confidence by position and by step within the block, zero steps not counted."""
    model, seed, T = wandering(), 11, 0.7
    trace = mdlm_sample(
        model, [0, 2], mask_id=M, seed=seed, max_new_tokens=6, block_size=3, steps=40, temperature=T, remasking="random"
    )
    assert [(step.block, step.step) for step in trace.steps] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    canvas = torch.tensor([0, 2, M, M, M, M, M, M])
    for block, step in [(b, s) for b in range(2) for s in range(3)]:
        l = model(canvas[None]).logits[0]
        masked = [p for p in range(2, 5 + 3 * block) if canvas[p] == M]
        one = [torch.tensor([seed]), torch.tensor([0]), torch.tensor([step])]
        u = [float(philox.uniform(one[0], torch.tensor([p]), one[2], philox.RANDOM_CONFIDENCE)) for p in masked]
        p = masked[u.index(max(u))]
        canvas[p] = draw(l[p : p + 1], T, one[0], torch.tensor([p]), one[2])
        assert torch.equal(canvas, trace.history[3 * block + step + 1])


@pytest.mark.parametrize("remasking", ["low_confidence", "random"])
@pytest.mark.parametrize("temperature, cfg_scale", [(0.0, 0.0), (0.9, 0.0), (0.8, 0.5)])
def test_llada_equals_the_model_cards_loop(temperature, cfg_scale, remasking):
    model, prompt = wandering(3), torch.tensor([[1, 2]])
    sampling = dict(mask_id=M, steps=6, gen_length=8, block_length=4, temperature=temperature, cfg_scale=cfg_scale)
    want = reference_generate(model, prompt, seeds=9, remasking=remasking, **sampling)
    assert llada(model, prompt[0], seed=9, remasking=remasking, **sampling).canvas.tolist() == want[0].tolist()
    # one token a step: both schedules are the same
    single = dict(mask_id=M, temperature=temperature, cfg_scale=cfg_scale, remasking=remasking)
    want = reference_generate(model, prompt, 8, 8, 4, seeds=9, **single)
    got = mdlm_sample(model, prompt[0], seed=9, max_new_tokens=8, block_size=4, steps=8, **single)
    assert got.canvas.tolist() == want[0].tolist()


def test_llada_schedule_and_options():
    model = Table(sure((0, 0), (3, 5.0), (1, 2.0), (2, 1.0)))
    arguments = dict(mask_id=M, gen_length=3, block_length=3, eos_id=3, eot_id=1)
    zeros = llada(model, [0], steps=5, **arguments)
    assert order(zeros) == [[1], [2], [3], [], []] and len(zeros.changes) == 4 and zeros.forwards == 5
    assert order(llada(model, [0], steps=2, **arguments)) == [[1, 2], [3]]
    last = llada(model, [0], steps=3, confidence_eos_eot_inf=True, **arguments)
    assert order(last) == [[3], [1], [2]] and last.canvas.tolist() == [0, 3, 1, 2]
    assert llada(model, [0], steps=3, logits_eos_inf=True, **arguments).canvas.tolist() == [0, 0, 1, 2]


# RND1


def test_rnd1_counts():
    """int(10 s / 4), s = 3..0, leaves 7, 5, 2, 0; 75 x 42/50 is 62 in float32, where it is 63 in integers."""
    model = wandering()
    arguments = dict(mask_id=M, temperature=0.0)
    assert [len(c) for c in order(rnd1(model, [0], max_new_tokens=10, steps=4, **arguments))] == [3, 2, 3, 2]
    assert [len(c) for c in order(rnd1(model, [0], max_new_tokens=2, steps=5, **arguments))] == [1, 1]
    long = order(rnd1(wandering(length=76), [0], max_new_tokens=75, steps=50, **arguments))
    assert 75 - sum(map(len, long[:8])) == 62


def test_rnd1_reads_the_entropy_at_its_temperature_whatever_it_takes():
    """Entropies: raw .67 and 1.14; at T = 1/2, where p goes as p^2, .62 and .58. Shifted: rows 0 and 1 are read."""
    two, one = (0.6, 0.4, 1e-9, 1e-9, 1e-9), (0.58, 0.14, 0.14, 0.14, 1e-9)
    arguments = dict(mask_id=M, max_new_tokens=2, steps=2)
    for greedy in (True, False):
        assert order(rnd1(law(one, two, one), [0], temperature=0.5, greedy=greedy, **arguments)) == [[1], [2]]
        assert order(rnd1(law(one, two, one), [0], temperature=1.0, greedy=greedy, **arguments)) == [[2], [1]]
    for seed in range(5):
        likeliest = rnd1(law(one, two, one), [0], temperature=2.0, greedy=True, seed=seed, **arguments)
        assert likeliest.canvas.tolist() == [0, 0, 0]


def test_rnd1_takes_top_p_of_the_top_k():
    """Of (.4, .3, .2, .1) the two likeliest have .57 and .43: above the second lie .57 of these, but .4 of all."""
    model = law((0.4, 0.3, 0.2, 0.1, 1e-9))
    arguments = dict(mask_id=M, max_new_tokens=1, steps=1, temperature=1.0, top_p=0.5)
    both = {int(rnd1(model, [], seed=seed, top_k=2, **arguments).canvas) for seed in range(40)}
    alone = {int(rnd1(model, [], seed=seed, **arguments).canvas) for seed in range(40)}
    assert both == {0} and alone == {0, 1}


def test_rnd1_does_not_generate_the_last_column():
    trace = rnd1(wandering(), [0], mask_id=M, max_new_tokens=5, steps=4, temperature=0.0, last_token=2)
    assert trace.history[0].tolist() == [0, M, M, M, M, 2] and trace.canvas[-1] == 2 and trace.forwards == 4


# Dream


@pytest.mark.parametrize("alg, first", [("maskgit_plus", 1), ("entropy", 2), ("topk_margin", 3)])
def test_dream_confidences(alg, first):
    model = law((0.2,) * 5, A, B, C)
    trace = dream(
        model,
        [0],
        mask_id=M,
        max_new_tokens=3,
        steps=3,
        alg=alg,
        temperature=0.0,
        schedule="B",
        right_shift_logits=False,
    )
    assert order(trace)[0] == [first]


def test_dream_confidence_is_tempered_and_filtered():
    """Entropies: raw .67 and 1.14; at T = 1/2, where p goes as p^2, .62 and .58. With top_k = 1 all are 1: a tie."""
    two, one = (0.6, 0.4, 1e-9, 1e-9, 1e-9), (0.58, 0.14, 0.14, 0.14, 1e-9)
    model = law(one, two, one)
    arguments = dict(mask_id=M, max_new_tokens=2, steps=2, alg="entropy", schedule="B")
    assert order(dream(model, [0], temperature=0.5, **arguments)) == [[1], [2]]  # shifted: rows 0 and 1 are read
    assert order(dream(model, [0], temperature=0.0, **arguments)) == [[2], [1]]
    assert order(dream(model, [0], temperature=1.0, **arguments)) == [[2], [1]]
    assert order(dream(model, [0], temperature=1.0, top_k=1, **arguments)) == [[1], [2]]
    exact = dream(model, [0], temperature=0.5, **arguments).steps[0]
    assert exact.committed == [1]


def test_dream_draws_from_the_filtered_law():
    """p^2 of (.5, .3, .15, .04, .01) is .25, .09, .0225, ...: top_p = .9 keeps those with less than .9 before them,
    two (.25 and .09 of .3642; .93 lies before the third)."""
    model, drawn = law((0.5, 0.3, 0.15, 0.04, 0.01)), torch.zeros(5)
    for seed in range(300):
        trace = dream(
            model, [], mask_id=M, seed=seed, max_new_tokens=1, steps=1, alg="maskgit_plus", temperature=0.5, top_p=0.9
        )
        drawn[trace.canvas[0]] += 1
    assert drawn[2:].sum() == 0 and binomial_p(int(drawn[0]), 300, 0.25 / 0.34) > P_MIN


def test_dream_time_grid_counts():
    """m (1 - s/t), rounded down: 10 x .2497, 8 x .3329, 6 x .4990, all. Two masks wait for the last step."""
    model = wandering()
    arguments = dict(mask_id=M, steps=4, alg="maskgit_plus", temperature=0.0)
    assert [len(c) for c in order(dream(model, [0], max_new_tokens=10, **arguments))] == [2, 2, 2, 4]
    assert [len(c) for c in order(dream(model, [0], max_new_tokens=2, **arguments))] == [2]
    b = dream(model, [0], max_new_tokens=10, schedule="B", **arguments)
    assert [len(c) for c in order(b)] == [2, 3, 2, 3]
    drawn = dream(model, [0], max_new_tokens=10, schedule="B", stochastic_transfer=True, seed=5, **arguments)
    assert [len(c) for c in order(drawn)] == [3, 1, 2, 4] == schedule_b(10, 4, LINEAR, seed=5, start=1)
    late = dream(model, [0], mask_id=M, max_new_tokens=2, steps=4, alg="entropy", temperature=1.0, seed=2)
    l = model(torch.tensor([[0, M, M]])).logits[0, :2]
    drawn = draw(l, 1.0, torch.tensor([2]), torch.tensor([1, 2]), torch.tensor([0]))  # step 0, the first that runs
    assert late.canvas[1:].tolist() == drawn.tolist()


def test_dream_origin_flips_coins():
    model, seed, steps = wandering(), 6, 5
    trace = dream(model, [0, 1], mask_id=M, seed=seed, max_new_tokens=8, steps=steps)
    times = torch.linspace(1, 1e-3, steps + 1)
    masked, want = set(range(2, 10)), []
    for i in range(steps):
        u = philox.uniform(torch.tensor(seed), torch.arange(10), torch.tensor(i), philox.RANDOM_CONFIDENCE)
        hit = [p for p in sorted(masked) if i == steps - 1 or u[p] < 1 - times[i + 1] / times[i]]
        masked -= set(hit)
        want.append(hit)
    assert order(trace) == want and max(map(len, want[:-1])) > 0
    l = model(torch.cat([trace.canvas[:2], torch.full((8,), M)])[None]).logits[0]
    for p in want[0]:
        assert trace.canvas[p] == draw(l[p - 1 : p], 1.0, *(torch.tensor([x]) for x in (seed, p, 0)))
    assert dream(model, [0], mask_id=M, max_new_tokens=8, steps=200).forwards < 200  # ends where no mask is left
    assert not bool((dream(model, [0], mask_id=M, max_new_tokens=8, steps=2, eps=0.5).canvas == M).any())


def test_dream_alg_temp_draws_positions():
    """From softmax(c / alg_temp), c the confidence itself: .6 and .25 at .5 give .668; logarithms, .852."""
    model, first = law((0.6, 0.4, 1e-9, 1e-9, 1e-9), (0.25, 0.2, 0.2, 0.2, 0.15), (0.2,) * 5), 0
    for seed in range(300):
        trace = dream(
            model,
            [0],
            mask_id=M,
            seed=seed,
            max_new_tokens=2,
            steps=2,
            alg="maskgit_plus",
            alg_temp=0.5,
            temperature=0.0,
            schedule="B",
        )
        first += order(trace)[0] == [1]
    assert binomial_p(first, 300, 1 / (1 + math.exp(-0.7))) > P_MIN
    words = philox.words(*(torch.tensor(x) for x in (299, 0, [1, 2], 0)), philox.RANDOM_CONFIDENCE)
    number = torch.tensor([0.6, 0.25]) / 0.5 + philox.gumbel_from_words(*words[:2])
    assert order(trace)[0] == [1 + int(number.argmax())]


# as many as the model is sure of

# softmax over five tokens: e^a / (e^a + 4) = .932, .834, .974, .405
FOUR = ((0, 0), (1, 4.0), (2, 3.0), (3, 5.0), (1, 1.0))


def test_threshold_and_factor_by_hand():
    model = Table(sure(*FOUR))
    arguments = dict(mask_id=M, max_new_tokens=4, block_size=4)
    assert order(threshold_decode(model, [0], threshold=0.9, **arguments)) == [[3, 1], [2], [4]]
    assert order(threshold_decode(model, [0], threshold=0.8, **arguments)) == [[3, 1, 2], [4]]
    assert order(threshold_decode(model, [0], threshold=0.0, **arguments)) == [[3, 1, 2, 4]]
    assert order(threshold_decode(model, [0], factor=0.3, **arguments)) == [[3, 1], [2], [4]]  # .85 .90 .925
    assert order(threshold_decode(model, [0], factor=0.05, **arguments)) == [[3], [1], [2], [4]]  # .975
    in_blocks = threshold_decode(model, [0], threshold=0.9, mask_id=M, max_new_tokens=4, block_size=2)
    assert order(in_blocks) == [[1], [2], [3], [4]]
    assert [(step.block, step.step) for step in in_blocks.steps] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_confidence_is_raw_whatever_the_temperature():
    """At T = 0.05 the tempered law would be certain everywhere; the raw one stays below the threshold."""
    model = Table(sure((0, 0), (1, 2.0), (2, 2.0)))
    arguments = dict(mask_id=M, max_new_tokens=2, block_size=2, temperature=0.05)
    assert order(threshold_decode(model, [0], threshold=0.9, **arguments)) == [[1], [2]]
    assert order(entropy_bound(model, [0], gamma=0.1, **arguments)) == [[1], [2]]


def test_threshold_out_of_reach_is_one_token_a_step():
    model = wandering(5)
    arguments = dict(mask_id=M, seed=4, max_new_tokens=8, block_size=4, temperature=0.6)
    want = mdlm_sample(model, [1], steps=8, **arguments)
    assert threshold_decode(model, [1], threshold=1.5, **arguments).canvas.tolist() == want.canvas.tolist()


def test_llada2_by_hand():
    model = Table(sure(*FOUR))
    arguments = dict(mask_id=M, max_new_tokens=4, block_size=4)
    assert order(llada2(model, [0], steps=2, threshold=0.9, **arguments)) == [[3, 1], [2, 4]]
    assert order(llada2(model, [0], steps=2, threshold=0.96, **arguments)) == [[3, 1], [2, 4]]  # one above, two due
    assert order(llada2(model, [0], steps=2, threshold=0.8, **arguments)) == [[3, 1, 2], [4]]
    early = llada2(model, [0], steps=6, threshold=0.9, **arguments)
    assert order(early) == [[3, 1], [2], [4]]  # the block ends as soon as it is full
    exactly = float(_log_softmax(sure(*FOUR))[1, 1].exp())
    assert order(llada2(model, [0], steps=4, threshold=exactly, **arguments))[0] == [3]  # above means above
    assert order(threshold_decode(model, [0], threshold=exactly, **arguments))[0] == [3, 1]


def test_entropy_bound_by_hand():
    def entropy(a: float) -> float:
        p, q = math.exp(a) / (math.exp(a) + 4), 1 / (math.exp(a) + 4)
        return -p * math.log(p) - 4 * q * math.log(q)

    model = Table(sure(*FOUR))
    two = entropy(5.0) + entropy(4.0)
    for gamma, want in [
        (0.0, [[3], [1], [2], [4]]),
        (entropy(5.0) + 1e-4, [[3, 1], [2], [4]]),
        (two - 1e-4, [[3, 1], [2], [4]]),
        (two + 1e-4, [[3, 1, 2], [4]]),
        (9.0, [[3, 1, 2, 4]]),
    ]:
        assert order(entropy_bound(model, [0], mask_id=M, max_new_tokens=4, gamma=gamma)) == want
    assert order(entropy_bound(model, [0], mask_id=M, max_new_tokens=4, block_size=3, gamma=9.0)) == [[3, 1, 2], [4]]


# what all share


def test_a_model_that_proposes_the_mask_token_leaves_holes():
    model = Table(sure((0, 0), (M, 9.0), (1, 1.0)))
    trace = threshold_decode(model, [0], mask_id=M, max_new_tokens=2, block_size=2, threshold=0.9)
    assert order(trace) == [[1], [1]] and trace.canvas.tolist() == [0, M, M]


EOS = 3
ROW = ((0, 0), (1, 1.0), (EOS, 9.0), (2, 0.5), (1, 5.0), (1, 5.0))


@pytest.mark.parametrize(
    "sample",
    [
        lambda *args, **kw: mdlm_sample(*args, max_new_tokens=5, block_size=3, steps=6, **kw),
        lambda *args, **kw: threshold_decode(*args, max_new_tokens=5, block_size=3, threshold=0.9, **kw),
        lambda *args, **kw: llada2(*args, max_new_tokens=5, block_size=3, steps=3, **kw),
        lambda *args, **kw: entropy_bound(*args, max_new_tokens=5, block_size=3, gamma=0.0, **kw),
    ],
    ids=["mdlm", "threshold", "llada2", "entropy"],
)
def test_a_row_ends_at_its_eos(sample):
    """EOS comes first, but a mask is left of it: one more step. Then the rest, of later blocks too, becomes EOS."""
    model = Table(sure(*ROW))
    ended = sample(model, [EOS], mask_id=M, eos_token_id=EOS)  # an EOS in the prompt ends nothing
    assert canvases(ended)[1:] == [[EOS, M, EOS, M, M, M], [EOS, 1, EOS, EOS, EOS, EOS]]
    assert sample(model, [EOS], mask_id=M).canvas.tolist() == [EOS, 1, EOS, 2, 1, 1]


def test_llada_and_dream_end_at_eos():
    model = Table(sure(*ROW))
    ended = llada(model, [0], mask_id=M, gen_length=4, block_length=2, steps=4, eos_token_id=EOS)
    assert ended.canvas.tolist() == [0, 1, EOS, EOS, EOS] and ended.forwards == 2
    for schedule in ("time", "B"):
        arguments = dict(alg="maskgit_plus", schedule=schedule, temperature=0.0, right_shift_logits=False)
        ended = dream(model, [0], mask_id=M, max_new_tokens=3, steps=300, eos_token_id=EOS, **arguments)
        assert ended.canvas.tolist() == [0, 1, EOS, EOS]
    origin = dream(
        Table(sure(*[(EOS, 50.0)] * 6)), [0], mask_id=M, max_new_tokens=5, steps=99, eos_token_id=EOS, seed=1
    )
    assert origin.canvas.tolist() == [0] + [EOS] * 5 and origin.forwards < 99


def test_bad_input():
    with pytest.raises(ValueError, match="no finite logit"):
        mdlm_sample(Table(torch.full((2, 5), torch.nan)), [0], mask_id=M, max_new_tokens=1)
    with pytest.raises(TypeError, match="temprature"):
        mdlm_sample(wandering(), [0], mask_id=M, temprature=1.0)


# differences


def test_no_difference():
    trace = mdlm_sample(wandering(), [0], mask_id=M, max_new_tokens=6, steps=6)
    assert first_difference(trace.canvas.clone(), trace) is None
    assert first_difference(trace.history, trace) is None
    assert first_difference([trace.history[0], *trace.history], trace) is None  # a step that commits nothing


@pytest.mark.parametrize("gap, near", [(1e-7, True), (1e-3, False)])
def test_difference_of_a_token(gap, near):
    table = sure((0, 0), (1, 2.0), (2, 1.0))
    table[1, 3] = 2.0 - gap
    trace = mdlm_sample(Table(table), [0], mask_id=M, max_new_tokens=2, steps=2)
    got = [canvas.clone() for canvas in trace.history]
    for canvas in got[1:] if trace.steps[0].committed == [1] else got[2:]:
        canvas[1] = 3
    for found in (first_difference(got[-1], trace), first_difference(got, trace)):
        assert (found.positions, found.near_tie) == ([1], near)
        assert not near or found.kind == "token"


@pytest.mark.parametrize("gap, near", [(1e-7, True), (1e-3, False)])
def test_difference_of_a_transfer(gap, near):
    """The other position came first, and by the coupling another token then stands to its right."""
    coupling = torch.zeros(5, 5)
    coupling[1, 3] = 5.0
    model = Table(sure((0, 0), (1, 2.0 + gap), (2, 2.0)), coupling)
    trace = mdlm_sample(model, [0], mask_id=M, max_new_tokens=2, steps=2)
    assert trace.canvas.tolist() == [0, 1, 3] and order(trace) == [[1], [2]]
    got = [torch.tensor(c) for c in ([0, M, M], [0, M, 2], [0, 1, 2])]
    by_history, by_canvas = first_difference(got, trace), first_difference(got[-1], trace)
    assert (by_history.step, by_history.positions, by_history.near_tie) == (0, [1, 2], near)
    assert (by_canvas.step, by_canvas.positions, by_canvas.near_tie) == (1, [2], near)
    assert not near or by_history.kind == by_canvas.kind == "transfer"


def test_difference_of_a_filter():
    """The token that the judge's top-p left out, at a boundary within rounding of top_p."""
    model = law((0.5, 0.3, 0.2, 1e-9, 1e-9))
    for top_p, near in [(0.5 - 1e-7, True), (0.4, False)]:
        trace = dream(model, [], mask_id=M, max_new_tokens=1, steps=1, alg="entropy", temperature=1.0, top_p=top_p)
        assert trace.canvas.tolist() == [0]
        for found in (
            first_difference(torch.tensor([1]), trace),
            first_difference([torch.tensor([M]), torch.tensor([1])], trace),
        ):
            assert found.near_tie == near and (not near or found.kind == "filter")


def test_differences_that_nothing_explains():
    trace = threshold_decode(Table(sure(*FOUR)), [0], mask_id=M, max_new_tokens=4, block_size=4, threshold=0.9)
    prompt = trace.canvas.clone()
    prompt[0] = 1
    assert first_difference(prompt, trace) == (None, [0], "none", math.inf, False)
    assert not first_difference(trace.history[:-1], trace).near_tie  # stopped too early
    beyond = trace.canvas.clone()
    beyond[4] = 0
    assert not first_difference([*trace.history, beyond], trace).near_tie  # went on after the end
    hole = trace.canvas.clone()
    hole[2] = M
    assert not first_difference(hole, trace).near_tie
    with pytest.raises(ValueError, match="shape"):
        first_difference(torch.zeros(3), trace)
