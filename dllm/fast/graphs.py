"""Denoising steps as CUDA graphs: captured once per shape bucket, then only replayed.

A replay runs the same kernels on the same memory. So everything that changes lives in the state's tensors (canvas,
seeds, step, block start, counts), a call copies its own state into the captured one, and the step advances its own
counter: every replay draws fresh noise. A bucket's key holds the addresses of all weights, so weights that were
replaced are never served stale (weights changed in place are simply read).

A bucket has one state, and a graph for each kind of step that comes up (which columns run: :mod:`dllm.fast.passes`),
of one such step or of several in a row. A step leaves rows that have finished as they are, so what a replay has too
many of is time alone; and a capture, whose warm-ups run such a step, can come at any time of a call.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from dllm.fast.cache import KeyValueCache
from dllm.fast.denoise import Clock, Policy, State, denoise_step
from dllm.fast.head import HeadTap, configuration
from dllm.fast.head_use import around_forward, settings_of_module
from dllm.fast.passes import Pass

MAX_GRAPHS = 8  # buckets
# Of a device's memory, what captured steps may hold before they give way to those of another shape. One shape needs
# what a forward needs; the rest is for weights and for what runs eagerly.
MEMORY_SHARE = 1 / 8
# A capture costs about as much as this many eager steps.
WORTH_CAPTURING = 4
# Steps in a replay. What is saved is the host's share of a launch, so few are enough to save most of it; to capture
# them costs the host as much as so many eager steps, and rows that finish early may run all but one in vain.
STEPS_PER_REPLAY = 4
# A call of fewer steps than this would spend more than an eighth of them on capturing several at a time.
WORTH_SEVERAL = 8 * STEPS_PER_REPLAY

_log = logging.getLogger("dllm.fast")
WARM_UPS = 2


# One thread at a time is capturing: captures share a stream, on which another one's warm-up would be captured too, and
# a switch of the process, that of the sync-debug mode.
_capturing = threading.RLock()


class CaptureError(RuntimeError):
    """A step could not be captured as a CUDA graph.

    broken: whether CUDA broke off a capture, from which torch's pool of memory does not recover.
    """

    broken = False

    @classmethod
    def because(cls, error: BaseException, broken: bool = False) -> CaptureError:
        """Of another error, by its first line."""
        made = cls(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
        made.broken = broken
        return made


@dataclass(eq=False)
class Pool:
    """Memory that graphs share which run one after the other, on one stream of a device: each needs it only while it
    runs. torch frees it with the last of them.

    handle: torch's.
    bytes: what it holds.
    broken: whether a capture into it was broken off: for torch that is still going on, and no other may begin.
    """

    handle: object
    bytes: int = 0
    broken: bool = False


@dataclass(slots=True, eq=False)
class CapturedSteps:
    """The captured steps of a bucket: `state` is the memory that all of them work on.

    replays: what runs a number of steps of some passes, by both.
    seconds: what capturing took, s.
    """

    state: State
    model: weakref.ref
    pool: Pool
    replays: dict[tuple[tuple[Pass, ...], int], Callable[[], None]] = field(default_factory=dict)
    seconds: float = 0.0
    busy: bool = False  # its memory serves one call at a time

    def load(self, state: State) -> None:
        """Make the captured state equal to `state`, which has the same shapes."""
        for name, tensor in state.tensors().items():
            getattr(self.state, name).copy_(tensor)

    def replay(
        self,
        tap: HeadTap,
        policy: Policy,
        cache: KeyValueCache | None = None,
        passes: Sequence[Pass] | None = None,
        count: int = 1,
    ) -> None:
        """Run `count` steps, each of them :func:`denoise_step` on the captured state; captured on first use.

        Raises:
            CaptureError: the model's forward cannot be captured; the state is as it was.
        """
        key = tuple(passes or ()), count
        if key not in self.replays:
            began = time.perf_counter()
            step = functools.partial(
                denoise_step, tap, self.state, policy, Clock(self.state.tokens.device, on=False), cache, passes
            )
            self.replays[key] = capture(step, count, self.state, self.pool)
            self.seconds += time.perf_counter() - began
        self.replays[key]()


def capture(step: Callable[[], None], count: int, state: State, pool: Pool) -> Callable[[], None]:
    """Capture `count` steps on a state that they advance, and return what replays them; the state stays as it is.

    Raises:
        CaptureError: with the reason.
    """
    device = state.tokens.device
    for _ in range(WARM_UPS):
        warm_up(functools.partial(_without_effect, step, state), device)
    try:
        replay = record(functools.partial(_repeat, step, count), device, pool.handle)
    except BaseException as error:
        pool.broken = getattr(error, "broken", True)
        raise
    pool.bytes = bytes_of(pool.handle, device)
    return replay


def _repeat(step: Callable[[], None], count: int) -> None:
    with _own_casts():
        for _ in range(count):
            step()


@contextmanager
def _own_casts() -> Iterator[None]:
    """Autocast keeps its casts of weights until its outermost context is left. A graph casts for itself: those of
    others are gone by its next replay, and older than weights that have changed; nor does it leave its own to others,
    in memory that its next replay overwrites."""
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.clear_autocast_cache()


def _without_effect(step: Callable[[], None], state: State) -> None:
    """The step as it is where all rows have finished: the same kernels, and nothing changes, in the cache either."""
    block = state.block.clone()
    try:
        state.block.copy_(state.blocks)
        with _own_casts():  # made on another stream than the caller's
            step()
    finally:
        state.block.copy_(block)


class GraphCache:
    """The captured steps of the most recently used buckets, at most `size` of them.

    The graphs of a device share one pool of memory (each stream has one, where callers use several), so that it is as
    large as the largest needs, not as all together; it is freed when none of them is left. A pool that has outgrown
    `share` of the device's memory is given up with all its graphs before another bucket is captured.

    Example:
        >>> len(GraphCache(size=2))
        0
    """

    def __init__(self, size: int = MAX_GRAPHS, share: float = MEMORY_SHARE):
        self.size, self.share = size, share
        self._steps: OrderedDict[Hashable, CapturedSteps] = OrderedDict()
        # torch refuses to use a pool again of which no graph is left, so nobody but the captured steps keeps it
        self._pools: weakref.WeakValueDictionary[tuple[torch.device, int], Pool] = weakref.WeakValueDictionary()
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._steps)

    def clear(self) -> None:
        """Forget all captured steps and free their memory."""
        with self._lock:
            self._steps.clear()
            self._pools.clear()

    def steps_for(
        self, tap: HeadTap, state: State, policy: Policy, cache: KeyValueCache | None = None, reach: int = 0
    ) -> CapturedSteps:
        """The captured steps for these shapes and this model, loaded with `state`; at first there are none.

        `cache` and `reach` are what :func:`denoise_step` and :func:`dllm.fast.passes.plan` are given besides.

        Raises:
            CaptureError: another call is using them, or not all weights lie on the state's device.
        """
        place = state.tokens.device, stream_of(state.tokens.device)
        _check_one_device(tap.model, place[0])
        key = place, bucket(tap, state, policy, cache, reach)
        with self._lock:
            self._drop(lambda steps: steps.model() is None or steps.pool.broken)
            steps = self._steps.get(key)
            if steps is not None and steps.busy:
                raise CaptureError("another call is using the captured step of this shape")
            if steps is None:
                while len(self._steps) >= self.size:
                    self._steps.popitem(last=False)
                steps = self._steps[key] = CapturedSteps(state.copy(), weakref.ref(tap.model), self._pool(*place))
            self._steps.move_to_end(key)
            steps.busy = True
        try:
            steps.load(state)
        except BaseException:
            steps.busy = False
            raise
        return steps

    def forget(self, steps: CapturedSteps) -> None:
        """Do not serve them again."""
        with self._lock:
            self._drop(lambda kept: kept is steps)

    def _pool(self, device: torch.device, stream: int) -> Pool:
        pool = self._pools.get((device, stream))
        if pool is not None and (pool.broken or pool.bytes > self.share * memory_of(device)):
            self._drop(lambda steps: steps.pool is pool)
            pool = None
        if pool is None:
            pool = self._pools[device, stream] = Pool(torch.cuda.graph_pool_handle())
        return pool

    def _drop(self, which: Callable[[CapturedSteps], bool]) -> None:
        for key in [key for key, steps in self._steps.items() if which(steps)]:
            del self._steps[key]


CACHE = GraphCache()


def stream_of(device: torch.device) -> int:
    """Which of a device's streams the caller is on."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def bytes_of(handle: object, device: torch.device) -> int:
    """Memory of a device that a pool holds; 0 where the allocator is another than torch's own and does not tell."""
    if device.type != "cuda" or torch.cuda.get_allocator_backend() != "native":
        return 0
    segments = torch.cuda.memory_snapshot()
    return sum(segment["total_size"] for segment in segments if segment["segment_pool_id"] == handle)


