"""Rows of different temperatures in one batch: each is what it is alone."""

from types import SimpleNamespace

import pytest
import torch

from dllm.core import samplers
from dllm.fast.sampling.running import Running
from tests.causal_models import causal_model
from tests.models import MASK_ID, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = SimpleNamespace(mask_token_id=MASK_ID, eos_token_id=40, pad_token_id=1)
PROMPTS = [[5, 6, 7], [9, 8, 7], [11, 12, 13], [30, 8, 1]]
TEMPERATURES = [0.0, 4.0, 0.5, 0.0]
CASES = {
    "mdlm": (samplers.MDLMSampler, dict(steps=8)),
    "guided": (samplers.MDLMSampler, dict(steps=8, cfg_scale=0.5)),
    "dream": (samplers.DreamSampler, dict(steps=8, alg="entropy", top_p=0.9, top_k=20, block_size=None)),
    "rnd1, greedy": (samplers.RND1Sampler, dict(steps=8, greedy=True, top_k=9, top_p=0.8, block_size=None)),
    "bd3lm": (samplers.BD3LMSampler, dict(steps=8)),
}


def call(name, prompts, temperature, seeds, **options):
    kind, settings = CASES[name]
    model = causal_model() if name in ("bd3lm", "rnd1, greedy") else tiny("bert")
    settings = dict(max_new_tokens=12, block_size=4) | settings | options
    return kind(model, TOKENIZER).sample(prompts, seed=seeds, temperature=temperature, return_dict=True, **settings)


@pytest.mark.parametrize("graphed", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_row_is_what_it_is_alone(name, graphed, monkeypatch):
    alone = [call(name, [p], T, [i]) for i, (p, T) in enumerate(zip(PROMPTS, TEMPERATURES, strict=True))]
    if graphed:
        from tests import graph_stand_in

        stand_in = graph_stand_in.install_sampling(monkeypatch)
    together = call(name, PROMPTS, TEMPERATURES, list(range(4)), keep_histories=False)
    assert not graphed or (together.stats.mode == "graph" and stand_in.foreign == [])
    for row, one in zip(together.sequences, alone, strict=True):
        assert torch.equal(row, one.sequences[0])


def test_one_number_is_the_fast_way():
    """Rows of one temperature, given as a list or left over by others, run as if it had been one number."""
    sampler = samplers.MDLMSampler(tiny("bert"), TOKENIZER)
    plan = sampler.plan(PROMPTS, seed=0, steps=4, max_new_tokens=4, temperature=[0.7] * 4)
    running = Running(sampler.model, plan.policy)
    running.join(plan.batch, plan.policy)
    assert running.state.temperature is None and running.policy.temperature == pytest.approx(0.7)
    late = sampler.plan([[5]], seed=0, steps=4, max_new_tokens=4, temperature=0.0)
    (id_,) = running.join(late.batch, late.policy)
    assert running.state.temperature.tolist() == pytest.approx([0.7] * 4 + [0.0])
    running.leave([0, 1, 2, 3])
    assert running.state.temperature is None and running.policy.temperature == 0.0
    assert running.ids == [id_]


def test_what_is_refused():
    sampler = samplers.MDLMSampler(tiny("bert"), TOKENIZER)
    with pytest.raises(ValueError, match="temperature must be one number or one per row, got 2 for 1 rows"):
        sampler.sample([[5]], max_new_tokens=4, temperature=[0.0, 1.0])
    with pytest.raises(ValueError, match="temperature must be finite and at least 0, got -1"):
        sampler.sample([[5], [6]], temperature=[0.0, -1.0])
    with pytest.raises(TypeError, match="temperature must be a number"):
        sampler.sample([[5], [6]], temperature=[0.0, "1"])
