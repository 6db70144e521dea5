"""Running a model up to its LM head, then the head on chosen rows only. No model is forked."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from dllm.fast.attention import without_cudnn
from dllm.fast.deferred import DeferredHead, no_deferral
from dllm.fast.head.interception import replaced_forward
from dllm.fast.head.last_layer import find_tail, only_read
from dllm.fast.head.use import find_head_use, hooks_of, is_linear
from dllm.fast.model import logits_of
from dllm_kernels import int8_linear
from dllm_kernels._linear import by_blocks, linear


class SplitModel:
    """A model split at its LM head.

    kind is one of
        "linear"  the head is a plain nn.Linear: logits = hidden @ weight.T + bias;
        "int8"    the same with a weight of 8 bits, where rows are quantised too (:func:`dllm.fast.quantize`);
        "module"  the head is another module that treats every row independently: it is called on rows;
        "logits"  the model computes with its head's output (softcap, scale, a second bias), or the head mixes rows: the
                  model computes all logits, and rows of them are chosen afterwards. Correct, slower, and logged.

    The kind is found by one small forward (:func:`dllm.fast.head.use.find_head_use`), whatever the weights' values. It
    is found again when the head, or modules, hooks or settings between it and the logits, have changed.

    Several threads may share a model: only the calling thread's forwards stop at the head.

    body_context: a function that makes the context in which bodies run, such as that of a compiled one.

    Args:
        model: a module with `get_output_embeddings()` whose output has `.logits`, or is a tuple that begins with them.
        example: int64 [1, n], a few valid token ids for that forward.

    Raises:
        ValueError: the model has no output embeddings, or no weights yet.
    """

    def __init__(self, model: nn.Module, example: Tensor):
        self.model = model
        self.body_context: Callable[[], AbstractContextManager] = nullcontext
        self.head = output_head(model)
        if getattr(getattr(self.head, "weight", None), "is_meta", False) and not hasattr(self.head, "_hf_hook"):
            raise ValueError(f"{type(model).__name__} must have weights, got some on the device meta: load them first")
        self.kind = find_head_use(model, self.head, {"input_ids": example}).kind
        if (self.kind == "int8" and hooks_of(self.head)) or (self.kind == "linear" and not _weight_at_hand(self.head)):
            self.kind = "module"
        self.tail = None if self.kind == "logits" else find_tail(model, self.head, example[:1, :1])

    def body(
        self, tokens: Tensor, attention_mask: Tensor | None, read: Tensor | None = None, **context: object
    ) -> Tensor:
        """The head's input for tokens [B, L]: hidden states [B, L, H]; for "logits" the logits [B, L, V].

        `read`, int64 [N], says which positions b L + l are read; all others may hold anything finite. None: all are.
        `context` holds further arguments of the model's forward.
        """
        inputs = {"input_ids": tokens} | context
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask
        to_the_head = no_deferral() if self.kind == "logits" else replaced_forward(self.head, _hidden)
        last_layer = nullcontext() if read is None else only_read(self.tail, read, tokens.shape)
        with to_the_head, self.body_context(), last_layer, without_cudnn(tokens.shape[1]):
            return logits_of(self.model(**inputs))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] of rows of the body's output [N, H]."""
        if self.kind == "logits":
            return hidden
        if self.kind == "int8":  # float32: nothing is rounded after the product
            head = self.head
            return int8_linear(hidden.float(), head.weight, head.scale, head.bias)
        if self.kind == "module":
            with no_deferral():
                # a row's bits must not depend on the number of rows, whatever product the module uses
                return by_blocks(self.head, hidden) if hidden.device.type == "cpu" else self.head(hidden)
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


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance u + (scale + 1) (c - u) of the logits c and u, in float32."""
    u = unconditional.float()
    return u + (scale + 1) * (conditional.float() - u)


def _hidden(original: object, hidden: Tensor, *args: object, **kwargs: object) -> Tensor:
    return hidden


def _weight_at_hand(head: nn.Module) -> bool:
    """Whether the head is its weight and nothing else, also outside of the model's forward."""
    return type(head) in (nn.Linear, DeferredHead) and is_linear(head) and not hooks_of(head)