def memory_of(device: torch.device) -> int:
    """Memory that a device has."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0


def bucket(tap: HeadTap, state: State, policy: Policy, cache: KeyValueCache | None = None, reach: int = 0) -> Hashable:
    """What captured steps depend on besides the contents of their state: of a cache, on its memory."""
    shapes = tuple((name, tuple(t.shape), t.dtype) for name, t in state.tensors().items())
    memory = () if cache is None else (cache.kind, *(t.data_ptr() for t in cache.memory))
    around = settings(tap.model), circumstances(tap.model, state.tokens.device)
    return id(tap.head), tap.kind, policy, shapes, memory, reach, around


def settings(model: nn.Module) -> Hashable:
    """What a forward may read besides tensors: the modules' own numbers, names and switches (which adapters are active
    and how much they count), hooks, and the configuration."""
    modules = tuple((around_forward(module), settings_of_module(module)) for module in model.modules())
    return hash(modules), configuration(model)


def _check_one_device(model: nn.Module, device: torch.device) -> None:
    """What runs on another device, or is fetched from there for each forward, is not captured.

    Raises:
        CaptureError: weights lie elsewhere.
    """
    elsewhere = sorted({str(p.device) for p in model.parameters()} - {str(device)})
    if elsewhere:
        raise CaptureError(f"not all weights lie on {device}, some lie on {' and '.join(elsewhere)}")


def circumstances(model: nn.Module, device: torch.device) -> Hashable:
    """What a captured forward of a model depends on besides its inputs."""
    # an address may have been that of other weights, of another dtype
    weights = tuple((t.data_ptr(), t.dtype, t.shape) for t in (*model.parameters(), *model.buffers()))
    modes = (
        getattr(getattr(model, "config", None), "_attn_implementation", None),
        torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type),
        torch.get_float32_matmul_precision(),
        torch.is_inference_mode_enabled(),  # its tensors may not be written outside of it
        tuple(module.training for module in model.modules()),
        str(device),
    )
    return id(model), hash(weights), modes


def warm_up(run: Callable[[], None], device: torch.device) -> None:
    """Run what is to be captured where it is to be captured: what is set up once, is set up then.

    Raises:
        CaptureError: it raised an error, or the device has no graphs.
    """
    if device.type != "cuda":
        raise CaptureError(f"no CUDA graphs on {device.type}")
    with _capturing, torch.cuda.device(device):
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
    whatever breaks a capture all the same, both are brought back here. A capture that ends in order, whatever was
    raised within, leaves nothing behind.

    Raises:
        CaptureError: with the reason.
    """
    with _capturing, torch.cuda.device(device):
        graph, side, failure = torch.cuda.CUDAGraph(), _side_stream(device), None
        random = torch.cuda.get_rng_state(device)
        try:
            with torch.cuda.stream(side):  # left again even where the context below is not
                # thread_local: a data loader's thread that pins memory meanwhile does no harm
                with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
                    try:
                        with _waiting_refused():
                            run()
                    except BaseException as error:  # known better than what the end of a broken capture says
                        failure = error
                        raise
        except BaseException as error:
            broken = error is not failure
            if broken:
                _renew_generator(device, random)
            reason = failure or error
            if not isinstance(reason, Exception):  # somebody pressed Ctrl-C
                raise reason from None
            raise CaptureError.because(reason, broken) from reason
    return graph.replay


@contextmanager
def _waiting_refused() -> Iterator[None]:
    """Within this context torch raises an error where it would wait for the device. It does in every thread: the mode
    is the process's, so one that waits for a device while another captures is told so, too."""
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
