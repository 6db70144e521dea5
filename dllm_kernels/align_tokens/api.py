"""align_tokens: an alignment of two token sequences with the fewest edits, for each pair of a batch."""

from __future__ import annotations

import importlib
from typing import NamedTuple

import torch
from torch import Tensor

from dllm_kernels import _checks, _impl

# Stands in a column against which the other sequence has a token of its own. No token has this id.
BLANK = -1


class Alignment(NamedTuple):
    """B alignments; column c of row b pairs z0[b, c] with z1[b, c].

    z0, z1: int64 [B, N + M], the tokens of x_0 and x_1 in their order, BLANK where the other side has a token alone;
        BLANK on both sides from column `length[b]` on.
    length: int64 [B], columns of each alignment.
    """

    z0: Tensor
    z1: Tensor
    length: Tensor


def align_tokens(x0: Tensor, x0_length: Tensor, x1: Tensor, x1_length: Tensor, *, impl: str = "auto") -> Alignment:
    r"""Align each x_0 with its x_1 by Needleman and Wunsch: matches cost 0, substitutions, insertions and deletions 1.

    .. math::
        D_{ij} = \min(D_{i-1,j-1} + [x_0^i \ne x_1^j],\ D_{i-1,j} + 1,\ D_{i,j-1} + 1), \qquad D_{i0} = i,\ D_{0j} = j

    The cost D_{nm} is the Levenshtein distance. Of the alignments with that cost, the one is returned that is found
    from the end, where a pair of tokens is preferred to a token of x_0 against a blank, and that to a blank against a
    token of x_1.

    The C++ implementation computes 64 rows of a column of D at a time, as bits of their differences (Myers; Hyyrö), and
    keeps two bits of every cell for the way back: n m / 4 bytes for each thread. Pairs are spread over threads.

    Samples are aligned where they are collated, on the CPU, so there is no implementation for a GPU, and tensors of
    other devices are refused.

    Args:
        x0: int64 [B, N], tokens of at least 0, then anything.
        x0_length: int64 [B], how many tokens of each row are aligned, from 0 to N.
        x1, x1_length: int64 [B, M] and [B], as `x0` and `x0_length`.
        impl: "auto", "reference" or "cpu"; an explicit one never falls back.

    Returns:
        :class:`Alignment`.

    Raises:
        TypeError, ValueError: an argument breaks a rule above; nothing has run.
        RuntimeError: the implementation asked for is not available.

    Source: Needleman and Wunsch, J. Mol. Biol. 48 (1970); Myers, J. ACM 46 (1999), and Hyyrö's form of it (2003);
    alignments of training pairs in Edit Flows (arXiv:2506.09018).

    Example:
        >>> x0, x1 = torch.tensor([[7, 5, 5]]), torch.tensor([[7, 5, 8, 9]])
        >>> z0, z1, length = align_tokens(x0, torch.tensor([3]), x1, torch.tensor([4]))
        >>> z0[0, :4], z1[0, :4], length
        (tensor([ 7,  5, -1,  5]), tensor([7, 5, 8, 9]), tensor([4]))
    """
    _checks.tensor("x0", x0, dtypes=(torch.int64,), shape=("B", "N"))
    if x0.device.type != "cpu":
        raise ValueError(f"x0 must be on the CPU, where samples are collated, got a tensor on {x0.device}")
    pairs = x0.shape[0]
    _checks.tensor("x1", x1, dtypes=(torch.int64,), shape=(pairs, "M"), device=x0.device)
    for name, tokens, length in (("x0", x0, x0_length), ("x1", x1, x1_length)):
        _check_length(name, tokens, length)
    if impl == "triton":
        raise ValueError("impl='triton' does not exist for align_tokens: samples are aligned on the CPU")
    module = importlib.import_module(f"dllm_kernels.align_tokens.{_impl.choose(impl, x0.device)}")
    return Alignment(*module.align_tokens(x0, x0_length, x1, x1_length))


def _check_length(name: str, tokens: Tensor, length: object) -> None:
    """Check the lengths of one side, and the tokens within them."""
    rows, columns = tokens.shape
    _checks.tensor(f"{name}_length", length, dtypes=(torch.int64,), shape=(rows,), device=tokens.device)
    fits = (length >= 0) & (length <= columns)
    _checks.every_row(f"{name}_length", length, fits, f"from 0 to {columns}")
    used = torch.arange(columns) < length[:, None]
    negative = (tokens < 0) & used
    if bool(negative.any()):
        row, column = negative.nonzero()[0].tolist()
        raise ValueError(f"tokens of {name} must be at least 0, got {int(tokens[row, column])} in row {row}")
