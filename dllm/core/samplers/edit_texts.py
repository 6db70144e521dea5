"""Texts that grow and shrink: which edits of a step are made, and what the texts are after them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dllm_kernels import philox

# The largest probability of an edit in a step.
SUREST = 1 - 1e-6


class EditedTexts(NamedTuple):
    """B texts, padded on the right, and what may be edited in them.

    tokens: int64 [B, L].
    lengths: int64 [B].
    editable: bool [B, L], tokens that may be substituted and deleted.
    open: bool [B, L], tokens behind which one may be inserted.
    """

    tokens: Tensor
    lengths: Tensor
    editable: Tensor
    open: Tensor

    @property
    def real(self) -> Tensor:
        """bool [B, L], what is no padding."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) < self.lengths[:, None]


class StepEdits(NamedTuple):
    """The edits of one step, bool [B, L]: tokens to substitute, to delete, and to insert one behind."""

    substitute: Tensor
    delete: Tensor
    insert: Tensor

    @property
    def rows(self) -> Tensor:
        """bool [B], the texts that change."""
        return (self.substitute | self.delete | self.insert).any(1)


def allowed(rates: Tensor, texts: EditedTexts) -> Tensor:
    """The rates [B, L, 3] of edits that may be made, 0 for others."""
    real = texts.real
    change, insert = (texts.editable & real)[..., None], (texts.open & real)[..., None]
    return torch.cat([rates[..., :2] * change, rates[..., 2:] * insert], dim=-1)


def draw_edits(rates: Tensor, weight: float, seeds: Tensor, step: int) -> StepEdits:
    r"""The edits of one step, drawn independently for all tokens.

    A token is substituted or deleted with probability :math:`\min(w (r^{sub} + r^{del}), 1 - 10^{-6})`, deleted with a
    share of :math:`r^{del} / (r^{sub} + r^{del})` of it. Independently a token is inserted behind it with probability
    :math:`\min(w\, r^{ins}, 1 - 10^{-6})`.

    Args:
        rates: float32 [B, L, 3], in the order substitute, delete, insert; 0 where no edit is allowed.
        weight: w, the weight of the time times the size of the step.
        seeds: int64 [B], of the texts. The draws are three words at (seed, position, step), stream RANDOM_CONFIDENCE.
        step: the number of the step.

    Source: Edit Flows (arXiv:2506.09018).

    Example:
        >>> rates = torch.tensor([[[0.0, 0.0, 0.0], [1e9, 0.0, 0.0], [0.0, 1e9, 1e9]]])
        >>> draw_edits(rates, 1.0, torch.tensor([7]), step=0).delete
        tensor([[False, False,  True]])
    """
    position = torch.arange(rates.shape[1], device=rates.device)
    address = (torch.zeros_like(position), position, torch.full_like(position, step))
    first, second, third, _ = philox.words(seeds[:, None], *address, philox.RANDOM_CONFIDENCE)
    substitute, delete, insert = rates.unbind(-1)
    change = substitute + delete
    changes = philox.unit_interval(first) < (weight * change).clamp(max=SUREST)
    deletes = philox.unit_interval(second) * change < delete
    inserts = philox.unit_interval(third) < (weight * insert).clamp(max=SUREST)
    return StepEdits(changes & ~deletes, changes & deletes, inserts)


def leap(texts: EditedTexts, edits: StepEdits, substitutes: Tensor, inserted: Tensor, limit: int | None) -> EditedTexts:
    """The texts after the edits of one step.

    An inserted token may be edited later, and one may be inserted behind it. A token that is substituted keeps what is
    allowed of it.

    Args:
        texts: before the step.
        edits: of the step, none at padding.
        substitutes, inserted: int64 [B, L], the tokens, where there is such an edit.
        limit: the most tokens that a text may have; insertions that would exceed it are left out, from the right.

    Example:
        >>> yes = torch.ones(1, 2, dtype=torch.bool)
        >>> texts = EditedTexts(torch.tensor([[5, 6]]), torch.tensor([2]), yes, yes)
        >>> first = torch.tensor([[True, False]])
        >>> edits = StepEdits(substitute=~first, delete=~yes, insert=first)
        >>> leap(texts, edits, torch.tensor([[0, 8]]), torch.tensor([[9, 0]]), limit=None).tokens
        tensor([[5, 9, 8]])
    """
    kept, insert = texts.real & ~edits.delete, edits.insert
    if limit is not None:
        room = limit - kept.sum(1, keepdim=True)
        insert = insert & (insert.cumsum(1) <= room)
    taken = kept.long() + insert.long()
    start, lengths = taken.cumsum(1) - taken, taken.sum(1)
    columns = int(lengths.max()) if len(lengths) else 0
    tokens = torch.where(edits.substitute, substitutes, texts.tokens)
    behind = start + kept.long()

    def placed(old: Tensor, new: Tensor) -> Tensor:
        found = old.new_zeros(len(old), columns + 1)  # what is left out goes to the last column
        found.scatter_(1, torch.where(kept, start, columns), old)
        found.scatter_(1, torch.where(insert, behind, columns), new)
        return found[:, :columns]

    yes = torch.ones_like(kept)
    return EditedTexts(placed(tokens, inserted), lengths, placed(texts.editable, yes), placed(texts.open, yes))
