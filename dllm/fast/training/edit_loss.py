"""The loss of Edit Flows: rates of all positions, and tokens at those positions alone that have an edit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dllm.fast.training.loss import head_loss

# Kinds of edits, in the order of a model's rates.
SUBSTITUTE, DELETE, INSERT = 0, 1, 2
SMALLEST_RATE = 1e-12
NAMES = {SUBSTITUTE: "sub", DELETE: "del", INSERT: "ins"}


class EditFlowLoss:
    """What :func:`edit_flow_loss` returns.

    It is no tuple, dict or dataclass, because FSDP rounds the values in those to the dtype of the model.

    Attributes:
        loss: float32 [], the weighted sum over samples. Differentiable.
        of_samples: float32 [B], each sample's sum without its weight. Not differentiable.
    """

    __slots__ = ("loss", "of_samples")

    def __init__(self, loss: Tensor, of_samples: Tensor):
        self.loss, self.of_samples = loss, of_samples


class EditTargets:
    """The edits that are left in a batch of texts x_t, as the loss takes them: rows b L + p by kind.

    It is no tuple, dict or dataclass, because FSDP rounds the values in those to the dtype of the model.

    Attributes:
        lengths: int64 [B], tokens of each text.
        sample_weight: float32 [B], c_b, with all normalisers.
        sub_rows, del_rows, ins_rows: int64, the positions that have an edit of a kind; behind those of ins_rows a token
            is inserted.
        sub_targets, ins_targets: int64, the tokens of these edits.
    """

    __slots__ = ("del_rows", "ins_rows", "ins_targets", "lengths", "sample_weight", "sub_rows", "sub_targets")

    def __init__(
        self,
        lengths: Tensor,
        sample_weight: Tensor,
        sub_rows: Tensor,
        del_rows: Tensor,
        ins_rows: Tensor,
        sub_targets: Tensor,
        ins_targets: Tensor,
    ):
        self.lengths, self.sample_weight = lengths, sample_weight
        self.sub_rows, self.del_rows, self.ins_rows = sub_rows, del_rows, ins_rows
        self.sub_targets, self.ins_targets = sub_targets, ins_targets


def edit_flow_loss(
    hidden: Tensor,
    rates: Tensor,
    sub_head: nn.Module,
    ins_head: nn.Module,
    edits: EditTargets,
    *,
    right_shift: bool = False,
) -> EditFlowLoss:
    r"""The loss of the rates and tokens of edits, for texts x_t and the edits that are left.

    .. math::
        loss = \sum_b c_b \Big[ \sum_{p < n_b} (r^{sub}_p + r^{del}_p + r^{ins}_p)
               - \sum_{e \in b} \big( \ln \max(r_e, 10^{-12}) + \ln Q_e(token_e) \big) \Big]

    The first sum, over all tokens of x_t, needs the rates only. Each of the two heads meets the vocabulary at the
    positions that have an edit of its kind, inside its own forward
    (:func:`dllm.fast.training.loss.head_loss`). Without such edits its gradients are 0.

    Args:
        hidden: [B, L, H], what the heads read.
        rates: float32 [B, L, 3], at least 0, in the order substitute, delete, insert.
        sub_head, ins_head: modules that give logits [..., V] of hidden states [..., H].
        edits: :class:`EditTargets`.
        right_shift: substitutions at p are predicted from hidden state p - 1. Nothing predicts one at 0, so its token
            has no loss.

    Returns:
        :class:`EditFlowLoss`.

    Source: Edit Flows (arXiv:2506.09018).

    Example:
        >>> head, none = nn.Linear(2, 5), torch.zeros(0, dtype=torch.int64)
        >>> edits = EditTargets(torch.tensor([2]), torch.ones(1), none, none, none, none, none)
        >>> edit_flow_loss(torch.ones(1, 3, 2), torch.full((1, 3, 3), 0.5), head, head, edits).of_samples
        tensor([3.])
    """
    columns, flat, of_position = rates.shape[1], hidden.flatten(0, 1), rates.flatten(0, 1)
    real = torch.arange(columns, device=rates.device) < edits.lengths[:, None]
    of_samples = (rates.sum(2) * real).sum(1)
    for kind, name in NAMES.items():
        rows = getattr(edits, f"{name}_rows")
        surprise = -of_position[rows, kind].clamp(min=SMALLEST_RATE).log()
        of_samples = of_samples.index_add(0, rows // columns, surprise)
    loss, of_samples = (edits.sample_weight * of_samples).sum(), of_samples.detach()
    for name, head in (("sub", sub_head), ("ins", ins_head)):
        rows, targets = getattr(edits, f"{name}_rows"), getattr(edits, f"{name}_targets")
        weight, read = edits.sample_weight[rows // columns], rows
        if right_shift and name == "sub":
            weight, read = weight * (rows % columns != 0), (rows - 1).clamp(min=0)
        of_tokens, nll = head_loss(head, flat, rows=read, targets=targets, row_weight=weight)
        loss = loss + of_tokens
        of_samples = of_samples.index_add(0, rows // columns, nll)
    return EditFlowLoss(loss, of_samples)
