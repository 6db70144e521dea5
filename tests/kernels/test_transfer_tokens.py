"""transfer_tokens: the reference against a loop in plain Python, and the C++ kernel against the reference."""

import math
from fractions import Fraction
from itertools import accumulate

import pytest
import torch

from dllm_kernels import _impl, transfer_tokens
from dllm_kernels.testing import poisoned_memory

MASK = 9
cpu_kernel = pytest.mark.skipif(_impl.why_not_cpu() is not None, reason=f"no extension: {_impl.why_not_cpu()}")
BOTH = pytest.mark.parametrize("impl", ["reference", pytest.param("cpu", marks=cpu_kernel)])


def by_hand(canvas, proposals, confidence, start, length, k=None, threshold=None, factor=None, budget=None):
    """The rules as the docstring states them, one row and one column at a time."""
    canvas, committed = [row[:] for row in canvas], []
    for b, row in enumerate(canvas):
        eligible = [
            j
            for j in range(min(length[b], len(proposals[b])))
            if 0 <= start[b] + j < len(row) and row[start[b] + j] == MASK and proposals[b][j] >= 0
        ]
        sure = [-math.inf if math.isnan(c) else c for c in confidence[b]]
        eligible.sort(key=lambda j: (-sure[j], j))
        take, spent = 0, 0.0
        for r, j in enumerate(eligible, start=1):
            fits = (
                r <= (1 if k is None else k[b])
                or (threshold is not None and sure[j] >= threshold)
                or (factor is not None and sure[j] >= 1 - factor / (r + 1))
                or (budget is not None and spent <= budget)
            )
            if not fits:
                break
            take, spent = r, spent + max(-sure[j], 0.0)
        for j in eligible[:take]:
            row[start[b] + j] = proposals[b][j]
        committed.append(take)
    return canvas, committed


def random_case(seed):
    """Few distinct confidences, so that ties are the rule; windows that stick out of the canvas on both sides."""
    draw = torch.Generator().manual_seed(seed)

    def integers(low, high, *size):
        return torch.randint(low, high, size, generator=draw)

    batch, columns, window = int(integers(0, 5)), int(integers(1, 40)), int(integers(0, 30))
    canvas = torch.where(integers(0, 3, batch, columns) > 0, MASK, integers(0, 9, batch, columns))
    confidence = integers(0, 8, batch, window) / 8.0
    confidence[integers(0, 9, batch, window) == 0] = math.nan
    confidence[integers(0, 9, batch, window) == 0] = -math.inf
    proposals = integers(-1, 9, batch, window)
    return canvas, proposals, confidence, integers(-4, columns + 2, batch), integers(-1, window + 3, batch), draw


@BOTH
@pytest.mark.parametrize("with_k", [False, True], ids=["", "k"])
@pytest.mark.parametrize(
    "rule", [{}, dict(threshold=0.375), dict(factor=1.25), dict(budget=1.5), dict(budget=0)], ids=str
)
def test_random_cases(impl, rule, with_k):
    for seed in range(100):
        canvas, proposals, confidence, start, length, draw = random_case(seed)
        # quarters and eighths are exact in float32 and float64 alike, and so are their sums
        confidence = confidence - 0.75 if "budget" in rule else confidence
        k = {"k": torch.randint(-1, 9, (len(canvas),), generator=draw)} if with_k or not rule else {}
        expected_canvas, expected_count = by_hand(
            canvas.tolist(),
            proposals.tolist(),
            confidence.tolist(),
            start.tolist(),
            length.tolist(),
            **{name: value.tolist() for name, value in k.items()},
            **rule,
        )
        with poisoned_memory():
            count = transfer_tokens(
                canvas, proposals, confidence, mask_id=MASK, start=start, length=length, impl=impl, **k, **rule
            )
        assert canvas.tolist() == expected_canvas, f"seed {seed}"
        assert count.tolist() == expected_count, f"seed {seed}"


