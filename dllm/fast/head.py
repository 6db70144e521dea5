"""Head tap: run a model up to its LM head, then the head on chosen rows only. No model is forked."""

from __future__ import annotations

from torch import Tensor, nn

from dllm.fast.deferred import DeferredHead, undeferred
from dllm.fast.head_use import hooks_of, is_linear, logits_of, use_of
from dllm.fast.interception import replaced_forward
from dllm_kernels._linear import by_blocks, linear


class HeadTap:
    """A model split at its LM head.

    kind is one of
        "linear"  the head is a plain nn.Linear: logits = hidden @ weight.T + bias;
        "module"  the head has a forward of its own, which treats every row by itself: the module is called on rows;
        "logits"  the model computes with its head's output (softcap, scale, a second bias), or the head's rows depend
                  on each other: the model's own logits are taken, and rows of them are chosen afterwards. Correct,
                  slower, and logged.

    Which one holds is found by one small forward (:func:`dllm.fast.head_use.use_of`), whatever the weights' values, and
    again when the head, or the modules, hooks or settings between it and the logits have changed.

    Several threads may share a model: the tap is the calling thread's alone.

    Args:
        model: a module with `get_output_embeddings()` whose output has `.logits`, or is a tuple that begins with them.
        example: int64 [1, n], a few valid token ids for that forward.

    Raises:
        ValueError: the model has no output embeddings.
    """

    def __init__(self, model: nn.Module, example: Tensor):
        self.model = model
        self.head = output_head(model)
        self.kind = use_of(model, self.head, {"input_ids": example}).kind
        if self.kind == "linear" and not _weight_at_hand(self.head):
            self.kind = "module"

    def body(self, tokens: Tensor, attention_mask: Tensor | None, **context: object) -> Tensor:
        """What the head would be given for tokens [B, L]: hidden states [B, L, H], or logits [B, L, V] for "logits".

        `context` is what else the model's forward takes.
        """
        inputs = {"input_ids": tokens} | context
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask
        if self.kind == "logits":
            with undeferred():
                return logits_of(self.model(**inputs))
        with replaced_forward(self.head, _hidden):
            return logits_of(self.model(**inputs))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] of rows of the body's output [N, H]."""
        if self.kind == "logits":
            return hidden
        if self.kind == "module":
            with undeferred():
                # whatever the module multiplies by, a row's bits must not depend on how many rows there are
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


def configuration(model: nn.Module) -> str:
    """What a model's configuration says now."""
    config = getattr(model, "config", None)
    return config.to_json_string() if hasattr(config, "to_json_string") else repr(config)


def _hidden(original: object, hidden: Tensor, *args: object, **kwargs: object) -> Tensor:
    return hidden


def _weight_at_hand(head: nn.Module) -> bool:
    """Whether the head is its weight and nothing else, also outside of the model's forward."""
    return type(head) in (nn.Linear, DeferredHead) and is_linear(head) and not hooks_of(head)
