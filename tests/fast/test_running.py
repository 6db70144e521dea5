"""Rows that join and leave a running batch: what they are told, what they cost, what is refused."""

from types import SimpleNamespace

import pytest
import torch

from dllm.core import samplers
from dllm.core.samplers.layout import lay_out_texts
from dllm.fast.sampling import merge
from dllm.fast.sampling.rows import NoFiniteLogit
from dllm.fast.sampling.running import Running
from tests.causal_models import causal_model
from tests.models import MASK_ID, shared, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = SimpleNamespace(mask_token_id=MASK_ID, eos_token_id=40, pad_token_id=1)
POISON = 90  # a row with this token gets NaN logits


def plan(prompts, model=None, seed=0, **settings):
    model = shared("bert", torch.device("cpu")) if model is None else model
    return samplers.MDLMSampler(model, TOKENIZER).plan(prompts, seed=seed, **dict(steps=4, max_new_tokens=4) | settings)


def running_with(*plans, model=None, **options):
    model = shared("bert", torch.device("cpu")) if model is None else model
    running = Running(model, plans[0].policy, **options)
    for one in plans:
        running.join(one.batch, one.policy)
    return running


def finish(running):
    rows = []
    while running:
        rows += running.step()
    return rows


@pytest.fixture
def poisoned():
    model = tiny("bert")

    def spoil(module, inputs, hidden):
        return torch.where((model.seen == POISON).any(1)[:, None, None], torch.nan, hidden)

    def see(module, args, kwargs):
        model.seen = kwargs["input_ids"]

    model.register_forward_pre_hook(see, with_kwargs=True)
    model.cls.predictions.transform.register_forward_hook(spoil)
    return model


def test_a_row_has_its_own_error(poisoned):
    """It leaves with it, counted from its own first step; the others go on and get what they get without it."""
    good = plan([[5, 6], [7, 8, 9]], poisoned, steps=6, max_new_tokens=6)
    bad = plan([[POISON, 5]], poisoned)
    running = running_with(good, model=poisoned)
    running.step()
    assert running.join(bad.batch, bad.policy) == [2]
    (failed,) = running.step()
    assert (failed.id, failed.forwards, len(failed.tokens)) == (2, 1, 6)
    assert isinstance(failed.error, NoFiniteLogit)
    assert str(failed.error) == "no logit was finite at step 0, so no token could be chosen"
    others = finish(running)
    assert [(row.id, row.error, row.forwards) for row in others] == [(0, None, 6), (1, None, 6)]
    alone = finish(running_with(good, model=poisoned))
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(others, alone, strict=True))


def test_a_whole_call_raises_for_its_first_bad_row(poisoned):
    sampler = samplers.MDLMSampler(poisoned, TOKENIZER)
    steps = []
    with pytest.raises(NoFiniteLogit, match="row 1: no logit was finite at step 0"):
        sampler.sample([[5], [POISON], [6], [POISON]], steps=4, max_new_tokens=4, on_step=steps.append)
    assert len(steps) == 4


def test_sizes_follow_the_rows():
    short, long = plan([[5]], steps=2, block_size=2), plan([[6] * 20], steps=20, max_new_tokens=20, block_size=4)
    running = running_with(short)
    assert merge.Sizes.of(running.state) == (5, 2, 1, 4) and running.state.attention_mask is None
    running.join(long.batch, long.policy)
    assert merge.Sizes.of(running.state) == (40, 5, 4, 20)
    assert running.state.attention_mask.sum(1).tolist() == [5, 40]
    running.step()
    running.leave([1])
    assert merge.Sizes.of(running.state) == (5, 2, 1, 5) and running.state.attention_mask is None
    (row,) = running.step()
    assert (row.id, row.forwards) == (0, 2)
    assert torch.equal(row.tokens, finish(running_with(short))[0].tokens)
    assert not running and running.join(long.batch, long.policy) == [2]  # ids go on


def test_a_window_wider_than_the_canvas():
    """A policy planned for long rows serves short ones."""
    wide = plan([[5] * 30], max_new_tokens=40).policy
    short = plan([[6, 7]])
    running = Running(shared("bert", torch.device("cpu")), wide)
    running.join(short.batch)
    (row,) = finish(running)
    assert torch.equal(row.tokens, finish(running_with(short))[0].tokens)


def test_rows_that_take_no_step_come_back_at_once():
    sampler = samplers.MDLMSampler(shared("bert", torch.device("cpu")), TOKENIZER)
    layout = lay_out_texts([torch.tensor([5, 6])], MASK_ID, 0, block_size=None)
    nothing = sampler._plan(layout, sampler.config_class(), continues=False)
    running = running_with(plan([[5]]), nothing)
    (row,) = running.step()
    assert (row.id, row.forwards, row.tokens.tolist()) == (1, 0, [5, 6]) and len(running) == 1


