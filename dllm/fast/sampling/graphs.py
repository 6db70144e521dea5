"""Denoising steps as CUDA graphs: captured once per shape bucket, then replayed.

A replay runs the same kernels on the same memory. So everything that changes lies in tensors of the state (canvas,
seeds, step, block, counts): a call copies its state into the captured one, and each step advances it, so that every
replay draws fresh noise. The key of a bucket holds the addresses of all weights: replaced weights are never served
stale, and weights changed in place are simply read.

A bucket has one state, and one graph for each list of passes that comes up (:mod:`dllm.fast.sampling.passes`), for one
step or for several in a row. A step leaves finished rows as they are. So steps that a replay has too many of only cost
time, and a capture, whose warm-ups run such a step, can come at any point of a call.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch

from dllm.fast import capture
from dllm.fast.head.split import SplitModel
from dllm.fast.sampling.cache import KeyValueCache
from dllm.fast.sampling.clock import Clock
from dllm.fast.sampling.passes import Pass
from dllm.fast.sampling.state import Policy, State
from dllm.fast.sampling.step import denoise_step

# A capture takes 30 to 100 ms: three steps of the host, a wait for the device, an empty memory cache, a graph of a
# thousand nodes. A replay saves 2 to 4 ms, what the host takes longer than the device for a step. So a capture pays for
# steps that come up this often.
WORTH_CAPTURING = 20
MAX_GRAPHS = 8  # buckets
# The share of a device's memory that captured steps may hold before they give way to another shape. One shape needs
# what a forward needs; the rest is for weights and for eager code.
MEMORY_SHARE = 1 / 8
# Steps per replay. They save the host's cost of a launch, and few save most of it. To capture them costs the host as
# much as that many eager steps, and rows that finish early may run all but one in vain.
STEPS_PER_REPLAY = 4
# A call of fewer steps than this would spend more than an eighth of them on capturing several at a time.
WORTH_SEVERAL = 8 * STEPS_PER_REPLAY

_log = logging.getLogger("dllm.fast")


@dataclass(slots=True, eq=False)
class CapturedSteps:
    """The captured steps of a bucket, which all work on the memory of `state`.

    model: of the bucket.
    pool: memory of the graphs.
    replays: the function that replays a number of steps, by passes and number.
    earlier: steps of the calls before there was a bucket, of whatever passes.
    eager: how often steps have come up since then that were not captured, by the same as `replays`.
    seconds: what capturing took, s.
    busy: a call is using the state.
    """

    state: State
    model: weakref.ref
    pool: capture.Pool
    replays: dict[tuple[tuple[Pass, ...], int], Callable[[], None]] = field(default_factory=dict)
    earlier: int = 0
    eager: Counter[tuple[tuple[Pass, ...], int]] = field(default_factory=Counter)
    seconds: float = 0.0
    busy: bool = False

    def load(self, state: State) -> None:
        """Make the captured state equal to `state`, which has the same shapes."""
        for name, tensor in state.tensors().items():
            getattr(self.state, name).copy_(tensor)

    def has(self, passes: Sequence[Pass], count: int) -> bool:
        """Whether `count` steps with these passes are captured."""
        return (tuple(passes), count) in self.replays

    def note(self, passes: Sequence[Pass], count: int) -> int:
        """Note that such steps have come up, and return how often they have, at most."""
        self.eager[tuple(passes), count] += 1
        return self.earlier + self.eager[tuple(passes), count]

    def replay(
        self,
        split: SplitModel,
        policy: Policy,
        cache: KeyValueCache | None = None,
        passes: Sequence[Pass] | None = None,
        count: int = 1,
    ) -> None:
        """Run `count` times :func:`denoise_step` on the captured state; they are captured on first use.

        Raises:
            CaptureError: the model's forward cannot be captured; the state is as it was.
        """
        key = tuple(passes or ()), count
        if key not in self.replays:
            began = time.perf_counter()
            step = functools.partial(
                denoise_step, split, self.state, policy, Clock(self.state.tokens.device, on=False), cache, passes
            )
            self.replays[key] = capture_steps(step, count, self.state, self.pool)
            self.seconds += time.perf_counter() - began
        self.replays[key]()


def capture_steps(step: Callable[[], None], count: int, state: State, pool: capture.Pool) -> Callable[[], None]:
    """Capture `count` steps and return a function that replays them. The state is not advanced by this.

    Raises:
        CaptureError: with the reason.
    """
    device = state.tokens.device
    for _ in range(capture.WARM_UPS):
        capture.warm_up(functools.partial(_without_effect, step, state), device)
    try:
        replay = capture.record(functools.partial(_repeat, step, count), device, pool.handle)
    except BaseException as error:
        pool.broken = getattr(error, "broken", True)
        raise
    pool.bytes = capture.bytes_of(pool.handle, device)
    return replay


def _repeat(step: Callable[[], None], count: int) -> None:
    with capture.own_autocast_cache():
        for _ in range(count):
            step()


def _without_effect(step: Callable[[], None], state: State) -> None:
    """Run the step as if all rows were finished: the same kernels, and nothing changes, in the cache either."""
    block = state.block.clone()
    try:
        state.block.copy_(state.blocks)
        with capture.own_autocast_cache():  # made on another stream than the caller's
            step()
    finally:
        state.block.copy_(block)


class GraphCache:
    """The captured steps of the `size` most recently used buckets.

    The graphs of one stream of a device share one memory pool, which is as large as the largest of them needs. It is
    freed with the last of them. A pool that exceeds `share` of the device's memory is given up, with all its graphs,
    before another bucket is captured.

    Example:
        >>> len(GraphCache(size=2))
        0
    """

    def __init__(self, size: int = MAX_GRAPHS, share: float = MEMORY_SHARE):
        self.size, self.share = size, share
        self._steps: OrderedDict[Hashable, CapturedSteps] = OrderedDict()
        self._uncaptured: OrderedDict[Hashable, int] = OrderedDict()  # steps of buckets that are not captured
        # torch does not accept a pool again of which no graph is left, so only the captured steps keep it
        self._pools: weakref.WeakValueDictionary[tuple[torch.device, int], capture.Pool] = weakref.WeakValueDictionary()
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._steps)

    def clear(self) -> None:
        """Forget all captured steps and free their memory."""
        with self._lock:
            self._steps.clear()
            self._uncaptured.clear()
            self._pools.clear()

    def steps_for(
        self,
        split: SplitModel,
        state: State,
        policy: Policy,
        cache: KeyValueCache | None = None,
        suffix_columns: int = 0,
        upcoming: int | None = None,
    ) -> CapturedSteps | None:
        """The captured steps of a bucket, loaded with `state`; a new bucket has none.

        Args:
            split, state, policy, cache: as :func:`denoise_step` takes them.
            suffix_columns: as :func:`dllm.fast.sampling.plan.plan` takes it.
            upcoming: how many steps the call has, at most; None: the bucket is wanted however many.

        Returns:
            None where the steps of this and of earlier calls do not pay for a capture.

        Raises:
            CaptureError: another call is using them, or not all weights lie on the state's device.
        """
        place = state.tokens.device, capture.stream_of(state.tokens.device)
        capture.check_one_device(split.model, place[0])
        key = place, bucket(split, state, policy, cache, suffix_columns)
        with self._lock:
            self._drop(lambda steps: steps.model() is None or steps.pool.broken)
            steps = self._steps.get(key)
            if steps is not None and steps.busy:
                raise capture.CaptureError("another call is using the captured step of this shape")
            if steps is None:
                earlier = self._uncaptured.pop(key, 0)
                if upcoming is not None and earlier + upcoming < WORTH_CAPTURING:
                    self._note(key, earlier + upcoming)
                    return None
                while len(self._steps) >= self.size:
                    self._steps.popitem(last=False)
                steps = self._steps[key] = CapturedSteps(
                    state.copy(), weakref.ref(split.model), self._pool(*place), earlier=earlier
                )
            self._steps.move_to_end(key)
            steps.busy = True
        try:
            steps.load(state)
        except BaseException:
            steps.busy = False
            raise
        return steps

    def forget(self, steps: CapturedSteps) -> None:
        """Never use these steps again."""
        with self._lock:
            self._drop(lambda kept: kept is steps)

    def _note(self, key: Hashable, steps: int) -> None:
        """Note the steps of all calls with this key."""
        self._uncaptured[key] = steps
        if len(self._uncaptured) > 8 * self.size:  # forget shapes that do not come back
            self._uncaptured.popitem(last=False)

    def _pool(self, device: torch.device, stream: int) -> capture.Pool:
        pool = self._pools.get((device, stream))
        if pool is not None and (pool.broken or pool.bytes > self.share * capture.memory_of(device)):
            self._drop(lambda steps: steps.pool is pool)
            pool = None
        if pool is None:
            pool = self._pools[device, stream] = capture.Pool(torch.cuda.graph_pool_handle())
        return pool

    def _drop(self, which: Callable[[CapturedSteps], bool]) -> None:
        for key in [key for key, steps in self._steps.items() if which(steps)]:
            del self._steps[key]


CACHE = GraphCache()


def bucket(
    split: SplitModel, state: State, policy: Policy, cache: KeyValueCache | None = None, suffix_columns: int = 0
) -> Hashable:
    """The key of captured steps: all they depend on besides the contents of their state and of the cache."""
    shapes = tuple((name, tuple(t.shape), t.dtype) for name, t in state.tensors().items())
    memory = () if cache is None else (cache.kind, *(t.data_ptr() for t in cache.memory))
    conditions = capture.forward_settings(split.model), capture.capture_conditions(split.model, state.tokens.device)
    # a compiled body is other kernels
    compiled = split.body_context is not nullcontext
    return id(split.head), split.kind, compiled, policy, shapes, memory, suffix_columns, conditions
