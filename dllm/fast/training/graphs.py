"""Forward, loss and backward of a training step as one CUDA graph.

A replay runs the same kernels on the same memory, so a captured step owns the memory that it reads and writes:

- a copy of the batch, which each call fills. It has room for a rounded number of masked rows; the rest have weight 0;
- gradients, one buffer for each weight, shared by all captured steps. A call copies `weight.grad` into the buffer,
  makes the buffer the gradient, and the backward adds to it. So gradients of several forwards add up, replayed or
  eager, and code that clips gradients or sets them to None after the optimizer's step works as with any PyTorch model.

Dropout: a captured kernel takes its seed and offset from torch's generator of the device at each replay, which then
advances as far as eager kernels would have advanced it. Only warm-ups draw extra numbers, so the generator is reset.
"""

from __future__ import annotations

import gc
import logging
import random
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dllm.fast import capture
from dllm.fast.capture import CaptureError
from dllm.fast.head.use import hooks_of, structure_of
from dllm.fast.training.loss import MaskedLoss, check_arguments, masked_loss

# Only the static inputs belong to one graph alone: memory for activations is shared by all, and many shapes come up.
MAX_GRAPHS = 32
# A capture costs about as much as this many eager steps.
WORTH_CAPTURING = 4
# Rows come in blocks; at most one position in `_SHARE` of a batch, or one block, is padding.
_BLOCK, _SHARE = 64, 8

# Packages whose module hooks do nothing but compute tensors, so that a replay repeats what they do.
_HARMLESS = ("accelerate", "peft", "torch", "transformers")
_GRADIENT_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_PLAIN = (bool, int, float, str, type(None))

_log = logging.getLogger("dllm.fast")


