"""One denoising step as a CUDA graph: captured once per shape bucket, then only replayed.

A replay runs the same kernels on the same memory. So everything that changes lives in the state's tensors (canvas,
seeds, step, block start, counts), a call copies its own state into the captured one, and the step advances its own
counter: every replay draws fresh noise. A bucket's key holds the addresses of all weights, so weights that were
replaced are never served stale (weights changed in place are simply read).
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from dllm.fast.cache import KeyValueCache
from dllm.fast.denoise import Clock, Policy, State, denoise_step
from dllm.fast.head import HeadTap
from dllm.fast.passes import Pass

MAX_GRAPHS = 8
# A capture costs about as much as this many eager steps.
WORTH_CAPTURING = 4

_log = logging.getLogger("dllm.fast")
WARM_UPS = 2


class CaptureError(RuntimeError):
    """A step could not be captured as a CUDA graph."""

    @classmethod
    def because(cls, error: Exception) -> CaptureError:
        """Of another error, by its first line."""
        return cls(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")


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

    def step_for(self, tap: HeadTap, state: State, policy: Policy, *beside: object) -> CapturedStep:
        """The captured step for these shapes and this model, capturing it on first use, loaded with `state`.

        `beside` are the cache and the passes of :func:`denoise_step`, for steps that have them.

        Raises:
            CaptureError: the model's forward cannot be captured; the message holds the reason.
        """
        self._drop_dead()
        key = bucket(tap, state, policy, *beside)
        step = self._steps.get(key)
        if step is not None and step.busy:
            raise CaptureError("another call is using the captured step of this shape")
        if step is None:
            while len(self._steps) >= self.size:
                self._steps.popitem(last=False)
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            step = capture(tap, state, policy, self._pool, *beside)
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


def bucket(
    tap: HeadTap,
    state: State,
    policy: Policy,
    cache: KeyValueCache | None = None,
    passes: list[Pass] | None = None,
) -> Hashable:
    """What a captured step depends on besides the contents of its state: of a cache, on its memory."""
    shapes = tuple((name, tuple(t.shape), t.dtype) for name, t in state.tensors().items())
    memory = () if cache is None else (cache.kind, *(t.data_ptr() for t in (*cache.keys, *cache.values)))
    windows = None if passes is None else tuple(passes)
    return id(tap.head), tap.kind, policy, shapes, memory, windows, circumstances(tap.model, state.tokens.device)


def circumstances(model: nn.Module, device: torch.device) -> Hashable:
    """What a captured forward of a model depends on besides its inputs."""
    weights = tuple(t.data_ptr() for t in (*model.parameters(), *model.buffers()))
    settings = (
        getattr(getattr(model, "config", None), "_attn_implementation", None),
        torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type),
        torch.get_float32_matmul_precision(),
        torch.is_inference_mode_enabled(),  # its tensors may not be written outside of it
        tuple(module.training for module in model.modules()),
        str(device),
    )
    return id(model), hash(weights), settings


def capture(
    tap: HeadTap,
    state: State,
    policy: Policy,
    pool: object,
    cache: KeyValueCache | None = None,
    passes: list[Pass] | None = None,
) -> CapturedStep:
    """Capture one step on memory of its own that begins as a copy of `state`; `state` itself is not touched.

    The warm-ups write to `cache`, in the columns of blocks that are not over: what is there is written again before it
    is read.

    Raises:
        CaptureError: with the reason.
    """
    own = State(**dict.fromkeys(state.__slots__) | {n: t.clone() for n, t in state.tensors().items()})
    device, silent = state.tokens.device, Clock(state.tokens.device, on=False)

    def run() -> None:
        denoise_step(tap, own, policy, silent, cache, passes)

    for _ in range(WARM_UPS):
        warm_up(run, device)
    step = CapturedStep(own, record(run, device, pool), weakref.ref(tap.model))
    step.load(state)
    return step


def warm_up(run: Callable[[], None], device: torch.device) -> None:
    """Run what is to be captured where it is to be captured: what is set up once, is set up then.

    Raises:
        CaptureError: it raised an error, or the device has no graphs.
    """
    if device.type != "cuda":
        raise CaptureError(f"no CUDA graphs on {device.type}")
    with torch.cuda.device(device):
        side, current = _side_stream(device), torch.cuda.current_stream()
        side.wait_stream(current)
        try:
            with torch.cuda.stream(side):
                run()
        except Exception as error:
            raise CaptureError.because(error) from error
        finally:
            current.wait_stream(side)


def record(run: Callable[[], None], device: torch.device, pool: object) -> Callable[[], None]:
    """Capture what `run` launches, without running any of it, and return what replays it.

    What waits for the device is refused before CUDA sees it, for that would break off the capture, and torch does not
    recover from a broken one: it leaves its stream current and its random generator in the middle of a capture. From
    whatever breaks a capture all the same, both are brought back here.

    Raises:
        CaptureError: with the reason.
    """
    with torch.cuda.device(device):
        graph, side, failure = torch.cuda.CUDAGraph(), _side_stream(device), None
        random = torch.cuda.get_rng_state(device)
        try:
            with torch.cuda.stream(side):  # left again even where the context below is not
                # thread_local: a data loader's thread that pins memory meanwhile does no harm
                with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
                    try:
                        with _waiting_refused():
                            run()
                    except Exception as error:  # known better than what the end of a broken capture says
                        failure = error
                        raise
        except Exception as error:
            _renew_generator(device, random)
            raise CaptureError.because(failure or error) from (failure or error)
    return graph.replay


@contextmanager
def _waiting_refused() -> Iterator[None]:
    """Within this context torch raises an error where it would wait for the device."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _renew_generator(device: torch.device, state: torch.Tensor) -> None:
    """Give torch's generator of a device a state that no capture has touched. Graphs captured before are cut off from
    it: those that draw from it have to go."""
    fresh = torch.Generator(device)
    fresh.set_state(state)
    torch.cuda.default_generators[torch.cuda.current_device()].graphsafe_set_state(fresh)


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Captures that share a pool of memory share a stream; one alone has one set of library workspaces."""
    return torch.cuda.Stream(device)


def wanted(cuda_graph: bool | None, device: torch.device, forwards: int) -> tuple[bool, str]:
    """Whether to capture, and why not.

    Raises:
        TypeError: `cuda_graph` is neither None nor a bool.
        ValueError: True, and the model is not on a CUDA device.
    """
    check_choice(cuda_graph)
    if device.type != "cuda":
        if cuda_graph:
            raise ValueError(f"cuda_graph=True needs a model on a CUDA device, got {device}")
        return False, f"no CUDA graphs on {device.type}"
    if cuda_graph is None and forwards < WORTH_CAPTURING:
        return False, f"a capture does not pay for {forwards} steps"
    return cuda_graph is not False, "switched off"


def check_choice(cuda_graph: object) -> None:
    """None, True or False.

    Raises:
        TypeError: anything else.
    """
    if cuda_graph is not None and not isinstance(cuda_graph, bool):
        raise TypeError(f"cuda_graph must be None, True or False, got {type(cuda_graph).__name__}")
