"""The loss of masked tokens, computed inside the model's own LM head, so that only masked rows meet the vocabulary.

The head's forward is replaced while the model runs: it picks the rows that carry loss, computes the loss on them and
hands that on instead of logits. Inside the head is where FSDP and ZeRO have gathered its weights and where autocast
holds, and the loss then leaves through the model's own output, as DDP and FSDP expect of what is differentiated.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dllm.fast.deferred import undeferred
from dllm.fast.head import _alone, logits_of, output_head
from dllm_kernels import linear_cross_entropy, masked_cross_entropy

_log = logging.getLogger("dllm.fast")

# Whose hooks may stay on a head that computes the loss: they gather and move weights and leave values alone.
_HARMLESS = ("accelerate", "deepspeed", "torch.distributed")
# Tokens of the forward in which a head is looked at.
_EXAMPLE = 16

_losses: weakref.WeakKeyDictionary[nn.Module, _LossInHead] = weakref.WeakKeyDictionary()
_losses_lock = threading.Lock()


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
    - the head is something else (LoRA, quantised), or accelerate moves its weights: the head is called on the rows;
    - the model does more after its head (softcap, scaling, slicing), or someone's hook watches the head's output: all
      logits are computed and rows of them are taken. Correct, slower, and logged.

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
    with _alone(head), undeferred(head):
        loss_in_head = _loss_of(head)
        if loss_in_head.seen != _state(head):
            _inspect(model, head, loss_in_head, inputs)
        if loss_in_head.kind == "logits":
            logits = logits_of(model(**inputs))
            return _from_logits(logits.flatten(0, -2).index_select(0, rows), targets, row_weight)
        with loss_in_head.working(head, _Job(rows, targets, row_weight)) as job:
            handed_out = logits_of(model(**inputs))
    if job.loss is None or handed_out.numel() != 1:
        raise RuntimeError(f"{type(model).__name__} did not hand out what its head returned")
    return MaskedLoss(_Carried.apply(handed_out.reshape(()), job.loss), job.nll)


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


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DDP, FSDP, DeepSpeed or torch.compile: the first that can name its LM head.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> unwrapped(layer) is layer
        True
    """
    inner = model
    while not callable(getattr(inner, "get_output_embeddings", None)):
        inside = getattr(inner, "_orig_mod", getattr(inner, "module", None))
        if not isinstance(inside, nn.Module):
            return model
        inner = inside
    return inner


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

    rows: Tensor
    targets: Tensor
    row_weight: Tensor
    loss: Tensor | None = None
    nll: Tensor | None = None