class TrainingGraphs:
    """The captured training steps of a model: at most `size`, with one pool of memory.

    A capture costs about as much as `WORTH_CAPTURING` eager steps, so a shape is captured once it has occurred that
    often: if it never occurs again, the total is at most twice the least possible. When all places are taken, the least
    recently used step is replaced, provided it has not been used since the new shape first occurred. With
    `cuda_graph=True` each shape is captured at once, and the least recently used step is replaced.

    A captured step belongs to one state of the model: addresses and dtypes of weights, which weights are trained,
    hooks, forwards, and training or evaluation mode. In another state the same shape is captured again. Other values
    that a module keeps in Python (a dropout rate) are captured as they are.

    Args:
        cuda_graph: None runs eagerly from then on when a step cannot be captured, with a warning that names the reason;
            with True that is an error.
        size: how many captured steps are kept.

    Raises:
        TypeError, ValueError: `cuda_graph` is neither None nor True, or `size` is less than 1.

    Example:
        >>> len(TrainingGraphs(size=4))
        0
    """

    def __init__(self, cuda_graph: bool | None = None, *, size: int = MAX_GRAPHS):
        capture.check_cuda_graph(cuda_graph)
        if cuda_graph is False:
            raise ValueError("cuda_graph must be None or True where steps are to be captured, got False")
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.insist, self.size = cuda_graph is True, size
        self.why_eager: str | None = None
        self.clear()

    def __len__(self) -> int:
        return len(self._steps)

    def clear(self) -> None:
        """Forget all captured steps and free their memory."""
        self._steps: OrderedDict[Hashable, _CapturedStep] = OrderedDict()
        self._candidates: OrderedDict[Hashable, _Occurrences] = OrderedDict()
        self._buffers: dict[int, Tensor] = {}  # of gradients, by the index of the weight
        self._model: Callable[[], nn.Module | None] = lambda: None
        self._pool: object | None = None
        self._now = 0

    def step(
        self, model: nn.Module, inputs: Mapping[str, object], *, rows: Tensor, targets: Tensor, row_weight: Tensor
    ) -> MaskedLoss:
        """:func:`~dllm.fast.training.loss.masked_loss` and its backward, whose gradients are added to `weight.grad`.

        A weight's `grad` is the same memory in every step: whoever keeps it beyond a step keeps a copy.

        Args:
            model, inputs, rows, targets, row_weight: as in :func:`~dllm.fast.training.loss.masked_loss`.

        Returns:
            :class:`~dllm.fast.training.loss.MaskedLoss`, the loss not differentiable any more.

        Raises:
            ValueError: what `masked_loss` refuses.
            RuntimeError: `cuda_graph=True`, and the step cannot be captured.
        """
        check_arguments(inputs, rows, targets, row_weight)
        batch = Batch(dict(inputs), rows, targets, row_weight)
        captured = self._captured(model, batch) if self.why_eager is None else None
        return forward_and_backward(model, batch) if captured is None else captured.run(model, batch)

    def _captured(self, model: nn.Module, batch: Batch) -> _CapturedStep | None:
        """The captured step of this shape; None where this batch is to be done eagerly."""
        if self._model() is not model:
            self.clear()
            self._model = weakref.ref(model)
        self._now += 1
        try:
            key = _bucket(model, batch)
            if key not in self._steps:
                if not self._worth_capturing(key):
                    return None
                self._steps[key] = self._capture(model, batch)
        except CaptureError as error:
            self._give_up(error)
            return None
        step = self._steps[key]
        self._steps.move_to_end(key)
        step.used = self._now
        return step

    def _worth_capturing(self, key: Hashable) -> bool:
        seen = self._candidates.pop(key, None) or _Occurrences(since=self._now)
        full = len(self._steps) >= self.size
        if not self.insist:
            if seen.times < WORTH_CAPTURING:
                self._note_candidate(key, _Occurrences(seen.since, seen.times + 1))
                return False
            if full and next(iter(self._steps.values())).used >= seen.since:
                self._note_candidate(key, _Occurrences(since=self._now))
                return False
        if full:
            self._steps.popitem(last=False)
        return True

    def _note_candidate(self, key: Hashable, seen: _Occurrences) -> None:
        self._candidates[key] = seen
        if len(self._candidates) > 8 * self.size:  # forget shapes that do not come back
            self._candidates.popitem(last=False)

    def _capture(self, model: nn.Module, batch: Batch) -> _CapturedStep:
        if watcher := _hook_that_forbids_capture(model):
            raise CaptureError(f"{watcher}, which a replay would not call")
        own, parameters, results = batch.copy(), list(model.parameters()), []

        def run() -> None:
            torch.clear_autocast_cache()  # of casts made outside: the graph is to cast the weights of its time
            results[:] = [forward_and_backward(model, own)]
            torch.clear_autocast_cache()  # and no one else is to read the graph's

        gc.collect()  # an autograd graph in a dead cycle ties the weights to the stream on which it was made
        with _model_restored(model, batch.device):
            with _no_host_randomness():
                for _ in range(capture.WARM_UPS):
                    _set_gradients(parameters, {})
                    capture.warm_up(run, batch.device)
            gradients = {i: self._buffer(i, p) for i, p in enumerate(parameters) if p.grad is not None}
            _set_gradients(parameters, gradients)
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            replay = capture.record(run, batch.device, self._pool)
        return _CapturedStep(own, *results, gradients, replay)

    def _buffer(self, index: int, parameter: nn.Parameter) -> Tensor:
        """Where captured steps add up the gradient of a weight that has one."""
        if parameter.grad.layout != torch.strided:
            raise CaptureError(f"the gradient of weight {index} is {parameter.grad.layout}, not dense")
        known = self._buffers.get(index)
        if known is None or (known.shape, known.dtype, known.device) != (
            parameter.shape,
            parameter.dtype,
            parameter.device,
        ):
            self._buffers[index] = torch.zeros_like(parameter, requires_grad=False)
        return self._buffers[index]

    def _give_up(self, error: CaptureError) -> None:
        """A failed capture may have cut the captured steps off from the random generator: all of them go."""
        self.clear()
        if self.insist:
            raise RuntimeError(f"cuda_graph=True, but the training step cannot be captured: {error}") from error
        self.why_eager = f"the step cannot be captured: {error}"
        _log.warning("eager training steps, because %s", self.why_eager)


@dataclass(slots=True)
class Batch:
    """What one training step is given.

    inputs: of the model, whose tensors lie on one device.
    rows, targets: int64 [N]; row_weight: float32 [N].
    """

    inputs: dict[str, object]
    rows: Tensor
    targets: Tensor
    row_weight: Tensor

    @property
    def device(self) -> torch.device:
        return self.rows.device

    @property
    def capacity(self) -> int:
        """N rounded up to what a captured step has room for."""
        return row_capacity(len(self.rows), self.inputs["input_ids"].numel())

    def copy(self) -> Batch:
        """The same batch on memory of its own, with rows of weight 0 up to the capacity."""
        inputs = {name: v.clone() if isinstance(v, Tensor) else v for name, v in self.inputs.items()}
        own = Batch(inputs, *(t.new_zeros(self.capacity) for t in (self.rows, self.targets, self.row_weight)))
        own.load(self)
        return own

    def load(self, batch: Batch) -> None:
        """Become equal to a batch of the same shapes and at most as many rows."""
        for name, value in self.inputs.items():
            if isinstance(value, Tensor):
                value.copy_(batch.inputs[name])
        for own, given in (
            (self.rows, batch.rows),
            (self.targets, batch.targets),
            (self.row_weight, batch.row_weight),
        ):
            own[: len(given)].copy_(given)
            own[len(given) :].zero_()


