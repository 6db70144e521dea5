"""What a call does, seen from torch's dispatcher and allocator: waits for a device, matrix products, bytes alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class SyncWatch(TorchDispatchMode):
    """Notes every operator that would make the host wait for a device."""

    WAITING = (
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.nonzero.default,
        torch.ops.aten.masked_select.default,
        torch.ops.aten.equal.default,
    )
    INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)

    def __init__(self):
        super().__init__()
        self.seen, self.operators = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operators += 1
        by_bool = func in self.INDEXING and any(i is not None and i.dtype == torch.bool for i in args[1])
        if func in self.WAITING or by_bool:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Products(TorchDispatchMode):
    """The shapes of all matrix products' results, in order."""

    NAMES = ("mm", "addmm", "linear", "_linear_pointwise")

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._schema.name.partition("::")[2].rstrip("_") in self.NAMES:
            self.shapes.append(tuple(out.shape))
        return out


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors alive at one time that the calls inside made, those of `given` not counted."""

    def __init__(self, *given: torch.Tensor):
        super().__init__()
        self.alive = {tensor.untyped_storage()._cdata: 0 for tensor in given}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive:
                    self.alive[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.alive.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return out


def thread_peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes of CPU tensors alive at one time that this thread allocates in `call`, inside operators, too."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()

    def allocations(events: list) -> Iterator[tuple[int, int]]:
        for event in events:
            if event.tag == torch._C._profiler._EventType.Allocation:
                yield event.start_time_ns, event.extra_fields.alloc_size
            yield from allocations(event.children)

    alive = peak = 0
    for _, size in sorted(allocations(profile.profiler.kineto_results.experimental_event_tree())):
        alive += size
        peak = max(peak, alive)
    return peak