class _Carried(torch.autograd.Function):
    """The loss as the head computed it, differentiated through what the model handed out of it: that is what DDP and
    FSDP wait for in the backward, and FSDP rounds it to the precision of its policy, bfloat16 often."""

    @staticmethod
    def forward(ctx: object, handed_out: Tensor, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _LossInHead:
    """The forward of a head that returns its loss, [1, 1, 1], in the place of logits. One object per head, always the
    same, so that torch.compile, which calls it as a black box, has no reason to compile again."""

    def __init__(self) -> None:
        self.seen: tuple | None = None  # the state of the head when it was looked at
        self.kind = "logits"
        self.head: Callable[[], nn.Module | None] = lambda: None
        self.original: Callable[..., Tensor] | None = None
        self.job: _Job | None = None
        self.forward = torch.compiler.disable(self._forward)  # here, because it loads the compiler

    def _forward(self, hidden: Tensor, *args: object, **kwargs: object) -> Tensor:
        job, hidden = self.job, hidden.flatten(0, -2)
        if self.kind == "linear":
            head = self.head()
            loss, nll = _from_hidden(hidden, head.weight, head.bias, job.rows, job.targets, job.row_weight)
        else:
            logits = self.original(hidden.index_select(0, job.rows), *args, **kwargs)
            loss, nll = _from_logits(logits, job.targets, job.row_weight)
        job.loss, job.nll = loss.detach(), nll
        return loss.view(1, 1, 1).clone()  # FSDP warns of views

    @contextmanager
    def working(self, head: nn.Module, job: _Job) -> Iterator[_Job]:
        """Within this context the head's forward is this object's; afterwards it is what it was."""
        self.head, self.original, self.job = weakref.ref(head), head.forward, job
        try:
            with _replaced_forward(head, self.forward):
                yield job
        finally:
            self.original = self.job = None


def _loss_of(head: nn.Module) -> _LossInHead:
    with _losses_lock:
        if head not in _losses:
            _losses[head] = _LossInHead()
        return _losses[head]


@contextmanager
def _replaced_forward(head: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    """The instance's forward replaced, its hooks left alone; afterwards whatever forward the instance had, if any."""
    own = head.__dict__.get("forward")
    head.__dict__["forward"] = forward
    try:
        yield
    finally:
        del head.__dict__["forward"]
        if own is not None:
            head.__dict__["forward"] = own


def _state(head: nn.Module) -> tuple:
    """What decides how a head is used; torch numbers hooks and never reuses a number."""
    return type(head), id(head.__dict__.get("forward")), tuple(head._forward_hooks)


def _inspect(model: nn.Module, head: nn.Module, loss_in_head: _LossInHead, inputs: Mapping[str, object]) -> None:
    """Find out how the model's logits come about, from one forward on the beginning of the first row."""
    beginning = {"input_ids": inputs["input_ids"][:1, :_EXAMPLE]}
    mask = inputs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        beginning["attention_mask"] = mask[:1, :_EXAMPLE]
    kind, why = _kind(model, head, beginning)
    if why:
        _log.warning("%s: training from full logits, because %s", type(unwrapped(model)).__name__, why)
    loss_in_head.seen, loss_in_head.kind = _state(head), kind


def _kind(model: nn.Module, head: nn.Module, example: Mapping[str, Tensor]) -> tuple[str, str | None]:
    """ "linear", "module" or "logits", and for the last the reason."""
    for hook in head._forward_hooks.values():
        if not (getattr(hook, "__module__", None) or "").startswith(_HARMLESS):
            return "logits", f"a hook watches its head's output ({getattr(hook, '__qualname__', hook)})"
    plain = type(head).forward is nn.Linear.forward and "forward" not in head.__dict__
    forward, calls = head.forward, []

    @torch.compiler.disable
    def watched(hidden: Tensor, *args: object, **kwargs: object) -> Tensor:
        logits = forward(hidden, *args, **kwargs)
        alone = None if plain else forward(hidden.flatten(0, -2).flip(0), *args, **kwargs)
        calls.append((logits, alone))
        return logits

    with torch.no_grad(), evaluating(unwrapped(model)), _replaced_forward(head, watched):
        given_out = logits_of(model(**example))
    if len(calls) != 1:
        return "logits", f"its forward calls the head {len(calls)} times"
    logits, alone = calls[0]
    if logits.shape != given_out.shape:
        return "logits", f"the head returns {list(logits.shape)} and the model {list(given_out.shape)}"
    # the same numbers give the same bits: a tolerance would hide a softcap on small logits
    if not torch.equal(logits.to(given_out.dtype), given_out):
        difference = (logits.to(given_out.dtype) - given_out).abs().max()
        return "logits", f"its logits differ from the head's output by up to {float(difference):.3g}"
    if plain:
        return "linear", None
    logits = logits.flatten(0, -2)
    difference = (alone.flip(0) - logits).abs().max()
    # another shape may be another algorithm: 64 ulp of the largest logit
    if bool(difference <= 64 * torch.finfo(logits.dtype).eps * logits.abs().max()):
        return "module", None
    return "logits", f"its head depends on a row's place: rows in another order differ by up to {float(difference):.3g}"


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode (no dropout, so no random number is drawn), then each as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
