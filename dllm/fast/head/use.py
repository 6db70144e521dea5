"""What a model does with its LM head's output, found by tracing one forward.

Values cannot tell: a scale of 1, a bias of 0 or a high softcap changes nothing until it is trained. So the head returns
a tensor that records every operator applied to it. The model's logits are the head's output only if those were copies
and casts. A head that is not a plain linear layer is traced in the same way: it may be called on chosen rows only if
each operator treats every row independently.
"""

from __future__ import annotations

import itertools
import logging
import random
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import is_dataclass
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dllm.fast.attention import attention_of
from dllm.fast.deferred import DeferredHead, no_deferral
from dllm.fast.head.interception import instance_forward, replaced_forward
from dllm.fast.head.traced import ROWS, TracedTensor, is_copy, is_rowwise
from dllm.fast.int8 import Int8Linear
from dllm.fast.model import checkpoints_activations, logits_of

_log = logging.getLogger("dllm.fast")

# Packages whose hooks may stay on a head that is used on chosen rows: they gather and move weights, not values.
_HARMLESS = ("accelerate", "deepspeed", "torch.distributed")
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
# A submodule beside the path to the head with more modules than this is the model's body, which runs before the head.
_SMALL = 16
_OF_ALL_MODULES = {*vars(nn.Module())} - {"training"} | {"forward", "config"}
_MAX_STATES = 8  # of a head that are remembered

_known: weakref.WeakKeyDictionary[nn.Module, OrderedDict[Hashable, HeadUse]] = weakref.WeakKeyDictionary()
_paths: weakref.WeakKeyDictionary[nn.Module, tuple[int, tuple[str, ...]]] = weakref.WeakKeyDictionary()
_lock = threading.RLock()


class HeadUse(NamedTuple):
    """How a model computes its logits.

    kind is one of
        "linear"  logits = hidden @ weight.T + bias, by the forward of nn.Linear;
        "int8"    the same with a weight of 8 bits, by :func:`dllm_kernels.int8_linear`;
        "module"  the head's own forward (LoRA, offloaded weights) treats every row independently: it is called on rows;
        "logits"  the model computes with its head's output (softcap, scale, second bias), someone's hook watches the
                  head, or its rows depend on each other: the model's own logits are needed, and `why` says why.
    """

    kind: str
    why: str | None = None


def find_head_use(model: nn.Module, head: nn.Module, example: Mapping[str, object]) -> HeadUse:
    """How a model computes its logits, found once for each state of the modules between head and logits.

    Args:
        model: as it is called.
        head: of that model.
        example: a few tokens that it can be called with.
    """
    use, new = _find(model, head, example)
    if new and use.why:
        _log.warning("%s: samples and trains from full logits, because %s", type(model).__name__, use.why)
    return use


def why_not_linear(model: nn.Module, head: nn.Module, example: Mapping[str, object]) -> str | None:
    """Why the logits are not those of a linear head, None where they are."""
    use, _ = _find(model, head, example)
    return None if use.kind == "linear" else use.why or "its head computes in its own way"


def is_linear(head: nn.Module) -> bool:
    """Whether a head computes as nn.Linear does, with an ordinary weight. LoRA, a quantised layer or weight, or a
    forward set on the instance do not. A deferred head does."""
    of_class = type(head).forward is nn.Linear.forward or type(head) is DeferredHead
    return of_class and instance_forward(head) is None and _is_plain(head.weight)


def hooks_of(module: nn.Module) -> list[Callable[..., object]]:
    """All hooks of a module, those of its gradients included."""
    return [hook for kind in _HOOKS for hook in getattr(module, kind).values()]


def forward_and_hooks(module: nn.Module) -> tuple:
    """A key of an instance's own forward and its hooks; torch numbers hooks and never reuses a number."""
    return (id(instance_forward(module)), *(tuple(getattr(module, kind)) for kind in _HOOKS))


def _find(model: nn.Module, head: nn.Module, example: Mapping[str, object]) -> tuple[HeadUse, bool]:
    """The use, and whether this call found it."""
    with _lock:
        state = _state(model, head)
        known = _known.setdefault(head, OrderedDict())
        new = state not in known
        if new:
            known[state] = _trace(model, head, example)
            if len(known) > _MAX_STATES:
                known.popitem(last=False)
        known.move_to_end(state)
        return known[state], new