@pytest.mark.parametrize("rows_per_step", [1, 2])
def test_log_probs_are_those_of_the_step_that_wrote_a_token(rows_per_step):
    """By the model's own forward of the canvas before each step, without temperature; a row beside keeps none."""
    model = shared("bert", torch.device("cpu"))
    one, other = plan([[5, 6]], temperature=2.0, steps=4 // rows_per_step), plan([[7] * 9], seed=5, temperature=2.0)
    running = running_with(other)
    running.step()
    running.join(one.batch, one.policy, keeps_log_probs=True)
    expected, seen = {}, running.view([1])[0].canvas
    while 1 in running.ids:
        logits = model(seen[None]).logits[0].detach().log_softmax(-1)
        running.advance()
        now = running.view([1])[0]
        for column in (now.canvas != seen).nonzero().flatten().tolist():
            expected[column] = logits[column, now.canvas[column]]
        seen = now.canvas
        assert now.log_probs.isnan().tolist() == [column not in expected for column in range(6)]
        left = running.collect()
    (row,) = (row for row in left if row.id == 1)
    assert all(row.log_probs is None for row in [*left, *finish(running)] if row.id == 0)
    assert row.log_probs[:2].isnan().all() and sorted(expected) == [2, 3, 4, 5]
    torch.testing.assert_close(row.log_probs[2:], torch.stack([expected[column] for column in range(2, 6)]))


def test_views():
    one, two = plan([[5, 6]], steps=2), plan([[7] * 9], seed=5)
    running = running_with(one, two)
    before = running.view([1])[0]
    assert before.canvas.tolist() == [7] * 9 + [MASK_ID] * 4 == before.tentative.tolist()
    assert before.confidence.isnan().all() and before[3:] == (0, 1, 0, 4, 0, None)
    running.step()
    late, early = running.view([1, 0])
    assert (late.canvas == MASK_ID).sum() == 3 and (early.canvas == MASK_ID).sum() == 2
    assert len(late.canvas) == 13 and not bool((late.tentative == MASK_ID).any()) and late[3:] == (0, 1, 1, 4, 1, None)
    assert late.confidence.isfinite().tolist() == [False] * 9 + [True] * 4
    assert bool((late.tentative == late.canvas)[late.canvas != MASK_ID].all())
    late.canvas.fill_(0)  # a copy
    assert running.view([1])[0].canvas[0] == 7


def test_what_is_refused():
    running = running_with(plan([[5]]))
    for bad in ([1], [0, 7]):
        with pytest.raises(ValueError, match=r"no such rows run: \[[17]\]; those that do: \[0\]"):
            running.leave(bad)
        with pytest.raises(ValueError, match="no such rows run"):
            running.view(bad)
    other = plan([[6]], cfg_scale=1.0)
    with pytest.raises(ValueError, match="rows of one policy run together, got Policy"):
        running.join(other.batch, other.policy)
    hushed = plan([[6]], suppress_tokens=[50])
    with pytest.raises(ValueError, match="suppress must be that of the rows that run"):
        running.join(hushed.batch, hushed.policy)
    assert running.ids == [0] and len(finish(running)) == 1
    with pytest.raises(ValueError, match="width_multiple must be at least 1, got 0"):
        running_with(plan([[5]]), width_multiple=0)


def test_beside_a_cache_rows_join_together():
    model = causal_model()
    sampler = samplers.BD3LMSampler(model, TOKENIZER)
    first, second = (sampler.plan([[5, 6, 7]], seed=s, steps=4, max_new_tokens=8, block_size=4) for s in (1, 2))
    running = running_with(first, model=model)
    with pytest.raises(ValueError, match="beside a KV cache rows join only while none runs"):
        running.join(second.batch, second.policy)
    finish(running)
    running.join(second.batch, second.policy)
    (row,) = finish(running)
    expected = sampler.sample([[5, 6, 7]], seed=2, steps=4, max_new_tokens=8, block_size=4)
    assert torch.equal(row.tokens, expected[0])
    with pytest.raises(ValueError, match="width_multiple needs attention to whole rows"):
        Running(model, first.policy, width_multiple=32)


def test_a_captured_batch_goes_on_eagerly_when_rows_join(monkeypatch):
    from tests import graph_stand_in

    one, two = plan([[5, 6]], steps=4), plan([[7] * 3], seed=5)
    expected = [finish(running_with(each))[0].tokens for each in (one, two)]
    graph_stand_in.install_sampling(monkeypatch)
    running = running_with(one, cuda_graph=None)
    running.step()
    assert running.graphed
    running.join(two.batch, two.policy)
    assert not running.graphed and running.note == "rows have joined a batch that runs"
    rows = finish(running)
    assert all(torch.equal(row.tokens, expected[row.id]) for row in rows) and len(rows) == 2
