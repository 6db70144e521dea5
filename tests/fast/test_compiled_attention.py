"""Attention of compiled bodies: which calls of a traced graph our kernel takes over, and that it computes the same."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from dllm.fast.compiled import attention as replacing
from dllm.fast.compiled import body as bodies
from dllm.fast.compiled.body import CompiledBody
from tests.models import tiny

pytestmark = pytest.mark.skipif(not replacing.is_measured_here(), reason="the kernel was measured with AVX-512 only")


class Layer(nn.Module):
    """Attention as models call it; `how` are further arguments."""

    def __init__(self, **how):
        super().__init__()
        self.how = how

    def forward(self, query, key, value, mask=None):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **self.how)


def replaced(layer, *arguments):
    """The number of calls taken over, and what the graph computes then."""
    counts = []

    def backend(graph, inputs):
        counts.append(replacing.replace_attention(graph))
        return graph.forward

    torch._dynamo.reset()
    result = torch.compile(layer, backend=backend, fullgraph=True)(*arguments)
    return counts, result


def heads(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.fixture(autouse=True)
def _without_tiles(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


@torch.no_grad()
@pytest.mark.parametrize("mask", [None, (2, 1, 7, 9), (1, 1, 7, 9), (1, 1, 1, 9)])
@pytest.mark.parametrize(
    ("dtype", "width", "how"),
    [(torch.float32, 32, {}), (torch.bfloat16, 64, dict(scale=0.3)), (torch.bfloat16, 32, dict(enable_gqa=True))],
)
def test_calls_that_are_taken_over(mask, dtype, width, how):
    query, key = heads(2, 4, 7, width, dtype=dtype), heads(2, 2 if "enable_gqa" in how else 4, 9, width, dtype=dtype)
    seen = None if mask is None else heads(*mask) > -1
    counts, got = replaced(Layer(**how), query, key, key + 1, seen)
    assert counts == [1]
    torch.testing.assert_close(got, Layer(**how)(query, key, key + 1, seen))


@torch.no_grad()
@pytest.mark.parametrize(
    ("query", "how", "mask"),
    [
        (heads(2, 4, 7, 64), {}, None),  # not the faster one there
        (heads(2, 4, 7, 48, dtype=torch.bfloat16), {}, None),
        (heads(2, 4, 7, 32, dtype=torch.float16), {}, None),
        (heads(2, 4, 7, 32), dict(is_causal=True), None),
        (heads(2, 4, 7, 32), {}, heads(2, 1, 7, 7)),  # added to scores
        (heads(2, 4, 7, 32), {}, heads(2, 4, 7, 7) > 0),  # one for each head
        (heads(4, 7, 32), {}, None),
    ],
)
def test_calls_that_stay(query, how, mask):
    counts, got = replaced(Layer(**how), query, query, query, mask)
    assert counts == [0]
    assert torch.equal(got, Layer(**how)(query, query, query, mask))


def test_with_gradients_and_with_tiles_it_stays(monkeypatch):
    query = heads(2, 2, 5, 32, dtype=torch.bfloat16)
    assert replaced(Layer(), query.requires_grad_(), query, query)[0] == [0]
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    with torch.no_grad():
        assert replaced(Layer(), query, query, query)[0] == [0]


@pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) < 5, reason="ModernBERT's masks are added to scores there"
)
def test_a_body(monkeypatch):
    """All layers of a ModernBERT in bfloat16, longer and shorter than its window, by one graph, with what is
    between our operator and the compiler: as near to float32 as the eager body."""
    size = dict(num_hidden_layers=2, hidden_size=64, num_attention_heads=2, local_attention=16)
    counts, replace = [], replacing.replace_attention
    monkeypatch.setattr(bodies, "_BACKEND", "aot_eager")
    monkeypatch.setattr(bodies, "replace_attention", lambda graph: counts.append(replace(graph)))
    full = tiny("modernbert", **size)
    model = tiny("modernbert", **size).bfloat16()
    body, generator = CompiledBody(model), torch.Generator().manual_seed(0)
    for rows, columns in ((2, 40), (3, 70)):
        ids = torch.randint(5, 90, (rows, columns), generator=generator)
        with torch.no_grad():
            true, eager = full.model(ids)[0], model.model(ids)[0]
            with body.in_place():
                got = model.model(ids)[0]
        assert (got - true).norm() < 1.2 * (eager - true).norm()
    assert body.ran and counts == [2]
