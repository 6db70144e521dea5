"""Alignment: published cases, the Levenshtein distance, and C++ against the specification."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from dllm_kernels import _impl, align_tokens
from dllm_kernels.align_tokens import BLANK

FACTS = json.loads((Path(__file__).parents[1] / "core" / "data" / "editflow.json").read_text())["align"]
IMPLEMENTATIONS = [
    "reference",
    pytest.param("cpu", marks=pytest.mark.skipif(bool(_impl.why_not_cpu()), reason=str(_impl.why_not_cpu()))),
]


def rows(sequences: list[list[int]], width: int, filler: int = -7) -> tuple[torch.Tensor, torch.Tensor]:
    """A tensor [B, width] with its lengths; what is beyond a row's end must not matter."""
    padded = [sequence + [filler] * (width - len(sequence)) for sequence in sequences]
    return torch.tensor(padded, dtype=torch.int64).view(len(sequences), width), torch.tensor(
        [len(sequence) for sequence in sequences], dtype=torch.int64
    )


def aligned(x0: list[list[int]], x1: list[list[int]], impl: str) -> list[tuple[list[int], list[int]]]:
    widths = [max(map(len, side), default=0) for side in (x0, x1)]
    z0, z1, length = align_tokens(*rows(x0, widths[0]), *rows(x1, widths[1]), impl=impl)
    assert z0.shape == z1.shape == (len(x0), sum(widths))
    for row, n in enumerate(length.tolist()):
        assert bool((z0[row, n:] == BLANK).all() and (z1[row, n:] == BLANK).all())
    return [(z0[row, :n].tolist(), z1[row, :n].tolist()) for row, n in enumerate(length.tolist())]


def levenshtein(a: list[int], b: list[int]) -> int:
    before = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        now = [i]
        for j, y in enumerate(b, 1):
            now.append(min(before[j - 1] + (x != y), before[j] + 1, now[-1] + 1))
        before = now
    return before[-1]


def pairs(count: int, longest: int, alphabet: int, seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    draw = random.Random(seed)
    return tuple(
        [[draw.randrange(alphabet) for _ in range(draw.randint(0, longest))] for _ in range(count)] for _ in range(2)
    )


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_published_cases(impl):
    found = aligned([fact["x0"] for fact in FACTS], [fact["x1"] for fact in FACTS], impl)
    assert len(found) == 60
    assert found == [(fact["z0"], fact["z1"]) for fact in FACTS]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(("longest", "alphabet"), [(6, 2), (40, 3), (40, 200)])
def test_cost_is_the_levenshtein_distance(impl, longest, alphabet):
    x0, x1 = pairs(40, longest, alphabet)
    for a, b, (z0, z1) in zip(x0, x1, aligned(x0, x1, impl), strict=True):
        assert [token for token in z0 if token != BLANK] == a and [token for token in z1 if token != BLANK] == b
        assert (BLANK, BLANK) not in zip(z0, z1, strict=True)
        assert sum(u != v for u, v in zip(z0, z1, strict=True)) == levenshtein(a, b)


# words of 64 bits: below, at and above their ends, and several of them
@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 128, 200])
@pytest.mark.parametrize("m", [0, 1, 70, 130])
@pytest.mark.parametrize("alphabet", [2, 5, 10**12])
def test_cpu_is_the_specification(n, m, alphabet):
    if missing := _impl.why_not_cpu():
        pytest.skip(missing)
    draw = torch.Generator().manual_seed(n * 1000 + m)
    x0, x1 = (torch.randint(0, alphabet, (5, size), generator=draw) for size in (n, m))
    x1[:, : min(n, m) // 2] = x0[:, : min(n, m) // 2]  # else an alphabet that large has no match
    lengths = [torch.randint(0, size + 1, (5,), generator=draw) for size in (n, m)]
    lengths[0][0], lengths[1][0] = n, m
    want, got = (align_tokens(x0, lengths[0], x1, lengths[1], impl=impl) for impl in ("reference", "cpu"))
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


def test_rows_with_any_stride():
    x0, x1 = torch.randint(0, 4, (9, 6)).T, torch.randint(0, 4, (7, 6)).T
    lengths = torch.full((6,), 9), torch.full((6,), 7)
    want = align_tokens(x0.contiguous(), lengths[0], x1.contiguous(), lengths[1], impl="reference")
    assert all(torch.equal(a, b) for a, b in zip(want, align_tokens(x0, lengths[0], x1, lengths[1]), strict=True))


def test_no_pairs():
    empty, none = torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    assert align_tokens(empty, none, empty, none).z0.shape == (0, 6)


def test_bad_input():
    x, one = torch.tensor([[5, 6]]), torch.tensor([2])
    with pytest.raises(TypeError, match="x0 must be int64, got int32"):
        align_tokens(x.int(), one, x, one)
    with pytest.raises(ValueError, match="x1_length must be from 0 to 2, got 3 in row 0"):
        align_tokens(x, one, x, one + 1)
    with pytest.raises(ValueError, match="tokens of x1 must be at least 0, got -1 in row 0"):
        align_tokens(x, one, torch.tensor([[5, -1]]), one)
    with pytest.raises(ValueError, match="x1 must have shape \\[1, M\\]"):
        align_tokens(x, one, x.expand(2, 2), one)
    with pytest.raises(ValueError, match="impl='triton' does not exist"):
        align_tokens(x, one, x, one, impl="triton")
