"""Captured steps beside a cache, on a CPU: a stand-in for the graph runs the step on the captured memory."""

import pytest
import torch

from dllm.core import samplers
from dllm.fast import capture
from dllm.fast.sampling import graphs
from tests import graph_stand_in
from tests.causal_models import causal_model
from tests.samplers.test_cached import TOKENIZER, prompts


@pytest.fixture
def stand_in(monkeypatch, one_thread):
    """Graph mode on the CPU."""
    made = graph_stand_in.install_sampling(monkeypatch)
    yield made
    assert not made.waited and not made.foreign and made.left == 0


CALLS = {
    "bd3lm": (samplers.BD3LMSampler, dict(steps=14, remasking="random")),
    "bd3lm, one step a block": (samplers.BD3LMSampler, dict(steps=1)),
    "bd3lm, shifted": (samplers.BD3LMSampler, dict(steps=14, right_shift_logits=True)),
    "bd3lm, guided": (samplers.BD3LMSampler, dict(steps=14, cfg_scale=0.5)),
    "bd3lm, recomputed": (samplers.BD3LMSampler, dict(steps=14, cache=False)),
    "llada2": (samplers.LLaDA2Sampler, dict(cache=True, threshold=0.2, steps=8)),
    "llada21": (samplers.LLaDA21Sampler, dict(cache=True, threshold=0.2, steps=8, edit_threshold=0.3, edit_steps=4)),
    "prefix": (samplers.FastDLLMSampler, dict(cache="prefix", threshold=0.2)),
    "prefix, scheduled": (samplers.FastDLLMSampler, dict(cache="prefix", threshold=None, steps=9)),
    "dual": (samplers.FastDLLMSampler, dict(cache="dual", threshold=0.2)),
    "dual, factor": (samplers.FastDLLMSampler, dict(cache="dual", threshold=None, factor=2.3)),
    "dual, scheduled": (samplers.FastDLLMSampler, dict(cache="dual", threshold=None, steps=9)),
    "dual, guided": (samplers.FastDLLMSampler, dict(cache="dual", threshold=0.3, cfg_scale=0.5)),
    "dual, shifted": (samplers.FastDLLMSampler, dict(cache="dual", threshold=0.3, right_shift_logits=True)),
    "prefix, shifted, guided": (
        samplers.FastDLLMSampler,
        dict(cache="prefix", threshold=None, steps=9, right_shift_logits=True, cfg_scale=0.5),
    ),
}


@pytest.mark.covering(1)
@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_replays_give_the_eager_tokens(stand_in, monkeypatch, name, stops):
    """Prompts of unequal lengths; a second call finds all that it needs. Step by step and several at a time."""
    kind, settings = CALLS[name]
    sampler = kind(causal_model(favoured=3.0), TOKENIZER)
    options = dict(max_new_tokens=20, block_size=8, temperature=0.8, stop_at_eos=stops, **settings)
    for seed in (0, 1):
        rows = prompts(sampler.model, (11, 2, 5), seed)
        eager = sampler.sample(rows, seed=seed, cuda_graph=False, return_dict=True, **options)
        graphed = sampler.sample(rows, seed=seed, return_dict=True, **options)
        assert graphed.stats.mode == "graph" and graphed.stats.body_seconds is None
        assert torch.equal(graphed.sequences, eager.sequences)
        assert graphed.stats.row_forwards == eager.stats.row_forwards and graphed.stats.idle_forwards == 0
        assert all(map(torch.equal, graphed.histories, eager.histories))
    assert len(graphs.CACHE) == 1 and set(stand_in.replayed) == {1}
    monkeypatch.setattr(graphs, "WORTH_SEVERAL", 0)
    assert torch.equal(sampler.sample(rows, seed=seed, **options), eager.sequences)


def kinds(stand_in):
    """What was captured: width, number of rows that begin, of each pass; and how many steps."""
    return {(tuple((one.width, one.starting_rows) for one in passes), count) for passes, count in stand_in.captured}


