"""Running a model's body from a recording of its operations: eager PyTorch's own kernels, without the Python between
them.

Of an eager forward of a small model a fifth is Python: modules, wrappers, arguments. A recording holds the same
operations in the same order, so hidden states are the same bits. That is checked, not believed: where a shape comes for
the first time the body runs eagerly beside the recording, which is used for that shape only if all bits are equal.

A recording follows no branch that depends on values. So only bodies are recorded of which that is known.

Weights are inputs of a recording, not parts of it: TorchScript keeps every recording until the process ends.
"""

from __future__ import annotations

import logging
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dllm.fast.compiled.body import find_body
from dllm.fast.head.interception import instance_forward, replaced_forward
from dllm.fast.head.last_layer import Reading, by_graphs, reading_of, run_eagerly
from dllm.fast.head.use import hooks_of, module_settings, run_settings, setting

# Classes whose forward takes the same operations whatever the tokens are, and with which this was measured.
RECORDABLE = ("ModernBertModel",)
# Arguments that say how long the longest of some packed rows is; attention on a CPU does not read them.
_NOT_READ = ("max_length_q", "max_length_k")
MOST_SHAPES = 4096  # that are kept; beyond that new ones run eagerly
SETTLED = 3  # runs after which TorchScript changes a recording no more

_log = logging.getLogger("dllm.fast")
_known: weakref.WeakKeyDictionary[nn.Module, RecordedBody] = weakref.WeakKeyDictionary()


class RecordedBody:
    """The recording of one body. Weights may change in place.

    why_not: why the body runs eagerly; None: it runs recorded.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> model, tokens = load_shipped()[0], torch.tensor([[5, 6, 7]])
        >>> body = RecordedBody.of(model)
        >>> with torch.no_grad(), body.in_place():
        ...     first, second = model(tokens).logits, model(tokens).logits
        >>> torch.equal(first, second), body.shapes
        (True, 1)
    """

    def __init__(self, body: nn.Module | None):
        self.why_not, self.state = _why_not(body), None if body is None else _state_of(body)
        self._body = None if body is None else weakref.ref(body)
        self._parts = [] if body is None else [module for module in body.modules() if module is not body]
        self._weights = () if body is None else _weights_of(body)
        self._calls: dict[tuple, Callable[..., Tensor]] = {}  # by the kind of call
        self._same: dict[tuple, bool] = {}  # by shape: whether the recording has the eager bits
        self._output: type | None = None

    @classmethod
    def of(cls, model: nn.Module) -> RecordedBody:
        """That of a model's body; a new one where weights were replaced or settings have changed."""
        body = find_body(model)
        if body is None:
            return cls(None)
        found, state = _known.get(body), _state_of(body)
        if found is None or found.state != state:
            found = _known[body] = cls(body)
        return found

    @property
    def shapes(self) -> int:
        """Of how many shapes forwards run recorded."""
        return sum(self._same.values())

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within this context the calling thread's forwards of the model run the recording, where there is one."""
        if self.why_not is not None:
            yield
            return
        with replaced_forward(self._body(), self._run), by_graphs():
            yield

    def _run(self, original: Callable[..., object], *args: object, **kwargs: object) -> object:
        call = None if args or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") else _Call.of(kwargs)
        if call is None or any(map(_is_changed, self._parts)):
            return run_eagerly(original, args, kwargs)
        same = self._same.get(call.shape)
        if same is None:
            return self._checked(original, call, kwargs)
        if not same:
            return run_eagerly(original, args, kwargs)
        return self._output(last_hidden_state=self._calls[call.kind](*call.inputs, *self._weights))

    def _checked(self, original: Callable[..., object], call: _Call, kwargs: dict) -> object:
        """The eager output of a new shape; whether the recording has the same bits is noted."""
        output = run_eagerly(original, (), kwargs)
        if self.why_not is not None or len(self._same) >= MOST_SHAPES:
            return output
        try:
            again = self._recording(original, call)(*call.inputs, *self._weights)
        except Exception as error:
            self.why_not = f"it cannot be recorded: {type(error).__name__}"
            _log.warning("the body of %s runs eagerly, because %s", type(self._body()).__name__, self.why_not)
            self._same = dict.fromkeys(self._same, False)
            return output
        self._output = type(output)  # first: other threads ask for the shape
        self._same[call.shape] = list(output) == ["last_hidden_state"] and torch.equal(again, output[0])
        return output

    def _recording(self, original: Callable[..., object], call: _Call) -> Callable[..., Tensor]:
        if call.kind not in self._calls:

            def forward(*inputs: Tensor) -> Tensor:  # and weights, which torch knows where the modules use them
                with call.on_modules(inputs[: len(call.inputs)]):
                    return original(**dict(zip(call.names, inputs, strict=False)))[0]

            inputs = *call.inputs, *self._weights
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of sizes that Python compares: the check of each shape sees to those
                recording = torch.jit.trace(forward, inputs, check_trace=False)
            vars(recording).clear()  # what torch notes of the function holds the body, which must be free to go
            for _ in range(SETTLED):
                recording(*inputs)
            self._calls[call.kind] = recording
        return self._calls[call.kind]


