"""Captured steps where there is no GPU: closures that read and write the memory a graph would.

Of training: like a graph it works on the addresses of the time of the capture: the weights' memory of then and the
gradient buffers of then, whatever the weights have become, and its results lie in one place, which every replay
overwrites. Of sampling: like a graph it keeps no model alive, and it notes where a step would wait for a device.
"""

from __future__ import annotations

import inspect
import weakref

import torch

from dllm.fast import graphs
from dllm.fast.head import HeadTap
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
    monkeypatch.setattr(graphs, "warm_up", lambda run, device: run())
    monkeypatch.setattr(graphs, "record", stand_in.record)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    return stand_in


class Sampling:
    """What was captured of denoising loops, one (passes, count) for each graph, and the counts of all replays."""

    def __init__(self):
        self.captured, self.replayed, self.waited = [], [], []

    def record(self, run, device, pool):
        step, count = run.args
        tap, *rest, passes = step.args
        model, kind, run_step = weakref.ref(tap.model), tap.kind, step.func
        self.captured.append((passes, count))

        def replay():
            alike = object.__new__(HeadTap)
            alike.model, alike.head, alike.kind = model(), model().get_output_embeddings(), kind
            with SyncWatch() as watch:
                for _ in range(count):
                    run_step(alike, *rest, passes)
            self.waited.extend(watch.seen)
            self.replayed.append(count)

        return replay


def install_sampling(monkeypatch, size: int = 3) -> Sampling:
    """Let denoising loops on the CPU be captured by a stand-in, unless they are called with cuda_graph=False."""
    stand_in = Sampling()
    monkeypatch.setattr(graphs, "warm_up", lambda run, device: run())
    monkeypatch.setattr(graphs, "record", stand_in.record)
    monkeypatch.setattr(graphs, "wanted", lambda cuda_graph, device, forwards: (cuda_graph is not False, "off"))
    monkeypatch.setattr(graphs, "CACHE", graphs.GraphCache(size=size))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    return stand_in