@BOTH
@pytest.mark.parametrize("factor", [0.3, 0.7, 1.0, 1.9])
def test_the_bar_of_factor_is_a_float32_quotient(impl, factor):
    """Confidences exactly at 1 - f / (r + 1), each operation rounded once: all are committed; one ulp below, one is."""
    rank = torch.arange(1, 31)
    bar = 1 - torch.full((30,), factor) / (rank + 1)
    for confidence, expected in ((bar.max().expand(30), 30), (bar[1].nextafter(torch.tensor(-1.0)).expand(30), 1)):
        canvas, proposals = torch.full((1, 30), MASK), torch.zeros(1, 30, dtype=torch.int64)
        count = transfer_tokens(canvas, proposals, confidence[None], mask_id=MASK, factor=factor, impl=impl)
        assert count.tolist() == [expected]


@BOTH
def test_only_the_window_of_a_strided_canvas_changes(impl):
    wide = torch.full((3, 10), MASK)
    transfer_tokens(
        wide[:, 2:8], torch.ones(3, 4, dtype=torch.int64), torch.zeros(3, 4), mask_id=MASK, k=9, start=1, impl=impl
    )
    assert wide.tolist() == [[MASK] * 3 + [1] * 4 + [MASK] * 3] * 3


@BOTH
def test_minus_infinity_is_committed_last(impl):
    canvas = torch.full((1, 3), MASK)
    sure = torch.tensor([[-math.inf, 0.1, -math.inf]])
    proposals = torch.tensor([[1, 2, 3]])
    assert transfer_tokens(canvas, proposals, sure, mask_id=MASK, k=2, impl=impl).tolist() == [2]
    assert canvas.tolist() == [[1, 2, MASK]]


@BOTH
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_signed_zeros_are_equal(impl, zero):
    canvas = torch.full((1, 2), MASK)
    transfer_tokens(canvas, torch.tensor([[1, 2]]), torch.tensor([[zero, -zero]]), mask_id=MASK, k=1, impl=impl)
    assert canvas.tolist() == [[1, MASK]]


def commit(sure, impl, **rule):
    """How many of one row's columns a rule commits."""
    sure = torch.as_tensor(sure, dtype=torch.float32)[None]
    canvas, proposals = torch.full(sure.shape, MASK), torch.zeros(sure.shape, dtype=torch.int64)
    return transfer_tokens(canvas, proposals, sure, mask_id=MASK, impl=impl, **rule).item()


@BOTH
def test_a_rule_without_k_commits_the_surest_and_with_a_k_of_0_perhaps_nothing(impl):
    for rule in (dict(threshold=0.9), dict(factor=0.1)):
        assert commit([0.5, 0.6], impl, **rule) == 1
        assert commit([0.5, 0.6], impl, **rule, k=0) == 0
        assert commit([0.99, 0.6], impl, **rule, k=0) == 1
    assert commit([-9.0, -8.0], impl, budget=0, k=0) == 1, "nothing lies before the first"


@BOTH
def test_the_sum_of_a_budget_is_exact_but_for_its_unit(impl):
    """Of the prefix that exact fractions allow nothing is lost; what comes on top exceeds the budget by units only."""
    draw = torch.Generator().manual_seed(0)
    units = 0
    for case in range(60):
        # entropies over eleven orders of magnitude, in any order, some equal
        sure = -(10.0 ** (torch.rand(64, generator=draw) * 11 - 10)).float()
        sure = torch.where(torch.rand(64, generator=draw) < 0.3, sure[case], sure)
        before = list(accumulate((Fraction(-c) for c in sorted(sure.tolist(), reverse=True)), initial=Fraction(0)))[:-1]
        for budget in (0.0, 1e-9, 1e-3, 0.7, float(before[20]), float(before[40])):
            exact = sum(spent <= Fraction(budget) for spent in before)
            within_units = sum(spent <= Fraction(budget) + Fraction(r, 2**32) for r, spent in enumerate(before))
            got = commit(sure, impl, budget=budget)
            assert exact <= got <= within_units
            units += got != exact
    print(f"{units} of 360 prefixes differ from the exact rule's")


