"""Chosen experts: the reference against its formula, the kernel against float64, and what its bits depend on."""

import math

import pytest
import torch

from dllm_kernels import _impl, swiglu_experts
from dllm_kernels.swiglu_experts.reference import swiglu_experts as reference
from dllm_kernels.testing import poisoned_memory

cpu_kernel = pytest.mark.skipif(_impl.why_not_cpu() is not None, reason=f"no extension: {_impl.why_not_cpu()}")
BOTH = pytest.mark.parametrize("impl", ["reference", pytest.param("cpu", marks=cpu_kernel)])
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# tokens, H, experts, I, k: one pair; around vectors and groups of 48; all tokens to all experts; more pairs of an
# expert than a task takes; more columns than a stripe of 512 and experts without a token
SHAPES = [(1, 8, 1, 4, 1), (37, 50, 6, 35, 3), (16, 64, 4, 48, 4), (300, 16, 2, 17, 2), (9, 600, 40, 530, 2)]


def make(tokens, width, experts, inner, chosen, dtype=torch.float32, seed=0):
    """Hidden states, both weights, chosen experts and their weights."""
    draw = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.randn(*shape, generator=draw)  # noqa: E731
    up = random(experts, 2 * inner, width) / width**0.5
    down = random(experts, width, inner) / inner**0.5
    weights, index = torch.rand(tokens, experts, generator=draw).topk(chosen)
    return random(tokens, width).to(dtype), up.to(dtype), down.to(dtype), index, weights


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_reference_is_the_formula():
    hidden, gate_up, down, index, weights = make(3, 4, 5, 2, 2)
    got = swiglu_experts(hidden, gate_up, down, index, weights, impl="reference")
    dot = lambda a, b: sum(x * y for x, y in zip(a, b, strict=True))  # noqa: E731
    for t, h in enumerate(hidden.tolist()):
        want = [0.0] * 4
        for e, w in zip(index[t].tolist(), weights[t].tolist(), strict=True):
            both = [dot(row, h) for row in gate_up[e].tolist()]
            inner = [g / (1 + math.exp(-g)) * u for g, u in zip(both[:2], both[2:], strict=True)]
            want = [old + w * dot(row, inner) for old, row in zip(want, down[e].tolist(), strict=True)]
        assert got[t].tolist() == pytest.approx(want, rel=1e-5, abs=1e-6)


@cpu_kernel
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_errs_no_more_than_pytorch(shape, dtype):
    hidden, gate_up, down, index, weights = make(*shape, dtype)
    true = reference(hidden.double(), gate_up.double(), down.double(), index, weights.double())
    with poisoned_memory():
        got = swiglu_experts(hidden, gate_up, down, index, weights, impl="cpu")
    assert got.dtype == dtype and got.shape == hidden.shape
    plain = reference(hidden, gate_up, down, index, weights)
    error, theirs = ((x.double() - true).abs().max().item() for x in (got, plain))
    assert error <= 1.5 * theirs + torch.finfo(dtype).eps * true.abs().max().item()


@cpu_kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_does_not_depend_on_its_batch(dtype, threads):
    hidden, gate_up, down, index, weights = make(150, 70, 3, 66, 2, dtype)
    whole = swiglu_experts(hidden, gate_up, down, index, weights, impl="cpu")
    for number in (1, 3, 8):  # 8: more than there are experts, whose weights threads share then
        threads(number)
        assert torch.equal(swiglu_experts(hidden, gate_up, down, index, weights, impl="cpu"), whole)
    for rows in (slice(0, 1), slice(7, 12), slice(40, 60), slice(149, 150)):
        some = swiglu_experts(hidden[rows], gate_up, down, index[rows], weights[rows], impl="cpu")
        assert torch.equal(some, whole[rows])


@BOTH
def test_views_and_an_expert_named_twice(impl):
    hidden, gate_up, down, index, weights = make(20, 24, 4, 9, 2)
    index[3] = index[3, 0]
    want = reference(hidden, gate_up, down, index, weights)
    wide = torch.cat([hidden, hidden], 1)[:, :24]
    turned = down.transpose(1, 2).contiguous().transpose(1, 2)
    got = swiglu_experts(wide, gate_up, turned, index, weights, impl=impl)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(got, swiglu_experts(hidden.t().contiguous().t(), gate_up, down, index, weights))


@BOTH
def test_values_that_are_no_numbers_stay_in_their_token(impl):
    hidden, gate_up, down, index, weights = make(30, 24, 4, 40, 2)
    hidden[4, 5] = torch.nan
    gates = torch.tensor([-1e5, -90.0, 90.0, 1e5])  # silu of them: 0, 0, and the gate
    gate_up[0, :40], gate_up[0, 40:] = 0, 0
    gate_up[0, :4, 0], gate_up[0, 40:44, 1] = gates, 1
    hidden[7] = 0
    hidden[7, :2], index[7], weights[7] = 1, 0, 0.5
    got = swiglu_experts(hidden, gate_up, down, index, weights, impl=impl)
    assert got.isnan().any(1).nonzero().tolist() == [[4]]
    torch.testing.assert_close(got[7], down[0, :, :4] @ gates.clamp(min=0))


@BOTH
@pytest.mark.parametrize(("tokens", "chosen"), [(0, 2), (3, 0)])
def test_nothing_is_chosen(impl, tokens, chosen):
    hidden, gate_up, down, index, weights = make(tokens, 8, 4, 5, chosen)
    got = swiglu_experts(hidden, gate_up, down, index, weights, impl=impl)
    assert torch.equal(got, torch.zeros(tokens, 8))


def test_bad_input():
    hidden, gate_up, down, index, weights = make(5, 8, 4, 6, 2)
    for arguments, kind, message in (
        ((hidden, gate_up.half(), down, index, weights), TypeError, "gate_up must be float32, got float16"),
        ((hidden, gate_up[:, 1:], down, index, weights), ValueError, r"gate_up must have shape \[4, 12, 8\]"),
        ((hidden, gate_up, down, index.int(), weights), TypeError, "index must be int64"),
        ((hidden, gate_up, down, index[:4], weights), ValueError, r"index must have shape \[5, k\]"),
        ((hidden, gate_up, down, index, weights[:, :1]), ValueError, r"weights must have shape \[5, 2\]"),
        ((hidden, gate_up, down, index + 2, weights), ValueError, "index must be from 0 to 3"),
        ((hidden, gate_up, down, index - 4, weights), ValueError, "index must be from 0 to 3"),
        (
            (hidden, gate_up[:, :0], down[..., :0], index, weights),
            ValueError,
            "at least 1, got 8 and 0",
        ),
    ):
        with pytest.raises(kind, match=message):
            swiglu_experts(*arguments)
    with pytest.raises(RuntimeError, match="no gradient"):
        swiglu_experts(hidden.requires_grad_(), gate_up, down, index, weights)
    with pytest.raises(ValueError, match="does not exist for swiglu_experts"):
        swiglu_experts(hidden.detach(), gate_up, down, index, weights, impl="triton")


@cpu_kernel
def test_the_operator_checks_indices_itself():
    hidden, gate_up, down, index, weights = make(5, 8, 4, 6, 2)
    swiglu_experts(hidden, gate_up, down, index, weights, impl="cpu")
    with pytest.raises(RuntimeError, match="index must name experts"):
        torch.ops.dllm_kernels.swiglu_experts(
            hidden, gate_up, down, index + 4, weights, None, None, torch.empty_like(hidden)
        )
