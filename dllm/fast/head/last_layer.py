"""The last layer of a body behind its attention, on the positions that are read only. No model is forked.

Every layer needs the hidden states of all positions, because the attention of the next one sees them. Behind the last
attention no position sees another, and a step of sampling reads the masks of a block only. There the output projection
and the MLP run on these positions alone: of L layers up to 1/L of the products is saved, and the hidden states that are
read are the same.

Which modules those are is found by following one forward, so no model class is named here. Training runs all positions:
there it would save 2 to 4 % of a step, and dropout masks and sums of gradients would be others than under gradient
checkpoints, which run layers a second time (benchmarks/LOG.md).
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dllm.fast.deferred import no_deferral
from dllm.fast.head.interception import replaced_forward
from dllm.fast.head.traced import ROWS, Trace, TracedTensor, is_copy, is_rowwise
from dllm.fast.head.use import hooks_of, no_side_effects, state_of
from dllm.fast.int8 import Int8Linear
from dllm.fast.model import unwrapped

# Devices where this has been measured to pay.
DEVICES = ("cpu",)
# Beyond this share of all positions, gathering and scattering cost what is saved.
MOST_READ = 0.75
# Libraries take another kernel for very few rows, and the last bits with it (benchmarks/LOG.md).
ROW_MULTIPLE = 16
# Packages whose hooks on a module of the last layer do not look at its values.
_HARMLESS = ("accelerate", "dllm")

_log = logging.getLogger("dllm.fast")
_here = threading.local()  # what is read of the thread's forward
_known: weakref.WeakKeyDictionary[nn.Module, tuple[Hashable, tuple[weakref.ref[nn.Module], ...] | None]] = (
    weakref.WeakKeyDictionary()
)


def find_tail(model: nn.Module, head: nn.Module, token: Tensor) -> tuple[nn.Module, ...] | None:
    """The modules with linear layers that run behind the model's last attention and before its head, in order, found
    once for each state of the last layer. No modules where the order of operations cannot be followed. None where
    somebody's hook would see that positions are missing.

    Args:
        model: as it is called.
        head: of that model.
        token: int64 [1, 1], a valid token.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> size = dict(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> model = BertForMaskedLM(BertConfig(**size))
        >>> [type(each).__name__ for each in find_tail(model, model.get_output_embeddings(), torch.tensor([[5]]))]
        ['BertSelfOutput', 'BertIntermediate', 'BertOutput']
    """
    layers = _layers(unwrapped(model), head)
    if layers is None or token.device.type not in DEVICES:
        return None
    last, outside = layers[-1], _outside(model, layers)
    state = id(model), len(layers), tuple(map(state_of, outside))
    known = _known.get(last)
    if known is None or known[0] != state:
        found = (
            None if _is_watched(model, layers, outside) else tuple(map(weakref.ref, _trace(model, head, last, token)))
        )
        known = _known[last] = state, found
    if known[1] is None:
        return None
    return tuple(module for reference in known[1] if (module := reference()) is not None)


@contextmanager
def only_read(tail: tuple[nn.Module, ...] | None, read: Tensor, positions: tuple[int, int]) -> Iterator[None]:
    """Within this context the calling thread's forwards run the modules of a tail on some positions only, and so do
    compiled bodies with their last operators. At all others their output is zero, except at position 0, which fills up
    rows to a multiple of 16. Forwards that record gradients run everywhere.

    Args:
        tail: see :func:`find_tail`; None: nothing changes.
        read: int64 [N], which of the B x L positions, b L + l.
        positions: B and L, of the tensors that the modules get.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> torch.nn.init.ones_(layer.weight).shape
        torch.Size([1, 1])
        >>> with torch.no_grad(), only_read((layer,), torch.tensor([2]), (1, 32)):
        ...     layer(torch.ones(1, 32, 1))[0, :4, 0]
        tensor([1., 0., 1., 0.])
    """
    if tail is None or torch.is_grad_enabled():
        yield
        return
    if missing := -len(read) % ROW_MULTIPLE or ROW_MULTIPLE * (len(read) == 0):
        read = torch.cat([read, read.new_zeros(missing)])  # position 0, once more
    before = getattr(_here, "reading", None)
    _here.reading = Reading(tail, read, tuple(positions))
    try:
        with nullcontext() if getattr(_here, "compiled", False) else _here.reading.on_modules():
            yield
    finally:
        _here.reading = before


class Reading(NamedTuple):
    """What is read of a forward: see :func:`only_read`."""

    tail: tuple[nn.Module, ...]
    read: Tensor
    positions: tuple[int, int]

    @property
    def pays(self) -> bool:
        """Whether modules are to run on what is read only."""
        return bool(self.tail) and len(self.read) <= MOST_READ * self.positions[0] * self.positions[1]

    @contextmanager
    def on_modules(self) -> Iterator[None]:
        """Within this context the calling thread's modules run so, where that pays."""
        with ExitStack() as stack:
            for module in self.tail if self.pays else ():
                stack.enter_context(replaced_forward(module, partial(_on_rows, self)))
            yield


def reading_of(positions: tuple[int, int]) -> Reading | None:
    """What is read of a forward on [B, L] tokens, as :func:`only_read` has it; None: all of it."""
    reading = getattr(_here, "reading", None)
    return reading if reading is not None and reading.positions == tuple(positions) else None


@contextmanager
def by_graphs() -> Iterator[None]:
    """Within this context :func:`only_read` leaves modules as they are: what they compute is compiled, and a module
    whose forward is replaced cannot be."""
    before = getattr(_here, "compiled", False)
    _here.compiled = True
    try:
        yield
    finally:
        _here.compiled = before


def run_eagerly(forward: Callable[..., object], args: tuple, kwargs: dict) -> object:
    """A forward within :func:`by_graphs` that is not compiled: its modules run on what is read."""
    reading = getattr(_here, "reading", None)
    with nullcontext() if reading is None else reading.on_modules():
        return forward(*args, **kwargs)


def _on_rows(reading: Reading, original: Callable[..., Tensor], *args: Tensor, **kwargs: object) -> Tensor:
    """The forward of a module on the positions that are read; zero elsewhere."""
    if any(tuple(states.shape[:2]) != reading.positions for states in args):
        return original(*args, **kwargs)
    out = original(*(states.flatten(0, 1).index_select(0, reading.read)[None] for states in args), **kwargs)
    batch, columns = args[0].shape[:2]
    everywhere = out.new_zeros(batch * columns, out.shape[-1])
    return everywhere.index_copy(0, reading.read, out[0]).view(batch, columns, -1)


def _layers(model: nn.Module, head: nn.Module) -> nn.ModuleList | None:
    """The one list of layers of a model, None where there are several or none."""
    lists, waiting = [], [model]
    while waiting:
        module = waiting.pop()
        if isinstance(module, nn.ModuleList):
            lists.append(module)
        elif module is not head:
            waiting.extend(module.children())
    return lists[0] if len(lists) == 1 and len(lists[0]) else None


def _outside(model: nn.Module, layers: nn.ModuleList) -> list[nn.Module]:
    """All modules that see the output of the last layer, or are in it: all but the layers before."""
    before = {id(module) for layer in layers[:-1] for module in layer.modules()}
    return [module for module in model.modules() if id(module) not in before]


def _is_watched(model: nn.Module, layers: nn.ModuleList, outside: list[nn.Module]) -> bool:
    """Whether a hook of somebody else, or code that was compiled with the model, is around the last layer."""
    watching = [hook for module in outside for hook in hooks_of(module)]
    for module in outside:
        if any(part is layers for part in module.modules()):  # what goes into it is whole
            watching = [hook for hook in watching if hook not in module._forward_pre_hooks.values()]
    foreign = any(not (getattr(hook, "__module__", None) or "").startswith(_HARMLESS) for hook in watching)
    return foreign or any(m._compiled_call_impl is not None or "_orig_mod" in m._modules for m in model.modules())


def _trace(model: nn.Module, head: nn.Module, last: nn.Module, token: Tensor) -> list[nn.Module]:
    """The tail, by a forward of a few tokens whose states are followed from the last layer on."""
    walk = _Walk()
    quantized = [module for module in model.modules() if type(module) is Int8Linear]
    inside = [module for module in last.modules() if module is not last and _has_linear(module)]
    replacements = dict.fromkeys(quantized, _by_rows) | {module: partial(walk.call, module) for module in inside}
    replacements |= {last: walk.enter, head: walk.stop}
    with torch.inference_mode(False), torch.no_grad(), no_deferral(), no_side_effects(model), ExitStack() as stack:
        for module, replacement in replacements.items():
            stack.enter_context(replaced_forward(module, replacement))
        try:
            model(input_ids=token.expand(1, ROWS))
        except _Stopped:
            return walk.behind()
        except Exception as error:
            _log.debug("%s: its last layer runs on all positions: %s", type(model).__name__, error)
    return []


@dataclass(slots=True)
class _Walk:
    """What was met on the way from the last layer to the head.

    mixed: operators so far in which positions meet.
    calls: of modules: the module, `mixed` when it began, and whether it takes and gives states of all positions only.
    """

    mixed: int = 0
    calls: list[tuple[nn.Module, int, bool]] = field(default_factory=list)

    def enter(self, original: Callable[..., object], states: Tensor, *args: object, **kwargs: object) -> object:
        return original(TracedTensor(states, Trace(self._count)), *args, **kwargs)

    def call(self, module: nn.Module, original: Callable[..., object], *args: object, **kwargs: object) -> object:
        before = self.mixed
        out = (_by_rows if type(module) is Int8Linear else _as_it_is)(original, *args, **kwargs)
        plain = all(map(_is_states, (out, *args))) and not any(map(_is_traced, kwargs.values()))
        self.calls.append((module, before, plain))
        return out

    def stop(self, original: object, *args: object, **kwargs: object) -> object:
        raise _Stopped

    def behind(self) -> list[nn.Module]:
        """The largest modules after whose beginning no positions have met, and which ran once."""
        found = [module for module, before, plain in self.calls if plain and before == self.mixed]
        found = [module for module in found if sum(module is other for other, *_ in self.calls) == 1]
        return [module for module in found if not any(_lies_in(module, other) for other in found)]

    def _count(self, function: object, args: tuple, kwargs: dict, result: object) -> bool:
        self.mixed += not (is_rowwise(function, args, kwargs, result) or is_copy(function, args, kwargs, result))
        return True


class _Stopped(BaseException):
    """The head was reached."""


def _as_it_is(original: Callable[..., object], *args: object, **kwargs: object) -> object:
    return original(*args, **kwargs)


def _by_rows(original: Callable[..., object], states: object) -> object:
    """The forward of a layer with weights of 8 bits, whose operator takes no traced tensor: it treats each row by
    itself."""
    return TracedTensor(original(states.values), states.trace) if _is_traced(states) else original(states)


def _is_traced(value: object) -> bool:
    return isinstance(value, TracedTensor)


def _is_states(value: object) -> bool:
    return _is_traced(value) and value.dim() == 3 and value.shape[:2] == (1, ROWS)


def _has_linear(module: nn.Module) -> bool:
    """Whether there is a product with a weight in it."""
    return any(isinstance(part, (nn.Linear, Int8Linear)) for part in module.modules())


def _lies_in(module: nn.Module, outer: nn.Module) -> bool:
    return module is not outer and any(part is module for part in outer.modules())
