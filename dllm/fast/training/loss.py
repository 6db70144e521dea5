"""The loss of masked tokens, computed inside the model's own LM head, so that only masked rows meet the vocabulary.

The head's forward is replaced while the model runs: it picks the rows that carry loss, computes the loss on them and
hands that on instead of logits. Inside the head is where FSDP and ZeRO have gathered its weights and where autocast
holds, and the loss then leaves through the model's own output, as DDP and FSDP expect of what is differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dllm.fast.deferred import no_deferral
from dllm.fast.head.interception import replaced_forward
from dllm.fast.head.tap import output_head
from dllm.fast.head.use import find_head_use
from dllm.fast.model import logits_of, unwrapped
from dllm_kernels import linear_cross_entropy, masked_cross_entropy

# Tokens of the forward in which a head is looked at.
_EXAMPLE = 16


class MaskedLoss(NamedTuple):
    """What :func:`masked_loss` returns.

    loss: float32, one number: sum over rows of row_weight x nll, undivided. Differentiable.
    nll: float32 [N], -log softmax(logits)[target] of each row, nats. Not differentiable.
    """

    loss: Tensor
    nll: Tensor


def masked_loss(
    model: nn.Module, inputs: Mapping[str, object], *, rows: Tensor, targets: Tensor, row_weight: Tensor
) -> MaskedLoss:
    r"""Weighted cross-entropy of chosen positions of a masked language model, logits of no other position computed.

    .. math::
        loss = \sum_r weight_r \, (-\log \mathrm{softmax}(l_{rows_r})_{targets_r})

    with l the model's logits [B, L, V] seen as [B L, V]. The sum is not divided by anything: normalisers belong
    into the weights. With no rows the loss is 0 and so are all gradients. The first call of a head runs the model once
    more, on a few tokens, to see how its logits come about:

    - the head is an nn.Linear and its output is the logits: the loss is computed from the head's input and weight;
    - the head is something else that treats every row by itself (LoRA), or accelerate moves its weights: the head is
      called on the rows;
    - the model computes with its head's output (softcap, scale, a second bias: whatever their values are), rows depend
      on each other, or someone's hook watches the head: all logits are computed and rows of them are taken. Correct,
      slower, and logged. So it is where a gradient checkpoint reaches around the head.

    Args:
        model: a module with `get_output_embeddings()` whose output has `.logits`; or one wrapped by DDP, FSDP2,
            torch.compile or peft; or by DeepSpeed, whose hooks run around the head's forward as FSDP's do (untried).
        inputs: what the model is called with; `input_ids` int64 [B, L] among them, `labels` not.
        rows: int64 [N], positions b L + p, in any order; a position may occur twice.
        targets: int64 [N], the token that belongs there.
        row_weight: float32 [N].

    Returns:
        :class:`MaskedLoss`.

    Raises:
        ValueError: `labels` among the inputs, tensors of different length, or a model without output embeddings.
        RuntimeError: the model did not hand out what its head returned.

    Source: the objective of MDLM (arXiv:2406.07524) and LLaDA (arXiv:2502.09992).

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> tiny = dict(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, vocab_size=50)
        >>> model = BertForMaskedLM(BertConfig(**tiny))
        >>> rows, targets = torch.tensor([1, 4]), torch.tensor([7, 9])
        >>> result = masked_loss(
        ...     model, {"input_ids": torch.full((2, 3), 5)}, rows=rows, targets=targets, row_weight=torch.ones(2)
        ... )
        >>> result.loss.backward()
        >>> result.nll.shape
        torch.Size([2])
    """
    check_arguments(inputs, rows, targets, row_weight)
    head = output_head(unwrapped(model))
    kind = find_head_use(model, head, _rows_that_start(inputs)).kind
    job = _Job(head, kind, rows, targets, row_weight)
    with no_deferral():
        if kind == "logits":
            return job.of_logits(logits_of(model(**inputs)))
        with replaced_forward(head, job.run):
            handed_out = logits_of(model(**inputs))
    if job.checkpointed:
        return job.of_logits(handed_out)
    if job.loss is None or handed_out.numel() != 1:
        raise RuntimeError(f"{type(model).__name__} did not hand out what its head returned")
    return MaskedLoss(_LossFromHead.apply(handed_out.reshape(()), job.loss), job.nll)


def check_arguments(inputs: Mapping[str, object], rows: Tensor, targets: Tensor, row_weight: Tensor) -> None:
    """What can be said of the arguments of :func:`masked_loss` before anything runs.

    Raises:
        ValueError: `labels` among the inputs, or tensors of different length.
    """
    if "labels" in inputs:
        raise ValueError("inputs must not hold labels: the model would compute a loss of its own from them")
    if not rows.shape == targets.shape == row_weight.shape or rows.dim() != 1:
        shapes = [list(tensor.shape) for tensor in (rows, targets, row_weight)]
        raise ValueError(f"rows, targets and row_weight must have one shape [N], got {shapes}")


def _from_hidden(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor, targets: Tensor, row_weight: Tensor
) -> MaskedLoss:
    """The loss of rows of hidden states [N, H] under a linear head."""
    loss, nll = linear_cross_entropy(hidden, weight, targets, row_weight, bias=bias, rows=rows)
    return MaskedLoss(loss, nll.detach())


def _from_logits(logits: Tensor, targets: Tensor, row_weight: Tensor) -> MaskedLoss:
    """The loss of given rows of logits [N, V]."""
    loss, nll = masked_cross_entropy(logits, targets, row_weight)
    return MaskedLoss(loss, nll.detach())


@dataclass(slots=True)
class _Job:
    """What one forward is to compute, and its result: what the model's output has no place or no precision for."""

    head: nn.Module
    kind: str
    rows: Tensor
    targets: Tensor
    row_weight: Tensor
    loss: Tensor | None = None
    nll: Tensor | None = None
    recording: tuple[bool, object] = field(default_factory=lambda: _recording())
    checkpointed: bool = False

    def run(self, original: Callable[..., Tensor], hidden: Tensor, *args: object, **kwargs: object) -> Tensor:
        """The forward of the head, which returns its loss, [1, 1, 1], in the place of logits."""
        if _recording() != self.recording:  # a checkpoint, which runs the head again when this job is long over
            self.checkpointed = True
            return original(hidden, *args, **kwargs)
        hidden = hidden.flatten(0, -2)
        if self.kind == "linear":
            given = self.rows, self.targets, self.row_weight
            loss, nll = _from_hidden(hidden, self.head.weight, self.head.bias, *given)
        else:
            logits = original(hidden.index_select(0, self.rows), *args, **kwargs)
            loss, nll = _from_logits(logits, self.targets, self.row_weight)
        self.loss, self.nll = loss.detach(), nll
        return loss.view(1, 1, 1).clone()  # FSDP warns of views

    def of_logits(self, logits: Tensor) -> MaskedLoss:
        """The loss from all logits [B, L, V]."""
        return _from_logits(logits.flatten(0, -2).index_select(0, self.rows), self.targets, self.row_weight)


class _LossFromHead(torch.autograd.Function):
    """The loss as the head computed it, differentiated through what the model handed out of it: that is what DDP and
    FSDP wait for in the backward, and FSDP rounds it to the precision of its policy, bfloat16 often."""

    @staticmethod
    def forward(ctx: object, handed_out: Tensor, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _recording() -> tuple[bool, object]:
    """Whether gradients are recorded, and who packs what is saved for them, where that is a checkpoint."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    of_checkpoint = hooks and getattr(hooks[0], "__module__", None) == "torch.utils.checkpoint"
    return torch.is_grad_enabled(), hooks[0] if of_checkpoint else None


def _rows_that_start(inputs: Mapping[str, object]) -> dict[str, Tensor]:
    """The beginning of the first row, for the forward in which the head is looked at."""
    beginning = {"input_ids": inputs["input_ids"][:1, :_EXAMPLE]}
    mask = inputs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        beginning["attention_mask"] = mask[:1, :_EXAMPLE]
    return beginning