def test_the_kinds_of_steps(stand_in, monkeypatch):
    monkeypatch.setattr(graphs, "WORTH_SEVERAL", 0)
    model, options = causal_model(), dict(max_new_tokens=24, block_size=8, seed=1)

    def captured(kind, rows, **settings):
        stand_in.captured.clear()
        graphs.CACHE.clear()
        kind(model, TOKENIZER).sample(rows, **options | settings)
        return kinds(stand_in)

    block, fast, scheduled = samplers.BD3LMSampler, samplers.FastDLLMSampler, dict(threshold=None, steps=24)
    same, unequal = [[5, 6], [7, 8]], prompts(model, (11, 2, 5))
    # the schedule tells where blocks begin: a step that reaches one block back, and seven of the block alone
    wide, narrow = ((16, None),), ((8, None),)
    assert captured(block, unequal, steps=24, stop_at_eos=True) == {(wide, 1), (narrow, 1), (narrow, 4)}
    # blocks adapt: the wide one serves all
    assert {passes for passes, _ in captured(samplers.LLaDA2Sampler, unequal, cache=True, threshold=0.3)} == {wide}
    # all rows begin at once: their canvas, and seven windows
    canvas = ((26, None),)
    assert captured(fast, same, **scheduled) == {(canvas, 1), (narrow, 1), (narrow, 4)}
    # rows begin when they are done with a block: any number of them, in powers of two
    found = captured(fast, unequal, threshold=0.2)
    assert found == {(((35, None),), 1), (narrow, 1), *((((35, n), (8, None)), 1) for n in (1, 2))}


@pytest.mark.parametrize("name", ["prefix", "dual", "dual, shifted", "llada21"])
def test_a_capture_leaves_state_and_cache(stand_in, monkeypatch, name):
    """A window that a warm-up runs in the middle of a call may not be kept: later steps read what stood there."""
    real, captured = graphs.capture_steps, []

    def capture_steps(step, count, state, pool):
        cache, before = step.args[4], state.copy().tensors()
        kept = [tensor[:, :, :-1].clone() for tensor in (*cache.keys, *cache.values)]
        replay = real(step, count, state, pool)
        assert all(torch.equal(a[:, :, :-1], b) for a, b in zip((*cache.keys, *cache.values), kept, strict=True))
        for name, tensor in state.tensors().items():
            assert name in ("start", "proposals", "confidence") or torch.equal(tensor, before[name]), name
        captured.append(int(state.row_steps.max()))
        return replay

    monkeypatch.setattr(graphs, "capture_steps", capture_steps)
    kind, settings = CALLS[name]
    kind(causal_model(), TOKENIZER).sample([[5, 6], [7]], max_new_tokens=20, block_size=8, seed=0, **settings)
    assert max(captured) > 0


@pytest.mark.parametrize("allowed", [0, 1])
def test_a_capture_that_fails_in_a_call(stand_in, monkeypatch, caplog, allowed):
    """Eager from there on, with the same tokens; or an error, where graphs are insisted on."""
    sampler, rows = samplers.FastDLLMSampler(causal_model(), TOKENIZER), [[5, 6], [7]]
    options = dict(max_new_tokens=20, block_size=8, threshold=0.2, seed=3, return_dict=True)
    eager = sampler.sample(rows, cuda_graph=False, **options)

    def record(*arguments):
        if len(stand_in.captured) == allowed:
            raise capture.CaptureError("RuntimeError: out of memory")
        return stand_in.record(*arguments)

    monkeypatch.setattr(capture, "record", record)
    out = sampler.sample(rows, **options)
    assert torch.equal(out.sequences, eager.sequences) and all(map(torch.equal, out.histories, eager.histories))
    assert out.stats.mode == "eager" and out.stats.note.endswith("cannot be captured: RuntimeError: out of memory")
    assert out.stats.note in caplog.text and len(graphs.CACHE) == 0 and out.stats.capture_seconds == 0
    stand_in.captured.clear()
    with pytest.raises(RuntimeError, match="cuda_graph=True, but the step cannot be captured: RuntimeError: out of"):
        sampler.sample(rows, cuda_graph=True, **options)