class _Call(NamedTuple):
    """A forward that can be recorded.

    names, inputs: its tensors; after those that have names the positions that are read, if not all are.
    reading: what is read; None: all is.
    """

    names: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    reading: Reading | None

    @classmethod
    def of(cls, kwargs: dict[str, object]) -> _Call | None:
        """That of a body's arguments; None where it is of another kind."""
        given = {name: value for name, value in kwargs.items() if value is not None and name not in _NOT_READ}
        if "input_ids" not in given or any(type(value) is not Tensor for value in given.values()):
            return None
        reading = reading_of(given["input_ids"].shape[:2])
        reading = reading if reading is not None and reading.pays else None
        inputs = (*given.values(),) if reading is None else (*given.values(), reading.read)
        return cls(tuple(given), inputs, reading)

    @property
    def kind(self) -> tuple:
        """What one recording serves."""
        return self.names, self.reading is not None

    @property
    def shape(self) -> tuple:
        """What is checked once. Packed rows have any length together: it counts to the next multiple of 64."""
        if "cu_seq_lens_q" in self.names:
            return self.kind, -(-self.inputs[self.names.index("input_ids")].shape[1] // 64)
        named = zip(self.names, self.inputs, strict=False)
        # transformers leaves a mask out that hides nothing
        return self.kind, tuple((x.shape, x.dtype, name == "attention_mask" and bool(x.all())) for name, x in named)

    def on_modules(self, inputs: tuple[Tensor, ...]) -> AbstractContextManager:
        """The context in which a forward of other inputs runs its modules on what is read."""
        return nullcontext() if self.reading is None else self.reading._replace(read=inputs[-1]).on_modules()


def _is_changed(module: nn.Module) -> bool:
    """Whether a module does something else than its class says, maybe for this forward alone."""
    return "forward" in module.__dict__ or bool(module._forward_hooks or module._forward_pre_hooks)


def _state_of(body: nn.Module) -> tuple:
    """What a recording was made with."""
    weights = tuple((x.data_ptr(), x.dtype, x.shape, x.stride()) for x in _weights_of(body))
    config = getattr(body, "config", None)
    settings = setting(vars(config)) if hasattr(config, "__dict__") else None
    return _why_not(body), run_settings(body), tuple(map(module_settings, body.modules())), settings, weights


def _weights_of(body: nn.Module) -> tuple[Tensor, ...]:
    return *body.parameters(), *body.buffers()


def _why_not(body: nn.Module | None) -> str | None:
    """Why a body is not recorded; None: it is."""
    if body is None:
        return "the model has no body of its own"
    name = type(body).__name__
    if name not in RECORDABLE or not type(body).__module__.startswith("transformers."):
        return f"{name} is none of the bodies that are recorded: {', '.join(RECORDABLE)}"
    own = [module for module in body.modules() if hooks_of(module) or instance_forward(module) is not None]
    if own:
        return f"{type(own[0]).__name__} has hooks or a forward of its own"
    if any(parameter.device.type != "cpu" for parameter in body.parameters()):
        return "it is not on a CPU"
    if any(parameter.requires_grad for parameter in body.parameters()):
        return "its weights may learn"
    if any(module.training for module in body.modules()):  # dropout draws, and a recording would draw once more
        return "it is in training mode"
    return None
