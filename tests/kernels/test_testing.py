"""The rule of accuracy itself: it takes what is as good as plain PyTorch, on any machine, and refuses what is not."""

import pytest
import torch
import torch.nn.functional as F

from dllm_kernels.testing import (
    assert_no_worse,
    assert_sum_no_worse,
    largest_allowed,
    make_head,
    make_logits,
    operand_rounding,
)

EPS = torch.finfo(torch.float32).eps


def normal(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def verdict(got, plain, truth, **more):
    try:
        draws = [{"x": x} for x in plain] if isinstance(plain, list) else {"x": plain}
        assert_no_worse({"x": got}, draws, {"x": truth}, **more)
    except AssertionError as error:
        return str(error)
    return None


def of(truth, error):
    """A result with this error, which float64 keeps as it is, and of the dtype whose ulp counts."""
    return (truth + error).float()


# as many entries as a loss, few rows, a gradient; errors of 8 ulp are not hidden by the result's own rounding
@pytest.mark.parametrize("shape", [(1,), (7,), (4, 61), (3, 3000)])
def test_another_draw_of_the_same_errors_is_taken(shape):
    """A thousand machines: the largest errors of two draws differ by more than a factor of two many times."""
    truth, size = normal(*shape, seed=0), 8 * EPS
    rounding = {"x": torch.full(shape, size, dtype=torch.float64)}
    refused = lucky = 0
    for machine in range(1000):
        plain, got = (of(truth, size * normal(*shape, seed=2 * machine + i)) for i in (1, 2))
        refused += verdict(got, plain, truth, rounding=rounding) is not None
        lucky += (got - truth).abs().max() > 2 * (plain - truth).abs().max()
    assert lucky > 0 or truth.numel() > 100
    # of one entry, more than 2.4 standard deviations; real errors are a third of what an ulp in every operand makes
    assert refused <= (30 if truth.numel() == 1 else 3)


@pytest.mark.parametrize("shape", [(61,), (4, 61), (3, 3000)])
def test_errors_four_times_as_large_are_refused(shape):
    truth, size = normal(*shape, seed=0), 8 * EPS
    for machine in range(50):
        plain, got = (of(truth, size * normal(*shape, seed=2 * machine + i)) for i in (1, 2))
        worse = of(truth, 4 * (got - truth))
        assert "rms error" in verdict(worse, plain, truth)
        assert verdict(worse, plain, truth, rounding={"x": torch.full(shape, size / 4, dtype=torch.float64)})


def test_a_few_entries_that_decide():
    """Gradients of rows whose weights differ by 1000: one draw of two large entries among 300 says little.

    32 draws take another of the same errors, and refuse an entry 2.5 times as far off as the largest of them.
    """
    truth, sizes = normal(300, seed=0), torch.full((300,), EPS / 100, dtype=torch.float64)
    truth[0], sizes[7:9] = 4.0, 8 * EPS
    refused_by_one = 0
    for machine in range(100):
        got, *draws = (of(truth, sizes * normal(300, seed=40 * machine + i)) for i in range(33))
        refused_by_one += verdict(got, draws[:1], truth) is not None
        assert verdict(got, draws, truth) is None
        got[123] += 2.5 * max(float((x - truth).abs().max()) for x in draws)
        assert verdict(got, draws, truth)
    assert refused_by_one >= 5


def test_a_single_wrong_entry_is_refused():
    truth = normal(4, 3000, seed=0)
    plain, got = (of(truth, EPS * normal(4, 3000, seed=i)) for i in (1, 2))
    assert verdict(got, plain, truth) is None
    got[2, 1234] += 20 * EPS * float(truth.abs().max())
    assert "entry 7234" in verdict(got, plain, truth)
    got[2, 1234] = float("nan")
    assert "x: " in verdict(got, plain, truth)


def test_sums_in_bfloat16_are_refused():
    hidden, weight, _ = make_head(16, 768, 97, dtype=torch.bfloat16)
    truth, plain = F.linear(hidden.double(), weight.double()), F.linear(hidden, weight)
    total = torch.zeros(16, 97, dtype=torch.bfloat16)
    for k in range(768):
        total += hidden[:, k, None] * weight[:, k]
    assert verdict(plain.clone(), plain, truth) is None and verdict(total, plain, truth)
    operands = [hidden.double(), weight.double()]
    rounding = operand_rounding(lambda: {"x": F.linear(*operands)}, operands, torch.bfloat16)
    assert verdict(plain.clone(), plain, truth, rounding=rounding) is None
    assert verdict(total, plain, truth, rounding=rounding)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_gradient_formed_after_rounding_is_refused(dtype):
    """p - 1 of a target that is nearly certain, formed of p in the logits' dtype."""
    logits = make_logits(64, 200, scale=0.1, dtype=dtype)
    logits[:, 5] = 12
    p, onehot = logits.double().softmax(-1), F.one_hot(torch.full((64,), 5), 200)
    truth = p - onehot
    plain, late = (logits.float().softmax(-1) - onehot).to(dtype), logits.softmax(-1) - onehot.to(dtype)
    assert verdict(plain.clone(), plain, truth) is None and verdict(late, plain, truth)


def test_operand_rounding_is_an_ulp_in_each_term():
    """Of a sum of n terms ulp / sqrt(3) x sqrt(n) x their size, and nothing is left changed."""
    x, w = normal(4096, seed=0), normal(4096, seed=1)
    before = x.clone(), w.clone()
    found = operand_rounding(lambda: {"sum": x @ w, "both": torch.stack([x @ w, 3 * (x @ w)])}, [w], draws=200)
    expected = EPS / 3**0.5 * (x * w).norm()
    assert torch.allclose(found["sum"], expected, rtol=0.2) and found["both"].shape == (2,)
    assert torch.equal(x, before[0]) and torch.equal(w, before[1])
    again = operand_rounding(lambda: {"sum": x @ w}, [w], draws=200)
    assert torch.equal(again["sum"], found["sum"])
    with pytest.raises(TypeError, match="operands must be float64"):
        operand_rounding(lambda: {"sum": x @ w}, [w.float()])


def test_float32_products_are_what_it_says():
    """Whatever the order of the sums: by the library, in chains of 64 forwards and backwards, in 16 lanes."""
    hidden, weight, _ = make_head(8, 1024, 97)
    operands = [hidden.double(), weight.double()]
    rounding, truth = operand_rounding(lambda: {"x": F.linear(*operands)}, [operands[1]]), F.linear(*operands)
    terms, plain = hidden[:, None] * weight, F.linear(hidden, weight)
    chains = terms.unflatten(-1, (16, 64))
    for product in (plain, *(sequential(x).sum(-1) for x in (chains, chains.flip(-1), chains.transpose(-1, -2)))):
        assert verdict(product, plain, truth, rounding=rounding) is None


def sequential(terms):
    total = torch.zeros_like(terms[..., 0])
    for k in range(terms.shape[-1]):
        total = total + terms[..., k]
    return total


def test_sums_and_the_largest_error():
    plain, truth = (
        torch.tensor([1.0, 2.0, 3.0]) + torch.tensor([1e-4, -1e-4, 0]),
        torch.tensor([1.0, 2.0, 3.0]).double(),
    )
    assert_sum_no_worse(6.0003, plain, truth)
    with pytest.raises(AssertionError, match="sum: error"):
        assert_sum_no_worse(6.0005, plain, truth)
    with pytest.raises(AssertionError, match="sum: error"):
        assert_sum_no_worse(float("nan"), plain, truth)
    assert largest_allowed(torch.tensor([1e-3, 0.0]), 2e-3) == pytest.approx(4e-3)
    assert largest_allowed(torch.full((2,), 1e-3), EPS) == pytest.approx(2e-3 * (2 * torch.tensor(4.0).log()) ** 0.5)