@pytest.mark.parametrize("name", ["bd3lm", "dual"])
def test_changed_weights(stand_in, monkeypatch, name):
    """Changed in place they are read by every graph; replaced, they are captured anew."""
    monkeypatch.setattr(graphs, "WORTH_SEVERAL", 0)
    kind, settings = CALLS[name]
    model = causal_model("Qwen3", favoured=0.01)
    sampler, options = kind(model, TOKENIZER), dict(max_new_tokens=20, block_size=8, seed=0, **settings)

    def call():
        out = sampler.sample([[5, 6], [7]], **options)
        assert torch.equal(out, sampler.sample([[5, 6], [7]], cuda_graph=False, **options))
        return out, len(stand_in.captured)

    before, captured = call()
    weight = model.model.layers[0].mlp.up_proj.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(-1)
    changed, _ = call()
    assert len(graphs.CACHE) == 1 and not torch.equal(changed, before)
    weight.data = kept
    again, captures = call()
    assert len(graphs.CACHE) == 2 and captures > captured and torch.equal(again, before)


@pytest.mark.parametrize("name", [pytest.param("bd3lm", marks=pytest.mark.exhaustive), "dual"])
def test_a_compiled_model(stand_in, name):
    kind, settings = CALLS[name]
    model, options = causal_model(), dict(max_new_tokens=20, block_size=8, seed=0, temperature=0.5, **settings)
    compiled = kind(torch.compile(model, backend="eager"), TOKENIZER)
    eager = kind(model, TOKENIZER).sample([[5, 6], [7]], cuda_graph=False, **options)
    assert torch.equal(compiled.sample([[5, 6], [7]], **options), eager) and stand_in.captured


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_kinds_of_steps_are_captured_that_come_often(stand_in, monkeypatch, cache):
    """Four blocks of five steps: four steps run the canvas, and sixteen a window. A second call makes up eight."""
    monkeypatch.setattr(graphs, "WORTH_CAPTURING", 8)
    sampler = samplers.FastDLLMSampler(causal_model(favoured=3.0), TOKENIZER)
    options = dict(cache=cache, threshold=None, steps=20, max_new_tokens=20, block_size=5, temperature=0.8, seed=1)
    eager = sampler.sample([[5, 6]], cuda_graph=False, **options)
    for kinds, replays in ((1, 16), (2, 17)):  # the schedule tells of the windows; the canvas has come up four times
        stand_in.replayed.clear()
        assert torch.equal(sampler.sample([[5, 6]], **options), eager)
        assert len(stand_in.captured) == kinds and len(stand_in.replayed) >= replays
    stand_in.replayed.clear()
    sampler.sample([[5, 6]], **options)
    assert len(stand_in.captured) == 2 and len(stand_in.replayed) == 20


def test_kinds_that_nothing_tells_of_are_captured_after_they_have_come_often(stand_in, monkeypatch):
    """Beside a threshold blocks end when they may, so only what has been counts."""
    monkeypatch.setattr(graphs, "WORTH_CAPTURING", 6)
    sampler = samplers.FastDLLMSampler(causal_model(favoured=3.0), TOKENIZER)
    options = dict(cache="dual", threshold=1.0, max_new_tokens=16, block_size=8, temperature=0.8, return_dict=True)
    eager = sampler.sample([[5, 6]], cuda_graph=False, seed=1, **options)
    graphed = sampler.sample([[5, 6]], seed=1, **options)
    assert torch.equal(graphed.sequences, eager.sequences) and graphed.stats.forwards == 16
    assert len(stand_in.captured) == 1 and stand_in.replayed == [1] * 9  # of 14 windows all but the first five
