"""One denoising step as a CUDA graph: captured once per shape bucket, then only replayed.

A replay runs the same kernels on the same memory. So everything that changes lives in the state's tensors (canvas,
seeds, step, block start, counts), a call copies its own state into the captured one, and the step advances its own
counter: every replay draws fresh noise. A bucket's key holds the addresses of all weights, so weights that were
replaced are never served stale (weights changed in place are simply read).
"""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import nn

from dllm.fast.denoise import Clock, Policy, State, denoise_step
from dllm.fast.head import HeadTap

MAX_GRAPHS = 8
# A capture costs about as much as this many eager steps.
WORTH_CAPTURING = 4

_log = logging.getLogger("dllm.fast")
_WARM_UPS = 2


class CaptureError(RuntimeError):
    """A step could not be captured as a CUDA graph."""


@dataclass(slots=True)
class CapturedStep:
    """A captured step: `state` is the memory it works on, `replay` runs it once."""

    state: State
    replay: Callable[[], None]
    model: weakref.ref
    busy: bool = False  # its memory serves one call at a time

    def load(self, state: State) -> None:
        """Make the captured state equal to `state`, which has the same shapes."""
        for name, tensor in state.tensors().items():
            getattr(self.state, name).copy_(tensor)


class GraphCache:
    """The most recently used captured steps, at most `size` of them.

    Example:
        >>> len(GraphCache(size=2))
        0
    """

    def __init__(self, size: int = MAX_GRAPHS):
        self.size = size
        self._steps: OrderedDict[Hashable, CapturedStep] = OrderedDict()
        self._pool: object | None = None

    def __len__(self) -> int:
        return len(self._steps)

    def clear(self) -> None:
        """Forget all captured steps and free their memory."""
        self._steps.clear()
        self._pool = None

    def step_for(self, tap: HeadTap, state: State, policy: Policy) -> CapturedStep:
        """The captured step for these shapes and this model, capturing it on first use, loaded with `state`.

        Raises:
            CaptureError: the model's forward cannot be captured; the message holds the reason.
        """
        self._drop_dead()
        key = bucket(tap, state, policy)
        step = self._steps.get(key)
        if step is not None and step.busy:
            raise CaptureError("another call is using the captured step of this shape")
        if step is None:
            while len(self._steps) >= self.size:
                self._steps.popitem(last=False)
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            step = capture(tap, state, policy, self._pool)
            self._steps[key] = step
        else:
            step.load(state)
        self._steps.move_to_end(key)
        step.busy = True
        return step

    def _drop_dead(self) -> None:
        for key in [key for key, step in self._steps.items() if step.model() is None]:
            del self._steps[key]


CACHE = GraphCache()


def bucket(tap: HeadTap, state: State, policy: Policy) -> Hashable:
    """What a captured step depends on besides the contents of its state."""
    model: nn.Module = tap.model
    shapes = tuple((name, tuple(t.shape), t.dtype) for name, t in state.tensors().items())
    weights = tuple(t.data_ptr() for t in (*model.parameters(), *model.buffers()))
    settings = (
        getattr(getattr(model, "config", None), "_attn_implementation", None),
        torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
        torch.get_float32_matmul_precision(),
        torch.is_inference_mode_enabled(),  # its tensors may not be written outside of it
        tuple(module.training for module in model.modules()),
        str(state.tokens.device),
    )
    return id(model), id(tap.head), tap.kind, policy, shapes, hash(weights), settings


def capture(tap: HeadTap, state: State, policy: Policy, pool: object) -> CapturedStep:
    """Capture one step on memory of its own that begins as a copy of `state`; `state` itself is not touched.

    Raises:
        CaptureError: with the reason.
    """
    own = State(**dict.fromkeys(state.__slots__) | {n: t.clone() for n, t in state.tensors().items()})
    device, silent = state.tokens.device, Clock(state.tokens.device, on=False)
    try:
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    own.step.zero_()  # warm-ups stay inside the tables of counts
                    denoise_step(tap, own, policy, silent)
            torch.cuda.current_stream().wait_stream(stream)
            own.step.zero_()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                denoise_step(tap, own, policy, silent)
    except Exception as error:
        raise CaptureError(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}") from error
    step = CapturedStep(own, graph.replay, weakref.ref(tap.model))
    step.load(state)
    return step


def wanted(cuda_graph: bool | None, device: torch.device, forwards: int) -> tuple[bool, str]:
    """Whether to capture, and why not.

    Raises:
        TypeError: `cuda_graph` is neither None nor a bool.
        ValueError: True, and the model is not on a CUDA device.
    """
    if cuda_graph is not None and not isinstance(cuda_graph, bool):
        raise TypeError(f"cuda_graph must be None, True or False, got {type(cuda_graph).__name__}")
    if device.type != "cuda":
        if cuda_graph:
            raise ValueError(f"cuda_graph=True needs a model on a CUDA device, got {device}")
        return False, f"no CUDA graphs on {device.type}"
    if cuda_graph is None and forwards < WORTH_CAPTURING:
        return False, f"a capture does not pay for {forwards} steps"
    return cuda_graph is not False, "switched off"
