"""Captured steps beside a cache, on a CPU: a stand-in for the graph runs the step on the captured memory."""

import pytest
import torch

from dllm.core import samplers
from dllm.fast import graphs
from tests import graph_stand_in
from tests.causal_models import causal_model
from tests.samplers.test_cached import TOKENIZER, prompts


@pytest.fixture
def stand_in(monkeypatch, one_thread):
    """Graph mode on the CPU."""
    made = graph_stand_in.install_sampling(monkeypatch)
    yield made
    assert not made.waited


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
}


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