def row_capacity(count: int, positions: int) -> int:
    """`count` rows rounded up to an eighth of the batch's positions, in blocks of 64: at most eight graphs a shape.

    Example:
        >>> row_capacity(500, positions=4096), row_capacity(513, positions=4096), row_capacity(0, positions=10)
        (512, 1024, 64)
    """
    grain = _BLOCK * -(-max(positions, 1) // (_BLOCK * _SHARE))
    return grain * max(1, -(-count // grain))


def forward_and_backward(model: nn.Module, batch: Batch) -> MaskedLoss:
    """The loss and each row's nll, after their gradients have been added to those of the weights."""
    loss, nll = masked_loss(model, batch.inputs, rows=batch.rows, targets=batch.targets, row_weight=batch.row_weight)
    loss.backward()
    return MaskedLoss(loss.detach(), nll)


@dataclass(slots=True)
class _CapturedStep:
    """`replay` reads `batch`, writes `result` and adds to `gradients`, which are numbered like the model's weights."""

    batch: Batch
    result: MaskedLoss
    gradients: dict[int, Tensor]
    replay: Callable[[], None]
    used: int = 0

    def run(self, model: nn.Module, batch: Batch) -> MaskedLoss:
        self.batch.load(batch)
        _attach_buffers(list(model.parameters()), self.gradients)
        self.replay()
        return MaskedLoss(self.result.loss.clone(), self.result.nll[: len(batch.rows)].clone())


@dataclass(slots=True)
class _Occurrences:
    """How often a shape that is not captured has occurred, and when first."""

    since: int
    times: int = 0


def _bucket(model: nn.Module, batch: Batch) -> Hashable:
    """What a captured step depends on besides the contents of its batch."""
    for name, value in batch.inputs.items():
        if not isinstance(value, (Tensor, *_PLAIN)):
            raise CaptureError(f"the model's input {name} is a {type(value).__name__}, no tensor")
    inputs = tuple(
        (name, (tuple(v.shape), v.dtype, str(v.device)) if isinstance(v, Tensor) else (type(v), v))
        for name, v in batch.inputs.items()
    )
    around = tuple(structure_of(module) for module in model.modules())
    trained = tuple(p.requires_grad for p in model.parameters())
    return inputs, batch.capacity, hash((around, trained)), capture.capture_conditions(model, batch.device)


def _hook_that_forbids_capture(model: nn.Module) -> str | None:
    """Name a hook that would run in an eager step but not in a replay; None if there is none."""
    for name, parameter in model.named_parameters():
        if any(getattr(parameter, kind, None) for kind in _GRADIENT_HOOKS):
            return f"the gradient of {name} has a hook"
    for name, module in model.named_modules():
        for hook in hooks_of(module):
            if (getattr(hook, "__module__", None) or "").partition(".")[0] not in _HARMLESS:
                return f"{name or 'the model'} has a hook ({getattr(hook, '__qualname__', hook)})"
    return None


def _set_gradients(parameters: list[nn.Parameter], gradients: Mapping[int, Tensor]) -> None:
    for index, parameter in enumerate(parameters):
        parameter.grad = gradients.get(index)


@torch.no_grad()
def _attach_buffers(parameters: list[nn.Parameter], gradients: Mapping[int, Tensor]) -> None:
    """Make the buffers the weights' gradients, with the gradients' present values."""
    fresh = [buffer for index, buffer in gradients.items() if parameters[index].grad is None]
    if fresh:
        torch._foreach_zero_(fresh)
    for index, buffer in gradients.items():
        parameter = parameters[index]
        if parameter.grad is not buffer:
            if parameter.grad is not None:  # of an eager step, to which this one adds
                buffer.copy_(parameter.grad)
            parameter.grad = buffer


@contextmanager
def _model_restored(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore gradients, buffers (running means) and random generators at the end, also after an error."""
    parameters, python = list(model.parameters()), random.getstate()
    gradients = {index: p.grad for index, p in enumerate(parameters)}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda"):
        try:
            yield
        finally:
            random.setstate(python)
            _set_gradients(parameters, gradients)
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


@contextmanager
def _no_host_randomness() -> Iterator[None]:
    """Check that nothing is drawn on the host (which layers to drop, say): a capture would draw it once and for all.

    Raises:
        CaptureError: numbers were drawn there within this context.
    """
    python, own = random.getstate(), torch.get_rng_state()
    yield
    if random.getstate() != python or not torch.equal(torch.get_rng_state(), own):
        raise CaptureError("the step draws random numbers on the host, which replays would not draw afresh")
