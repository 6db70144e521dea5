"""The loss of masked tokens, computed inside the model's own LM head: logits of other positions are never computed.

The head's forward is replaced while the model runs: it selects the rows that carry loss, computes the loss on them and
returns it instead of logits. Inside the head's forward FSDP and ZeRO have gathered its weights and autocast applies,
and the loss leaves through the model's own output, as DDP and FSDP expect of a tensor that is differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dllm.fast.deferred import no_deferral
from dllm.fast.head.interception import replaced_forward
from dllm.fast.head.split import output_head
from dllm.fast.head.use import find_head_use, is_linear
from dllm.fast.int8 import check_trainable
from dllm.fast.model import logits_of, unwrapped
from dllm.fast.training.checkpointing import checkpoint_around
from dllm.fast.training.dropout import fast_dropout
from dllm_kernels import linear_cross_entropy, masked_cross_entropy

# Tokens of the forward in which a head is traced.
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
    more, on a few tokens, to find how its logits are computed:

    - the head is an nn.Linear and its output is the logits: the loss is computed from the head's input and weight;
    - the head is another module that treats every row independently (LoRA), or accelerate moves its weights: the head
      is called on the rows;
    - the model computes with its head's output (softcap, scale, a second bias: whatever their values are), rows depend
      on each other, or someone's hook watches the head: all logits are computed and rows of them are taken. Correct,
      slower, and logged. The same holds where a gradient checkpoint includes the head.

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
    return _run(model, inputs, rows, targets, row_weight)


def loss_of_nll(
    model: nn.Module,
    inputs: Mapping[str, object],
    *,
    rows: Tensor,
    targets: Tensor,
    objective: Callable[[Tensor], Tensor],
    guidance: float = 0.0,
) -> MaskedLoss:
    r"""A loss that is any function of the nll of chosen positions, logits of no other position computed.

    It is for objectives whose weights follow from the nll itself, as those of policy gradients do. The gradient needs
    one product with the head more than :func:`masked_loss`, or the gradients of the chosen rows' logits kept.

    Args:
        model, inputs, rows, targets: as in :func:`masked_loss`.
        objective: function (nll, float32 [N], differentiable) -> loss, float32, one number. It is called once, inside
            the forward of the head.
        guidance: scale s of classifier-free guidance. The first half of the input's rows are texts, the second half the
            same texts with the prompt masked, and `rows` lie in the first half. The logits are
            :math:`u + (s + 1)(c - u)` of the two.

    Returns:
        :class:`MaskedLoss`, with the objective's number as loss.

    Raises:
        As :func:`masked_loss`; ValueError with guidance and an odd number of rows.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> tiny = dict(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, vocab_size=50)
        >>> model, row = BertForMaskedLM(BertConfig(**tiny)), torch.tensor([1])
        >>> inputs = {"input_ids": torch.full((2, 3), 5)}
        >>> result = loss_of_nll(model, inputs, rows=row, targets=row, objective=lambda nll: nll.exp().sum())
        >>> bool(result.loss == result.nll.exp().sum())
        True
    """
    one_each = torch.ones_like(targets, dtype=torch.float32)
    check_arguments(inputs, rows, targets, one_each)
    if guidance and len(inputs["input_ids"]) % 2:
        raise ValueError(f"guidance needs an even number of rows, got {len(inputs['input_ids'])}")
    return _run(model, inputs, rows, targets, one_each, objective, guidance)


def _run(model: nn.Module, inputs: Mapping[str, object], *loss_of: object) -> MaskedLoss:
    """Run the model with the loss of :class:`_HeadLoss` in the place of its head's logits."""
    head = output_head(unwrapped(model))
    kind = find_head_use(model, head, _first_tokens(inputs)).kind
    if kind == "int8":
        check_trainable(model)
    computed = _HeadLoss(head, kind, *loss_of)
    with no_deferral(), fast_dropout(inputs["input_ids"].device):
        if kind == "logits":
            return computed.of_logits(logits_of(model(**inputs)))
        with replaced_forward(head, computed.run):
            output = logits_of(model(**inputs))
    if computed.checkpointed:
        return computed.of_logits(output)
    if computed.loss is None or output.numel() != 1:
        raise RuntimeError(f"{type(model).__name__} did not hand out what its head returned")
    return MaskedLoss(with_exact_value(output.reshape(()), computed.loss), computed.nll)


def head_loss(head: nn.Module, hidden: Tensor, *, rows: Tensor, targets: Tensor, row_weight: Tensor) -> MaskedLoss:
    """The loss of :func:`masked_loss` under a head that is given its input, computed inside its forward.

    Where the head is no nn.Linear (one of an adapter), it is called on the rows.

    Args:
        head: a module that gives logits [N, V] of hidden states [N, H], for each row by itself.
        hidden: [N, H].
        rows, targets, row_weight: as in :func:`masked_loss`, with positions counted in `hidden`.

    Returns:
        :class:`MaskedLoss`.

    Example:
        >>> head, row = nn.Linear(4, 7), torch.tensor([2])
        >>> result = head_loss(head, torch.ones(3, 4), rows=row, targets=row, row_weight=torch.ones(1))
        >>> result.nll.shape
        torch.Size([1])
    """
    check_arguments({}, rows, targets, row_weight)
    computed = _HeadLoss(head, "linear" if is_linear(head) else "module", rows, targets, row_weight)
    with no_deferral(), replaced_forward(head, computed.run):
        output = head(hidden)
    return MaskedLoss(with_exact_value(output.reshape(()), computed.loss), computed.nll)


