"""Models with weights of 8 bits: approximate, for sampling and evaluation only."""

from __future__ import annotations

import functools
import logging
from collections import defaultdict

from torch import nn

from dllm.fast.deferred import DeferredHead
from dllm.fast.experts import has_swiglu_experts
from dllm.fast.head.interception import instance_forward
from dllm.fast.head.use import hooks_of
from dllm.fast.int8 import Int8Experts, Int8Linear, is_int8
from dllm_kernels import _checks

_log = logging.getLogger("dllm.fast")

KINDS = ("int8",)
# The layer that chooses the experts of a token: small, and a rounding there runs other experts.
ROUTERS = ("gate", "router", "shared_expert_gate")


def quantize(model: nn.Module, kind: str = "int8") -> nn.Module:
    """Replace a model's linear layers, its LM head among them, by ones with weights of 8 bits, in place.

    Experts that transformers 5 stores in one three-dimensional parameter are replaced on a CPU, if they are gated by
    SiLU. Others, and those on a GPU, stay as they are (a log line says how large they are), and so do embeddings, norms
    and routers. A tied head becomes a copy in 8 bits beside the embedding. What the model computes afterwards is
    approximate: each product is off by about 1 % of its typical size. A row's product still has the same bits in every
    batch. A model with experts in 8 bits is slow once it is moved to a GPU.

    The model is for sampling and evaluation: no parameter has a gradient any more, trainers refuse the model, and its
    `save_pretrained` raises a ValueError before it writes anything.

    Args:
        model: with weights of float32, bfloat16 or float16.
        kind: "int8".

    Returns:
        The same model.

    Raises:
        TypeError: `model` is none.
        ValueError: `kind` is unknown; the model is quantised or patched already, has an adapter that is not merged, has
            no linear layers, or some, or experts, with hooks, with forwards of their own or in another dtype. It is as
            it was then.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 64))
        >>> type(quantize(model)[0]).__name__
        'Int8Linear'
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if kind not in KINDS:
        raise ValueError(f"quantize must be one of {', '.join(KINDS)}, got {kind!r}")
    if is_int8(model) or getattr(model, "is_quantized", False):
        raise ValueError(f"{type(model).__name__} is quantised already")
    if hasattr(model, "peft_config"):
        raise ValueError("an adapter must be merged before the model is quantised (dllm.tools.merge_peft_adapter)")
    places = _places(model)
    if not places:
        raise ValueError(f"{type(model).__name__} has no linear layers to quantise")
    for layer, [(_, name), *_] in places.items():
        _check_layer(name, layer)
    while places:  # a layer in full is freed before the next is quantised
        layer, of_layer = places.popitem()
        small = _replacement(of_layer[0][1], layer)(layer).train(layer.training)
        for parent, name in of_layer:
            setattr(parent, name, small)
    model.requires_grad_(False)
    if callable(getattr(model, "save_pretrained", None)):
        model.save_pretrained = functools.partial(_refuse_to_save, type(model).__name__)
    experts = sum(p.nbytes for p in model.parameters() if p.dim() == 3)
    if experts:
        _log.warning("%s: %.1f MB of experts stay as they are", type(model).__name__, experts / 10**6)
    return model


def _places(model: nn.Module) -> dict[nn.Module, list[tuple[nn.Module, str]]]:
    """The layers to replace, each with its parents and its names there: some are used twice."""
    places = defaultdict(list)
    for parent in model.modules():
        for name, layer in parent._modules.items():
            if _replacement(name, layer) is not None:
                places[layer].append((parent, name))
    return places


def _replacement(name: str, layer: nn.Module | None) -> type[Int8Linear | Int8Experts] | None:
    if type(layer) in (nn.Linear, DeferredHead):
        return None if name in ROUTERS else Int8Linear
    served = layer is not None and has_swiglu_experts(layer) and layer.gate_up_proj.device.type == "cpu"
    return Int8Experts if served else None


def _check_layer(name: str, layer: nn.Module) -> None:
    if type(layer) is DeferredHead:
        raise ValueError("the model is patched: unpatch it before it is quantised")
    names = ("weight",) if type(layer) is nn.Linear else ("gate_up_proj", "down_proj")
    for weight in map(layer._parameters.get, names):  # that of a parametrization is not there
        if type(weight) is not nn.Parameter or weight.dtype not in _checks.LOGIT_DTYPES:
            got = "none" if weight is None else f"{type(weight).__name__} of {str(weight.dtype).removeprefix('torch.')}"
            raise ValueError(f"weights must be plain ones of float32, bfloat16 or float16, got {got} in {name}")
        if weight.is_meta or instance_forward(layer) is not None or hooks_of(layer):
            raise ValueError(f"a layer must be its weight alone to be quantised, got hooks or offloading in {name}")


def _refuse_to_save(name: str, *args: object, **kwargs: object) -> None:
    raise ValueError(
        f"a {name} with weights of int8 is not saved: save the model that it was made of, and quantise what is loaded"
    )
