"""Head tap: run a model up to its LM head, then the head on chosen rows only. No model is forked."""

from __future__ import annotations

import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dllm.fast.deferred import undeferred
from dllm_kernels._linear import linear

_log = logging.getLogger("dllm.fast")

# What an instance may carry that runs when its head is called. All of it is set aside while the head is bypassed.
_AROUND_FORWARD = ("forward", "_forward_hooks", "_forward_pre_hooks")

# A head is bypassed by changing the instance, so one thread at a time may run a body or inspect a model.
_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_locks_lock = threading.Lock()

_inspected: weakref.WeakKeyDictionary[nn.Module, tuple[tuple, str]] = weakref.WeakKeyDictionary()


class HeadTap:
    """A model split at its LM head.

    kind is one of
        "linear"  the head is a plain nn.Linear: logits = hidden @ weight.T + bias;
        "module"  the head carries hooks, a replaced forward or parametrizations: the module itself is called on rows;
        "logits"  the model does more after its head (softcap, scaling, slicing): its own logits are taken, and rows of
                  them are chosen afterwards. Correct, slower, and logged.

    Which one holds is found by one small forward, comparing head(head's input) with the model's logits; again when the
    head, the hooks or the configuration have changed.

    Args:
        model: a module with `get_output_embeddings()` whose output has `.logits`, or is a tuple that begins with them.
        example: int64 [1, n], a few valid token ids for that forward.

    Raises:
        ValueError: the model has no output embeddings.
    """

    def __init__(self, model: nn.Module, example: Tensor):
        self.model = model
        self.head = output_head(model)
        self.kind = _inspect(model, self.head, example)

    def body(self, tokens: Tensor, attention_mask: Tensor | None, **context: object) -> Tensor:
        """What the head would be given for tokens [B, L]: hidden states [B, L, H], or logits [B, L, V] for "logits".

        `context` is what else the model's forward takes.
        """
        inputs = {"input_ids": tokens} | context
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask
        if self.kind == "logits":
            with _alone(self.head):
                return logits_of(self.model(**inputs))
        with bypassed(self.head):
            return logits_of(self.model(**inputs))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] of rows of the body's output [N, H]."""
        if self.kind == "logits":
            return hidden
        if self.kind == "module":
            with _alone(self.head):
                return self.head(hidden)
        return linear(hidden.to(self.head.weight.dtype), self.head.weight, self.head.bias)


def output_head(model: nn.Module) -> nn.Module:
    """The module that `model.get_output_embeddings()` names.

    Raises:
        ValueError: there is none.
    """
    get = getattr(model, "get_output_embeddings", None)
    head = get() if callable(get) else None
    if not isinstance(head, nn.Module):
        wrapped = getattr(model, "module", None)
        if callable(getattr(wrapped, "get_output_embeddings", None)):
            raise ValueError(f"{type(model).__name__} wraps the model: pass its .module")
        raise ValueError(
            f"the model must have output embeddings (get_output_embeddings() returning its LM head); "
            f"{type(model).__name__} has none"
        )
    return head


@contextmanager
def bypassed(head: nn.Module) -> Iterator[None]:
    """Within this context the head hands out what it is given; afterwards it is exactly as it was.

    Threads that share a head wait for each other.

    Example:
        >>> head = nn.Linear(2, 5)
        >>> with bypassed(head):
        ...     head(torch.ones(1, 2)).shape
        torch.Size([1, 2])
    """
    with _alone(head):
        saved = {name: head.__dict__[name] for name in _AROUND_FORWARD if name in head.__dict__}
        try:
            head.__dict__.update(forward=_identity, _forward_hooks=OrderedDict(), _forward_pre_hooks=OrderedDict())
            yield
        finally:
            for name in _AROUND_FORWARD:
                head.__dict__.pop(name, None)
            head.__dict__.update(saved)


