"""Captured steps beside a cache, on a CPU: a stand-in for the graph runs the step on the captured memory."""

import weakref

import pytest
import torch

from dllm.core import samplers
from dllm.fast import graphs
from dllm.fast.denoise import Clock, State, denoise_step
from dllm.fast.head import HeadTap
from tests.causal_models import causal_model
from tests.samplers.test_cached import TOKENIZER, prompts


@pytest.fixture
def captures(monkeypatch, one_thread):
    """Graph mode on the CPU; the list fills with one entry per capture."""
    made = []

    def capture(tap, state, policy, pool, cache, passes):
        copies = {name: tensor.clone() for name, tensor in state.tensors().items()}
        own, model, kind = State(**dict.fromkeys(State.__slots__) | copies), weakref.ref(tap.model), tap.kind
        made.append(passes)

        def replay():
            stand_in = object.__new__(HeadTap)
            stand_in.model, stand_in.head, stand_in.kind = model(), model().get_output_embeddings(), kind
            denoise_step(stand_in, own, policy, Clock(torch.device("cpu"), on=False), cache, passes)

        for _ in range(graphs.WARM_UPS):
            replay()
        step = graphs.CapturedStep(own, replay, model)
        step.load(state)
        return step

    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setattr(graphs, "wanted", lambda cuda_graph, device, forwards: (cuda_graph is not False, "off"))
    monkeypatch.setattr(graphs, "CACHE", graphs.GraphCache(size=3))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    return made


CALLS = {
    "bd3lm": (samplers.BD3LMSampler, dict(steps=14, remasking="random")),
    "bd3lm, one step a block": (samplers.BD3LMSampler, dict(steps=1)),
    "bd3lm, shifted": (samplers.BD3LMSampler, dict(steps=14, right_shift_logits=True)),
    "bd3lm, guided": (samplers.BD3LMSampler, dict(steps=14, cfg_scale=0.5)),
    "bd3lm, recomputed": (samplers.BD3LMSampler, dict(steps=14, cache=False)),
    "llada2": (samplers.LLaDA2Sampler, dict(cache=True, threshold=0.2, steps=8)),
    "llada21": (samplers.LLaDA21Sampler, dict(cache=True, threshold=0.2, steps=8, edit_threshold=0.3, edit_steps=4)),
}


@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_replays_give_the_eager_tokens(captures, name, stops):
    """The opening step runs the prompts; one captured step, whose window reaches one block back, serves all others."""
    kind, settings = CALLS[name]
    sampler = kind(causal_model(favoured=3.0), TOKENIZER)
    options = dict(max_new_tokens=20, block_size=8, temperature=0.8, return_dict=True, stop_at_eos=stops, **settings)
    for seed in (0, 1):
        rows = prompts(sampler.model, (11, 2, 5), seed)
        eager = sampler.sample(rows, seed=seed, cuda_graph=False, **options)
        graphed = sampler.sample(rows, seed=seed, **options)
        assert graphed.stats.mode == "graph" and graphed.stats.body_seconds is None
        assert torch.equal(graphed.sequences, eager.sequences)
        assert graphed.stats.row_forwards == eager.stats.row_forwards
        assert all(map(torch.equal, graphed.histories, eager.histories))
    assert len(captures) == 1


def test_caches_that_are_not_captured(captures):
    sampler = samplers.FastDLLMSampler(causal_model(), TOKENIZER)
    out = sampler.sample([[7, 8]], max_new_tokens=8, block_size=4, return_dict=True)
    assert out.stats.mode == "eager" and "runs other columns where a row begins a block" in out.stats.note
    with pytest.raises(ValueError, match="cuda_graph must be None or False here, because a step beside the dual cache"):
        sampler.sample([[7, 8]], max_new_tokens=8, block_size=4, cuda_graph=True)
    assert not captures
