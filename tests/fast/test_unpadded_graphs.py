"""Rows without padding in captured steps: captured is how long all rows are together, not where each of them ends."""

import pytest
import torch

from dllm.core import samplers
from tests import graph_stand_in
from tests.causal_models import causal_model
from tests.flash_stand_in import register
from tests.samplers.test_cached import TOKENIZER, prompts

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_replays_give_the_eager_tokens(monkeypatch, scale):
    captured = graph_stand_in.install_sampling(monkeypatch).captured
    model = causal_model("Qwen3", favoured=3.0)
    monkeypatch.setattr(model.config, "_attn_implementation", register())
    sampler = samplers.MDLMSampler(model, TOKENIZER)
    options = dict(max_new_tokens=12, block_size=6, steps=12, temperature=0.8, cfg_scale=scale, return_dict=True)
    graphs = []
    for lengths in ((5, 1, 8), (1, 8, 5), (8, 3, 3), (8, 3, 2)):
        rows = prompts(model, lengths)
        eager = sampler.sample(rows, seed=4, cuda_graph=False, stop_at_eos=True, **options)
        got = sampler.sample(rows, seed=4, stop_at_eos=True, **options)
        assert torch.equal(got.sequences, eager.sequences) and got.stats.row_forwards == eager.stats.row_forwards
        assert got.stats.mode == "graph" and got.stats.note.startswith("rows run without their padding")
        graphs.append(len(captured))
    assert graphs[0] == graphs[1] == graphs[2] < graphs[3]