def _alone(head: nn.Module) -> threading.RLock:
    """The lock of a head, one for all who share it."""
    with _locks_lock:
        return _locks.setdefault(head, threading.RLock())


def logits_of(output: object) -> Tensor:
    """The logits of a model's output: `.logits`, the first element of a tuple, or the tensor itself."""
    if isinstance(output, Tensor):
        return output
    return output.logits if hasattr(output, "logits") else output[0]


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance u + (scale + 1) (c - u) of the logits c and u, in float32."""
    u = unconditional.float()
    return u + (scale + 1) * (conditional.float() - u)


def _identity(hidden: Tensor, *args: object, **kwargs: object) -> Tensor:
    """One function for every tap: a new one each time would make torch.compile compile again."""
    return hidden


def _dependence_on_place(head: nn.Module, hidden: Tensor, logits: Tensor) -> str | None:
    """Why the head may not be called on single rows, or None where it may: a hook can read positions off the shape."""
    hidden, logits = hidden.flatten(0, -2).flip(0), logits.flatten(0, -2).flip(0)
    difference = (head(hidden).to(logits.dtype) - logits).abs().max()
    # another shape may be another algorithm: 64 ulp of the largest logit
    if difference <= 64 * torch.finfo(logits.dtype).eps * logits.abs().max():
        return None
    return f"its head depends on a row's place: rows in another order differ by up to {float(difference):.3g}"


def _is_plain_linear(head: nn.Module) -> bool:
    """No subclass (LoRA, quantised, parametrized), no replaced forward, no hooks."""
    return (
        type(head) is nn.Linear
        and "forward" not in head.__dict__
        and not head._forward_hooks
        and not head._forward_pre_hooks
    )


def around_forward(module: nn.Module) -> tuple:
    """What an instance carries around its forward; torch numbers hooks and never reuses a number."""
    return id(module.__dict__.get("forward")), tuple(module._forward_hooks), tuple(module._forward_pre_hooks)


def configuration(model: nn.Module) -> str:
    """What a model's configuration says now."""
    config = getattr(model, "config", None)
    return config.to_json_string() if hasattr(config, "to_json_string") else repr(config)


def _inspect(model: nn.Module, head: nn.Module, example: Tensor) -> str:
    """The kind of the head, found once per model and state of its head, hooks and configuration."""
    with _alone(head), undeferred(head):
        plain = _is_plain_linear(head)
        state = (id(head), plain, *around_forward(head), *around_forward(model), configuration(model))
        known = _inspected.get(model)
        if known is not None and known[0] == state:
            return known[1]
        logits, why = _disagreement(model, head, example)
        if why:
            _log.warning("%s: sampling from full logits, because %s", type(model).__name__, why)
        kind = "logits" if why else "linear" if plain else "module"
        if bool(logits.isfinite().all()):  # a verdict on NaN would outlive their cause
            _inspected[model] = (state, kind)
        return kind


def _disagreement(model: nn.Module, head: nn.Module, example: Tensor) -> tuple[Tensor, str | None]:
    """The model's logits, and why they are not its head's output, or None where they are.

    The same product on the same operands gives the same bits, so equality is asked for: any tolerance would hide a
    softcap on small logits. What torch.compile made of the model may round otherwise and is looked through.
    """
    eager = getattr(model, "_orig_mod", model)
    given: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, args: given.append(args[0]), prepend=True)
    try:
        logits = logits_of(eager(input_ids=example))
    finally:
        hook.remove()
    if len(given) != 1:
        return logits, f"its forward calls the head {len(given)} times"
    expected = head(given[0])
    if expected.shape != logits.shape:
        return logits, f"the head returns {list(expected.shape)} and the model {list(logits.shape)}"
    expected = expected.to(logits.dtype)
    if torch.equal(expected, logits):
        return logits, None if _is_plain_linear(head) else _dependence_on_place(head, given[0], logits)
    return logits, f"its logits differ from the head's output by up to {float((expected - logits).abs().max()):.3g}"