def _trace(model: nn.Module, head: nn.Module, example: Mapping[str, object]) -> HeadUse:
    for hook in hooks_of(head):
        if not (getattr(hook, "__module__", None) or "").startswith(_HARMLESS):
            return HeadUse("logits", f"a hook watches its head ({getattr(hook, '__qualname__', hook)})")
    if getattr(getattr(model, "dynamo_ctx", None), "fullgraph", False):
        return HeadUse("logits", "fullgraph=True compiles what must not depend on the calling thread")
    calls: list[tuple[Tensor, str | None, str]] = []

    def watched(original: Callable[..., object], hidden: Tensor, *args: object, **kwargs: object) -> object:
        kind = _kind_alone(head)  # here, where FSDP has gathered its weight
        logits = original(hidden, *args, **kwargs)
        if not isinstance(logits, Tensor):
            raise TypeError(f"its head returns a {type(logits).__name__}")
        probe = _ramp(logits.shape, logits)
        calls.append((probe, None if kind != "module" else _mixes_rows(original, hidden, args, kwargs), kind))
        return TracedTensor(probe, is_copy)

    with torch.inference_mode(False), torch.no_grad(), no_deferral(), no_side_effects(model):
        try:
            with replaced_forward(head, watched):
                logits = logits_of(model(**example))
        except Exception as error:
            if not calls and not isinstance(error, TypeError):
                raise
            model(**example)  # is it the model's own error?
            return HeadUse("logits", f"what it does with its head cannot be followed: {_first_line(error)}")
    if len(calls) != 1:
        return HeadUse("logits", f"its forward calls the head {len(calls)} times")
    probe, mixing, kind = calls[0]
    if why := _why_logits_differ(probe, logits):
        return HeadUse("logits", why)
    if mixing:
        return HeadUse("logits", f"its head may depend on a row's place: {mixing}")
    return HeadUse(kind)


def _kind_alone(head: nn.Module) -> str:
    """What a head computes, whatever the model does with it."""
    if type(head) is Int8Linear and instance_forward(head) is None:
        return "int8"
    return "linear" if is_linear(head) else "module"


def _why_logits_differ(probe: Tensor, logits: Tensor) -> str | None:
    """Why logits are not the head's output, which was replaced by `probe`."""
    if not isinstance(logits, TracedTensor):
        return "its logits do not come from its head"
    if logits.trace.exception:
        return f"it computes with its head's output: {logits.trace.exception}"
    if logits.shape != probe.shape:
        return f"the head returns {list(probe.shape)} and the model {list(logits.shape)}"
    if not torch.equal(logits.values, probe.to(logits.dtype)):
        return "its logits differ from its head's output"
    return None


def _mixes_rows(original: Callable[..., object], hidden: Tensor, args: tuple, kwargs: dict) -> str | None:
    """The first thing in a head's forward that is not known to treat every row by itself."""
    rows = TracedTensor(_ramp((1, ROWS, hidden.shape[-1]), hidden), is_rowwise)
    try:
        logits = original(rows, *args, **kwargs)
    except Exception as error:
        return _first_line(error)
    if not isinstance(logits, TracedTensor):
        return "what it returns does not come from its input"
    return rows.trace.exception


