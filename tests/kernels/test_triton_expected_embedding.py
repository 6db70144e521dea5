"""linear_expected_embedding in Triton against the reference: on a GPU where there is one, else in the interpreter."""

import math

import pytest
import torch

from dllm_kernels import linear_expected_embedding, linear_gumbel_argmax
from dllm_kernels.testing import (
    assert_no_worse,
    make_head,
    make_noise,
    plain_expected_embedding,
    poisoned_memory,
    true_expected_embedding,
)
from tests.triton_device import DEVICE, NO_TRITON, here

if NO_TRITON:
    pytest.skip(NO_TRITON, allow_module_level=True)

from dllm_kernels import _tuning
from dllm_kernels.linear_gumbel_argmax import triton as head_kernels

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """Slices of one chunk of 1024 tokens, and at most 64 rows; one program forms weights of 512 tokens."""
    shape = _tuning.GumbelArgmaxShape(BLOCK_V=1024, COLUMNS=32, num_stages=1)
    monkeypatch.setattr(_tuning, "_GUMBEL_ARGMAX", {"default": shape})
    monkeypatch.setattr(head_kernels, "CACHED_BYTES", 1)


def fast(*head, **arguments):
    with poisoned_memory():
        operands = (None if x is None else x.to(DEVICE) for x in head)
        got = linear_expected_embedding(*operands, **here(arguments), impl="triton")
    return type(got)(type(got.sampled)(*(x.cpu() for x in got.sampled)), got.embedding.cpu())


# one slice and one of two, the last ragged; as many rows as temperatures
@pytest.mark.covering(1)
@pytest.mark.parametrize("vocab_size", [37, 1600])
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_the_truth(dtype, vocab_size):
    head = make_head(3, 40, vocab_size, dtype=dtype)
    noise = make_noise(3, torch.tensor([1.0, 0.0, 0.5]))
    for softcap in (None, 9.0):
        got = fast(*head, **noise, softcap=softcap)
        truth = true_expected_embedding(*head, **noise, softcap=softcap).embedding
        plain = plain_expected_embedding(*head, temperature=noise["temperature"], softcap=softcap)
        assert_no_worse({"embedding": got.embedding}, {"embedding": plain}, {"embedding": truth})
        sampled = linear_gumbel_argmax(
            *(x.to(DEVICE) for x in head), **noise, statistics="tempered", softcap=softcap, impl="cpu"
        )
        assert torch.equal(got.sampled.token, sampled.token) and torch.equal(got.sampled.argmax, sampled.argmax)


@pytest.mark.parametrize("scale", [0.0, 40.0])
def test_the_largest_logit_grows_from_slice_to_slice(scale):
    hidden, weight, _ = make_head(2, 24, 3000, scale=scale)
    bias = torch.linspace(0, 3 * scale, 3000)
    truth = true_expected_embedding(hidden, weight, bias).embedding
    plain = plain_expected_embedding(hidden, weight, bias)
    assert_no_worse({"embedding": fast(hidden, weight, bias).embedding}, {"embedding": plain}, {"embedding": truth})


def test_float16_keeps_many_small_weights():
    """Each e^-16.5 of the largest, 1.14 of the least number that float16 has."""
    hidden = torch.ones(1, 1, dtype=torch.float16)
    bias, weight = torch.zeros(4001, dtype=torch.float16), torch.zeros(4001, 1, dtype=torch.float16)
    bias[0], weight[1:], bias[1:] = 16.5, 1.0, -1.0
    truth = 4000 * math.exp(-16.5) / (1 + 4000 * math.exp(-16.5))
    got = fast(hidden, weight, bias).embedding.item()
    assert got == pytest.approx(truth, rel=2e-3)


def test_suppress_rows_count_and_nothing_to_choose():
    hidden, weight, bias = make_head(5, 24, 1600)
    hidden[2] = math.nan
    suppress, rows = torch.arange(1600) % 3 != 1, torch.tensor([4, 2, 7, 0, 1])
    noise = make_noise(5, torch.linspace(0, 2, 5))
    options = dict(suppress=suppress, rows=rows, statistics="raw", softcap=4.0)
    got = fast(hidden, weight, bias, **noise, **options, count=torch.tensor(4))
    expected = linear_expected_embedding(hidden, weight, bias, **noise, **options, impl="reference")
    assert got.sampled.token.tolist() == [*expected.sampled.token.tolist()[:4], -1]
    assert (got.embedding[[1, 2, 4]] == 0).all()
    torch.testing.assert_close(got.embedding[[0, 3]], expected.embedding[[0, 3]], rtol=1e-5, atol=1e-5)


def test_empty_and_more_rows_than_a_block():
    got = fast(*make_head(0, 4, 30))
    assert got.embedding.shape == (0, 4) and [x.shape for x in got.sampled] == [(0,)] * 6
    head = make_head(66, 4, 30)
    expected = linear_expected_embedding(*head, impl="reference")
    torch.testing.assert_close(fast(*head).embedding, expected.embedding, rtol=1e-5, atol=1e-5)
