"""Inputs of operations: logits, heads, addresses of noise, rows of a loss."""

from __future__ import annotations

import torch
from torch import Tensor


def make_logits(
    rows: int, vocab_size: int, *, scale: float = 3.0, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Tensor:
    """Normal logits [rows, vocab_size] on the CPU, rounded to `dtype`; a scale of 3 is like an untrained head's,
    30 like a saturated model's.

    Example:
        >>> make_logits(2, 5, dtype=torch.bfloat16).shape
        torch.Size([2, 5])
    """
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, vocab_size, generator=generator) * scale).to(dtype)


def make_noise(rows: int, temperature: float | Tensor, *, seed: int = 0) -> dict[str, float | Tensor]:
    """Keyword arguments of :func:`dllm_kernels.gumbel_argmax` that address each row's noise: seeds with all 64 bits in
    use, positions and steps that differ.

    Example:
        >>> sorted(make_noise(2, 1.0))
        ['positions', 'seeds', 'step', 'temperature']
    """
    generator = torch.Generator().manual_seed(seed)
    draw = {"size": (rows,), "generator": generator}
    return {
        "temperature": temperature,
        "seeds": torch.randint(-(2**63), 2**63 - 1, **draw),
        "positions": torch.randint(0, 4096, **draw),
        "step": torch.randint(0, 1024, **draw),
    }


def make_head(
    rows: int, width: int, vocab_size: int, *, scale: float = 3.0, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """hidden [rows, width], weight [vocab_size, width] and bias [vocab_size] whose logits have a standard deviation of
    about `scale`.

    Example:
        >>> [x.shape[0] for x in make_head(2, 3, 5)]
        [2, 5, 5]
    """
    generator = torch.Generator().manual_seed(seed)
    shapes, scales = ((rows, width), (vocab_size, width), (vocab_size,)), (1.0, scale / width**0.5, scale / 3)
    return tuple((torch.randn(s, generator=generator) * by).to(dtype) for s, by in zip(shapes, scales, strict=True))


def make_rows(rows: int, vocab_size: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """targets [rows] and row_weight [rows]: every third row without a weight, and a label that is none; the others with
    weights 1/t from 1 to 1000.

    Example:
        >>> make_rows(3, 5)[1][0]
        tensor(0.)
    """
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(vocab_size, (rows,), generator=generator)
    weight = 1000.0 ** torch.rand(rows, generator=generator)
    unused = torch.arange(rows) % 3 == 0
    return targets.masked_fill(unused, -100), weight.masked_fill(unused, 0.0)
