"""Captured steps where there is no GPU: closures that read and write the memory a graph would.

Of training: like a graph it works on the addresses of the time of the capture: the weights' memory of then and the
gradient buffers of then, whatever the weights have become, and its results lie in one place, which every replay
overwrites. Of sampling: like a graph it keeps no model alive, and it notes where a step would wait for a device, what
memory of others it would read, and what of its own others could read.
"""

from __future__ import annotations

import inspect
import weakref
from contextlib import nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dllm.fast import capture
from dllm.fast.head.split import SplitModel
from dllm.fast.sampling import graphs
from tests.watch import SyncWatch


class StandIn:
    """Counts of what was captured and replayed."""

    def __init__(self):
        self.captures = self.replays = 0

    def record(self, run, device, pool):
        known = inspect.getclosurevars(run).nonlocals
        parameters, results = list(known["model"].parameters()), known["results"]
        memory = [(p, p.data, p.grad) for p in parameters]
        self._run(run, memory, [None if g is None else torch.zeros_like(g) for *_, g in memory])  # nothing is computed
        (result,) = results
        for tensor in result:
            tensor.fill_(torch.nan)
        self.captures += 1

        def replay():
            self.replays += 1
            self._run(run, memory, [g for *_, g in memory])
            for own, new in zip(result, results[0], strict=True):
                own.copy_(new)

        return replay

    @staticmethod
    def _run(run, memory, gradients):
        now = [(p.data, p.grad) for p, *_ in memory]
        for (p, data, _), gradient in zip(memory, gradients, strict=True):
            p.data, p.grad = data, gradient
        run()
        for (p, *_), (data, gradient) in zip(memory, now, strict=True):
            p.data, p.grad = data, gradient


def install(monkeypatch) -> StandIn:
    """Let graphs of training be captured by a stand-in."""
    stand_in = StandIn()
    monkeypatch.setattr(capture, "warm_up", lambda run, device: run())
    monkeypatch.setattr(capture, "record", stand_in.record)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    return stand_in


class CaptureWatch(TorchDispatchMode):
    """What a graph would hold on to: memory that it reads and did not make (`foreign`, by operator), besides that of
    the `known` tensors, and memory that it made, which its next replay overwrites."""

    def __init__(self, known):
        super().__init__()
        self.known = {id(tensor.untyped_storage()): tensor.untyped_storage() for tensor in known}
        self.made, self.foreign = weakref.WeakValueDictionary(), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor) and tensor.numel():
                place = id(tensor.untyped_storage())
                if place not in self.known and place not in self.made:
                    self.foreign.append(str(func))
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and id(tensor.untyped_storage()) not in self.known:
                self.made[id(tensor.untyped_storage())] = tensor.untyped_storage()
        return out

    def overwrite(self):
        """What is left of what was made: as bytes of which no number can be made. How many there were."""
        left = list(self.made.values())
        for storage in left:
            torch.empty(0, dtype=torch.uint8).set_(storage).fill_(255)
        return len(left)


class Sampling:
    """What was captured of denoising loops, one (passes, count) for each graph, and the counts of all replays.

    waited: what waited for a device in a replay. foreign: what a graph would read that is neither a weight nor of its
    state or cache. left: how much that was made in captures was there afterwards.
    """

    def __init__(self):
        self.captured, self.replayed, self.waited, self.foreign, self.left = [], [], [], [], 0

    def record(self, run, device, pool):
        step, count = run.args
        split, *rest, passes = step.args
        model, kind, run_step = weakref.ref(split.model), split.kind, step.func
        self._watch(run, split.model, *rest)
        self.captured.append((passes, count))

        def replay():
            alike = object.__new__(SplitModel)
            alike.model, alike.head, alike.kind = model(), model().get_output_embeddings(), kind
            alike.tail, alike.body_context = None, nullcontext  # torch compiles nothing under the modes that watch here
            with SyncWatch() as watch:
                for _ in range(count):
                    run_step(alike, *rest, passes)
            self.waited.extend(watch.seen)
            self.replayed.append(count)

        return replay

    def _watch(self, run, model, state, policy, clock, cache):
        """Run it as a capture does, and undo what a capture would not do."""
        memory = [*state.tensors().values(), *(cache.memory if cache is not None else ())]
        before = [tensor.clone() for tensor in memory]
        with CaptureWatch([*memory, *model.parameters(), *model.buffers()]) as watch:
            run()
        for tensor, value in zip(memory, before, strict=True):
            tensor.copy_(value)
        self.foreign.extend(watch.foreign)
        self.left += watch.overwrite()


def install_sampling(monkeypatch, size: int = 3) -> Sampling:
    """Let denoising loops on the CPU be captured by a stand-in, unless they are called with cuda_graph=False: each step
    at once, whether that pays or not."""
    stand_in = Sampling()
    monkeypatch.setattr(capture, "warm_up", lambda run, device: run())
    monkeypatch.setattr(capture, "record", stand_in.record)
    monkeypatch.setattr(capture, "wanted", lambda cuda_graph, device: (cuda_graph is not False, "off"))
    monkeypatch.setattr(graphs, "WORTH_CAPTURING", 0)
    monkeypatch.setattr(graphs, "CACHE", graphs.GraphCache(size=size))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    return stand_in
