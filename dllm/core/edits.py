"""The way from x_0 to x_1: aligned columns that show one or the other, and the edits that are left at a time t."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dllm.core.schedulers import BaseKappaScheduler
from dllm.fast.training.edit_loss import DELETE, INSERT, NAMES, SUBSTITUTE
from dllm_kernels import philox
from dllm_kernels.align_tokens import BLANK, Alignment


class Edits(NamedTuple):
    """E edits of a batch of texts x_t, sorted by sample and from left to right.

    kind: int64 [E], SUBSTITUTE, DELETE or INSERT.
    sample: int64 [E], the text.
    position: int64 [E], the token that is substituted or deleted, or behind which one is inserted.
    token: int64 [E], what is put there; BLANK for a deletion.
    """

    kind: Tensor
    sample: Tensor
    position: Tensor
    token: Tensor


def edit_weight(scheduler: BaseKappaScheduler, t: Tensor, max_weight: float | None = None) -> Tensor:
    r"""The weight of edits at time t, :math:`w(t) = \kappa'(t) / (1 - \kappa(t) + 10^{-6})`, at most `max_weight`.

    A rate of an edit is w(t) times what the model gives, because an edit that is left at time t is made within dt with
    probability w(t) dt.

    Args:
        scheduler: kappa.
        t: floating point, of any shape, in [0, 1].
        max_weight: None for no bound.

    Source: Edit Flows (arXiv:2506.09018).

    Example:
        >>> from dllm.core.schedulers import LinearKappaScheduler
        >>> edit_weight(LinearKappaScheduler(), torch.tensor([0.5, 0.99]), max_weight=20.0)
        tensor([ 2.0000, 20.0000])
    """
    weight = scheduler.kappa_derivative(t) / (1 - scheduler.kappa(t) + 1e-6)
    return weight if max_weight is None else weight.clamp(max=max_weight)


def noised_columns(
    aligned: Alignment, times: Tensor, *, seeds: Tensor, epoch: int, scheduler: BaseKappaScheduler
) -> Tensor:
    """z_t: each column of an alignment shows z_1 with probability kappa(t) of its sample, else z_0; int64 [B, C].

    The draw of a column depends on the sample's seed, the column and the epoch alone (Philox, stream
    TRAINING_CORRUPTION).

    Args:
        aligned: B alignments of C columns.
        times: floating point [B].
        seeds: int64 [B], of the samples.
        epoch: the pass over the data.
        scheduler: kappa.

    Source: Edit Flows (arXiv:2506.09018).

    Example:
        >>> from dllm.core.schedulers import LinearKappaScheduler
        >>> aligned = Alignment(torch.tensor([[5, 6]]), torch.tensor([[5, 7]]), torch.tensor([2]))
        >>> noised_columns(
        ...     aligned, torch.ones(1), seeds=torch.tensor([3]), epoch=0, scheduler=LinearKappaScheduler()
        ... )
        tensor([[5, 7]])
    """
    column = torch.arange(aligned.z0.shape[1])
    u = philox.uniform(seeds[:, None], column, torch.full_like(column, epoch), philox.TRAINING_CORRUPTION)
    return torch.where(u < scheduler.kappa(times)[:, None], aligned.z1, aligned.z0)


def without_blanks(z: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """The texts of aligned columns [B, C]: tokens int64 [B, L], padded on the right, and their lengths, int64 [B].

    Example:
        >>> without_blanks(torch.tensor([[5, -1, 6], [-1, -1, 7]]), pad=0)
        (tensor([[5, 6],
                [7, 0]]), tensor([2, 1]))
    """
    real = z != BLANK
    lengths = real.sum(1)
    tokens = z.new_full((len(z), int(lengths.max()) if len(z) else 0), pad)
    sample, column = real.nonzero(as_tuple=True)
    tokens[sample, (real.cumsum(1) - 1)[sample, column]] = z[sample, column]
    return tokens, lengths


def remaining_edits(zt: Tensor, z1: Tensor) -> Edits:
    """The edits that make z_1 of z_t, one for each column in which they differ.

    A column that is blank in z_t is an insertion behind the token before it, or behind the first token if there is none
    before; one that is blank in z_1 is a deletion; any other is a substitution.

    Args:
        zt, z1: int64 [B, C], aligned columns with BLANK.

    Source: Edit Flows (arXiv:2506.09018).

    Example:
        >>> zt, z1 = torch.tensor([[5, -1, 6, 7]]), torch.tensor([[5, 8, 6, -1]])
        >>> kind, sample, position, token = remaining_edits(zt, z1)
        >>> kind, position, token
        (tensor([2, 1]), tensor([0, 2]), tensor([ 8, -1]))
    """
    before = (zt != BLANK).cumsum(1) - (zt != BLANK).long()
    sample, column = (zt != z1).nonzero(as_tuple=True)
    shown, wanted, place = zt[sample, column], z1[sample, column], before[sample, column]
    kind = torch.full_like(place, SUBSTITUTE)
    kind = torch.where(wanted == BLANK, DELETE, torch.where(shown == BLANK, INSERT, kind))
    return Edits(kind, sample, torch.where(kind == INSERT, (place - 1).clamp(min=0), place), wanted)


def rows_of(edits: Edits, columns: int) -> dict[str, Tensor]:
    """The fields of :class:`~dllm.fast.training.edit_loss.EditTargets` that edits give, in a batch of L columns.

    Example:
        >>> one = torch.tensor([1])
        >>> rows_of(Edits(torch.tensor([INSERT]), one, one, torch.tensor([7])), columns=4)["ins_rows"]
        tensor([5])
    """
    rows = edits.sample * columns + edits.position
    found = {f"{name}_rows": rows[edits.kind == kind] for kind, name in NAMES.items()}
    return found | {f"{NAMES[kind]}_targets": edits.token[edits.kind == kind] for kind in (SUBSTITUTE, INSERT)}