def with_exact_value(output: Tensor, exact: Tensor) -> Tensor:
    """A loss in the precision in which it was computed, differentiated through the model's output.

    DDP and FSDP wait for that one in the backward, and FSDP rounds it to the precision of its policy, often bfloat16.

    Args:
        output: the loss as it left the model, [].
        exact: the same as it was computed, float32 [], detached.

    Example:
        >>> weight = torch.ones((), requires_grad=True)
        >>> loss = with_exact_value((weight * 1.2345).bfloat16(), torch.tensor(1.2345))
        >>> loss.backward()
        >>> float(loss.detach()) == float(torch.tensor(1.2345)), float(weight.grad) > 1
        (True, True)
    """
    return _WithExactValue.apply(output, exact)


def check_arguments(inputs: Mapping[str, object], rows: Tensor, targets: Tensor, row_weight: Tensor) -> None:
    """Check the arguments of :func:`masked_loss` before anything runs.

    Raises:
        ValueError: `labels` among the inputs, or tensors of different length.
    """
    if "labels" in inputs:
        raise ValueError("inputs must not hold labels: the model would compute a loss of its own from them")
    if not rows.shape == targets.shape == row_weight.shape or rows.dim() != 1:
        shapes = [list(tensor.shape) for tensor in (rows, targets, row_weight)]
        raise ValueError(f"rows, targets and row_weight must have one shape [N], got {shapes}")


@dataclass(slots=True)
class _HeadLoss:
    """The loss of one forward: what the head is to compute, and the result, for which the model's output has no place
    or no precision."""

    head: nn.Module
    kind: str
    rows: Tensor
    targets: Tensor
    row_weight: Tensor
    objective: Callable[[Tensor], Tensor] | None = None
    guidance: float = 0.0
    loss: Tensor | None = None
    nll: Tensor | None = None
    recording: tuple[bool, object] = field(default_factory=lambda: _autograd_state())
    checkpointed: bool = False

    def run(self, original: Callable[..., Tensor], hidden: Tensor, *args: object, **kwargs: object) -> Tensor:
        """The forward of the head, which returns its loss, [1, 1, 1], in the place of logits."""
        if _autograd_state() != self.recording:  # a checkpoint, which runs the head again later
            self.checkpointed = True
            return original(hidden, *args, **kwargs)
        hidden = hidden.flatten(0, -2)
        if self.kind == "linear":
            loss, nll = self._of_hidden(hidden)
        else:
            loss, nll = self._of_chosen(self._guided(hidden, lambda rows: original(rows, *args, **kwargs)))
        self.loss, self.nll = loss.detach(), nll
        return loss.view(1, 1, 1).clone()  # FSDP warns of views

    def of_logits(self, logits: Tensor) -> MaskedLoss:
        """The loss from all logits [B, L, V]."""
        return self._of_chosen(self._guided(logits.flatten(0, -2)))

    def _of_hidden(self, hidden: Tensor) -> MaskedLoss:
        """The loss of rows of hidden states [N, H] under a linear head."""
        rows = self.rows
        if self.guidance:  # the head is linear, so logits are combined before it; its bias stays as it is
            hidden, rows = self._guided(hidden), None
        given = hidden, self.head.weight, self.targets, self.row_weight
        return self._result(*linear_cross_entropy(*given, bias=self.head.bias, rows=rows, keep=bool(self.objective)))

    def _of_chosen(self, logits: Tensor) -> MaskedLoss:
        """The loss of the chosen rows' logits [N, V]."""
        return self._result(*masked_cross_entropy(logits, self.targets, self.row_weight))

    def _result(self, loss: Tensor, nll: Tensor) -> MaskedLoss:
        return MaskedLoss(loss if self.objective is None else self.objective(nll), nll.detach())

    def _guided(self, states: Tensor, then: Callable[[Tensor], Tensor] = lambda rows: rows) -> Tensor:
        """`then` of the chosen rows of states, combined with those half the rows further under guidance."""
        chosen = then(states.index_select(0, self.rows))
        if not self.guidance:
            return chosen
        other = then(states.index_select(0, self.rows + len(states) // 2)).float()
        return (other + (self.guidance + 1) * (chosen.float() - other)).to(chosen.dtype)


class _WithExactValue(torch.autograd.Function):
    """The value of one tensor with the gradient of another."""

    @staticmethod
    def forward(ctx: object, output: Tensor, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _autograd_state() -> tuple[bool, object]:
    """Whether gradients are recorded, and the innermost gradient checkpoint, None outside of one."""
    return torch.is_grad_enabled(), checkpoint_around()


def _first_tokens(inputs: Mapping[str, object]) -> dict[str, Tensor]:
    """The beginning of the first row, for the forward in which the head is traced."""
    beginning = {"input_ids": inputs["input_ids"][:1, :_EXAMPLE]}
    mask = inputs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        beginning["attention_mask"] = mask[:1, :_EXAMPLE]
    return beginning
