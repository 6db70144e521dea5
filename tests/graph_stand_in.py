"""A captured training step where there is no GPU: a closure that reads and writes the memory a graph would.

Like a graph it works on the addresses of the time of the capture: the weights' memory of then and the gradient buffers
of then, whatever the weights have become, and its results lie in one place, which every replay overwrites.
"""

from __future__ import annotations

import inspect

import torch

from dllm.fast import graphs


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
