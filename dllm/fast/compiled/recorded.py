"""Running a model's body from a recording of its operations: eager PyTorch's own kernels, without the Python between
them.

Of an eager forward of a small model a fifth is Python: modules, wrappers, arguments. A recording holds the same
operations in the same order, so hidden states are the same bits. That is checked, not believed: where a shape comes for
the first time the body runs eagerly beside the recording, which is used for that shape only if all bits are equal.

A recording follows no branch that depends on values. So only bodies are recorded of which that is known.
"""

from __future__ import annotations

import logging
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dllm.fast.compiled.body import find_body
from dllm.fast.head.interception import instance_forward, replaced_forward
from dllm.fast.head.use import hooks_of
from dllm.fast.model import run_settings

# Classes whose forward takes the same operations whatever the tokens are, and with which this was measured.
RECORDABLE = ("ModernBertModel",)
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
        self._calls: dict[bool, Callable[..., Tensor]] = {}  # by whether there is a mask
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
        with replaced_forward(self._body(), self._run):
            yield

    def _run(self, original: Callable[..., object], *args: object, **kwargs: object) -> object:
        given = {name: value for name, value in kwargs.items() if value is not None}
        tokens, mask = given.pop("input_ids", None), given.pop("attention_mask", None)
        plain = not args and not given and type(tokens) is Tensor and (mask is None or type(mask) is Tensor)
        if (
            not plain
            or torch.is_grad_enabled()
            or torch.is_autocast_enabled("cpu")
            or any(map(_is_changed, self._parts))
        ):
            return original(*args, **kwargs)
        inputs = (tokens,) if mask is None else (tokens, mask)
        # transformers leaves a mask out that hides nothing
        shape = tokens.shape, None if mask is None else (mask.shape, mask.dtype, bool(mask.all()))
        same = self._same.get(shape)
        if same is None:
            return self._checked(original, inputs, shape, kwargs)
        return self._output(last_hidden_state=self._calls[mask is None](*inputs)) if same else original(**kwargs)

    def _checked(
        self, original: Callable[..., object], inputs: tuple[Tensor, ...], shape: tuple, kwargs: dict
    ) -> object:
        """The eager output of a new shape; whether the recording has the same bits is noted."""
        output = original(**kwargs)
        if self.why_not is not None or len(self._same) >= MOST_SHAPES:
            return output
        try:
            again = self._recording(original, inputs)(*inputs)
        except Exception as error:
            self.why_not = f"it cannot be recorded: {type(error).__name__}"
            _log.warning("the body of %s runs eagerly, because %s", type(self._body()).__name__, self.why_not)
            self._same = dict.fromkeys(self._same, False)
            return output
        self._same[shape] = list(output) == ["last_hidden_state"] and torch.equal(again, output[0])
        self._output = type(output)
        return output

    def _recording(self, original: Callable[..., object], inputs: tuple[Tensor, ...]) -> Callable[..., Tensor]:
        unmasked = len(inputs) == 1
        if unmasked not in self._calls:

            def forward(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
                return original(input_ids=tokens, attention_mask=mask)[0]

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of sizes that Python compares: the check of each shape sees to those
                call = torch.jit.trace(forward, inputs, check_trace=False)
            for _ in range(SETTLED):
                call(*inputs)
            self._calls[unmasked] = call
        return self._calls[unmasked]


def _is_changed(module: nn.Module) -> bool:
    """Whether a module does something else than its class says, maybe for this forward alone."""
    return "forward" in module.__dict__ or bool(module._forward_hooks or module._forward_pre_hooks)


def _state_of(body: nn.Module) -> tuple:
    """What a recording was made with."""
    tensors = [*body.parameters(), *body.buffers()]
    return _why_not(body), run_settings(body), tuple((tensor.data_ptr(), tensor.dtype) for tensor in tensors)


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
    if any(parameter.requires_grad for parameter in body.parameters()):  # no constants of a recording
        return "its weights may learn"
    return None