def _ramp(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Deterministic numbers of both signs and many sizes; neighbours differ."""
    size = torch.Size(shape).numel()
    ramp = torch.arange(size, device=like.device, dtype=torch.float32).remainder_(8191).sub_(4096).div_(3)
    return ramp.view(shape).to(like.dtype)


def _is_plain(weight: object) -> bool:
    """Whether a weight is an ordinary tensor: not quantised, not packed, not of a class with operators of its own."""
    return type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point() and weight.layout == torch.strided


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextmanager
def no_side_effects(model: nn.Module) -> Iterator[None]:
    """Run forwards eagerly, in the model's present modes, without side effects: random numbers, buffers (running means)
    and warnings are as before."""
    modules, state = list(model.modules()), random.getstate()
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with ExitStack() as stack:
        if any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in modules):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if not any(module.training for module in modules):
            yield
            return
        stack.enter_context(torch.random.fork_rng(devices, device_type="cuda"))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # checkpoints say that nothing here has a gradient
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        try:
            yield
        finally:
            random.setstate(state)
            for buffer, value in buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def _state(model: nn.Module, head: nn.Module) -> Hashable:
    """A key of all that can act between head and logits: the modules on the path from the model to the head with their
    forwards, hooks and settings, small modules beside them, and the configurations.

    Ranks that share a model must trace it at the same time. So settings that one rank may change alone (saving writes
    into the configuration) do not count there.
    """
    weight = head._parameters.get("weight")  # a parametrized one would be computed here; one of 8 bits is a buffer
    of_head = id(model), id(head), type(head), type(weight), getattr(weight, "dtype", None), *forward_and_hooks(head)
    states, path = [], _path(model, head)
    for module in path:
        states.append(state_of(module))
        for child in module._modules.values():
            if child is not None and child is not head and not any(child is other for other in path):
                states.append(_state_beside(child))
    if _is_distributed():
        return of_head, tuple(states)
    configurations = {id(config): config for module in path if (config := vars(module).get("config")) is not None}
    values = tuple(setting(vars(config)) for config in configurations.values() if hasattr(config, "__dict__"))
    return of_head, tuple(states), values


def state_of(module: nn.Module) -> Hashable:
    """A key of a module's forward, hooks, children and settings."""
    return structure_of(module), module.training if _is_distributed() else module_settings(module)


def structure_of(module: nn.Module) -> Hashable:
    """A key of a module's forward, hooks and children."""
    children = tuple(id(child) for child in module._modules.values())
    return id(module), id(type(module).forward), forward_and_hooks(module), children


def run_settings(model: nn.Module) -> tuple:
    """A key of what may change how a model runs, apart from its weights' values and its modules' own settings."""
    weight = next(model.parameters())
    autocast = torch.is_autocast_enabled(weight.device.type) and torch.get_autocast_dtype(weight.device.type)
    modules = tuple(map(structure_of, model.modules()))
    return attention_of(model), weight.dtype, str(weight.device), autocast, modules, checkpoints_activations(model)


def _state_beside(module: nn.Module) -> Hashable:
    parts = list(itertools.islice(module.modules(), _SMALL + 1))
    return tuple(map(state_of, parts[:1] if len(parts) > _SMALL else parts))


def _path(model: nn.Module, head: nn.Module) -> list[nn.Module]:
    """The modules from the model down to the one that holds the head; only the model where none does."""
    known = _paths.get(model)
    if known is None or known[0] != id(head) or (path := _resolve(model, known[1], head)) is None:
        names = next((name for name, module in model.named_modules() if module is head), "").split(".")
        _paths[model] = id(head), tuple(names)
        path = _resolve(model, names, head)
    return [model] if path is None else path


def _resolve(model: nn.Module, names: tuple[str, ...], head: nn.Module) -> list[nn.Module] | None:
    path, module = [], model
    for name in names:
        path.append(module)
        module = module._modules.get(name)
        if module is None:
            return None
    return path if module is head else None


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def module_settings(module: nn.Module) -> Hashable:
    """A key of a module's own numbers, names, switches and functions, apart from its forward and what all modules
    have."""
    return frozenset((name, setting(value)) for name, value in vars(module).items() if name not in _OF_ALL_MODULES)


def setting(value: object) -> Hashable:
    """A hashable form of a setting: numbers, texts, switches, containers of them, functions by identity, and the fields
    of dataclasses, namespaces and parts of a configuration. Anything else is None."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return frozenset((name, setting(part)) for name, part in value.items())  # in any order
    if isinstance(value, (list, tuple)):
        return tuple(map(setting, value))
    if isinstance(value, (nn.Module, Tensor, type)):
        return None
    if callable(value):
        return id(value)
    is_record = hasattr(value, "to_diff_dict") or is_dataclass(value) or isinstance(value, SimpleNamespace)
    return setting(vars(value)) if is_record and hasattr(value, "__dict__") else None