@BOTH
def test_what_has_no_entropy_costs_more_than_any_budget(impl):
    sure = [0.0, -1.0, -math.inf, math.nan, -1e30]
    assert commit(sure, impl, budget=1.0) == 3, "the first beyond the budget is in, what follows is not"
    assert commit(sure, impl, budget=65535.999) == 3
    assert commit(sure, impl, budget=math.inf) == 5
    assert commit([0.5, math.inf, 0.0, -0.25, -0.25], impl, budget=0) == 4, "a positive confidence costs nothing"
    assert commit(torch.full((8192,), -1e30), impl, budget=math.inf) == 8192


CANVAS = torch.full((2, 6), MASK)
PROPOSALS, SURE = torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 4)
BAD = [
    (dict(canvas=CANVAS.int()), TypeError, "canvas must be int64, got int32"),
    (dict(canvas=CANVAS[0]), ValueError, r"canvas must have shape \[B, L\], got \[6\]"),
    (dict(canvas=CANVAS.t()), ValueError, "adjacent columns"),
    (dict(canvas=CANVAS[:1].expand(2, 6)), ValueError, "must not overlap"),
    (dict(proposals=PROPOSALS.float()), TypeError, "proposals must be int64"),
    (dict(proposals=PROPOSALS[:1]), ValueError, r"proposals must have shape \[2, W\], got \[1, 4\]"),
    (dict(confidence=SURE.double()), TypeError, "confidence must be float32"),
    (dict(confidence=SURE[:, :3]), ValueError, r"confidence must have shape \[2, 4\], got \[2, 3\]"),
    (dict(mask_id=9.0), TypeError, "mask_id must be an integer"),
    (dict(k=None), ValueError, "expected k, one of threshold, factor and budget, .* got none"),
    (dict(threshold=0.5, factor=1.0), ValueError, "got threshold, factor"),
    (dict(k=None, factor=1.0, budget=1.0), ValueError, "got factor, budget"),
    (dict(budget=-0.5), ValueError, "budget must be infinite or from 0 to below 65536, got -0.5"),
    (dict(budget=65536), ValueError, "budget must be infinite or from 0 to below 65536, got 65536"),
    (dict(budget=-math.inf), ValueError, "budget must be infinite or from 0"),
    (dict(budget=math.nan), ValueError, "budget must be infinite"),
    (dict(budget=torch.tensor(1.0)), TypeError, "budget must be a number, got Tensor"),
    (dict(k=1.5), TypeError, "k must be an integer"),
    (dict(k=None, threshold=math.nan), ValueError, "threshold must be infinite or from -1e[+]30 to 1e[+]30, got nan"),
    (dict(k=None, threshold="0.5"), TypeError, "threshold must be a number, got str"),
    (dict(k=None, factor=0.0), ValueError, "factor must be finite and above 0"),
    (dict(k=None, factor=1e300), ValueError, "factor must be at most 1e[+]30"),
    (dict(k=None, factor=True), TypeError, "factor must be a number, got bool"),
    (dict(k=2**70), ValueError, "k must fit into 64 bits"),
    (dict(mask_id=2**70), ValueError, "mask_id must fit into 64 bits"),
    (dict(start=torch.zeros(3, dtype=torch.int64)), ValueError, r"shape \[2\], got \[3\]"),
    (dict(length="4"), TypeError, "length"),
    (dict(impl="fast"), ValueError, "impl must be one of"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input_leaves_the_canvas(arguments, error, message):
    given = {"canvas": CANVAS, "proposals": PROPOSALS, "confidence": SURE, "mask_id": MASK, "k": 1, **arguments}
    before = given["canvas"].clone()
    with pytest.raises(error, match=message):
        transfer_tokens(**given)
    assert torch.equal(given["canvas"], before)


def test_a_window_too_wide():
    wide = torch.zeros(1, 8193)
    with pytest.raises(ValueError, match="at most 8192 columns, got 8193"):
        transfer_tokens(wide.long(), wide.long(), wide, mask_id=MASK, k=1)
