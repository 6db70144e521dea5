"""What torch.cuda looks like to a capture, where there is no GPU: `capture.warm_up` and `capture.record` run as they
are.

What is captured runs on the CPU, while `torch.cuda.is_current_stream_capturing()` is true. Noted are the calls of
scaled dot product attention in each warm-up and each capture, with all on which a GPU's choice of a kernel depends, and
the operators in captures that would wait for a device.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm.fast import capture
from tests.watch import SyncWatch

CUDA = torch.device("cuda", 0)


class Stream:
    """A stream with a handle of its own."""

    _handles = itertools.count()

    def __init__(self, device: torch.device = CUDA):
        self.cuda_stream = next(self._handles)

    def wait_stream(self, other: Stream) -> None:
        """All work is done at once."""


class Graph:
    """A captured graph, which can be referred to weakly."""

    replay = "replay"


class CaptureSyncWatch(SyncWatch):
    """Also notes numbers that become tensors: `torch.tensor(0.0, device="cuda")` is a copy that waits."""

    WAITING = (*SyncWatch.WAITING, torch.ops.aten.lift_fresh.default)


class Device:
    """Ends a broken capture as torch does, and notes what was done.

    mode: torch's sync-debug mode.
    main: the stream of a caller; stream_in_use: the current one.
    done: (pool, stream, mode) of each capture, and ("renewed", state) for each renewed generator.
    broken: CUDA aborts captures.
    warm_ups, captures: the attention calls of each.
    waited: names of the operators in captures that would wait for a device.
    """

    def __init__(self):
        self.mode, self.done, self.broken, self.capturing = 0, [], False, False
        self.main = self.stream_in_use = Stream()
        self.warm_ups, self.captures, self.waited = [], [], []

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.stream_in_use = self.stream_in_use, stream
        self.warm_ups.append([])  # unless a capture begins
        try:
            with attention_calls(self.warm_ups[-1]):
                yield
        finally:
            self.stream_in_use = before

    @contextlib.contextmanager
    def graph(self, graph: Graph, pool: object, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        self.done.append((pool, stream, capture_error_mode))
        self.captures.append(self.warm_ups.pop())
        self.stream_in_use, self.capturing = Stream(), True  # left behind where a capture is aborted
        try:
            with CaptureSyncWatch() as watch:
                yield
        finally:
            self.capturing = False
            self.waited += watch.seen
            if self.broken:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            self.stream_in_use = stream

    def install(self, monkeypatch) -> Device:
        replaced = dict(
            device=lambda device: contextlib.nullcontext(),
            stream=self.stream,
            graph=self.graph,
            CUDAGraph=Graph,
            Stream=Stream,
            current_stream=lambda device=None: self.stream_in_use,
            is_current_stream_capturing=lambda: self.capturing,
            get_rng_state=lambda device: "state",
            get_sync_debug_mode=lambda: self.mode,
            set_sync_debug_mode=lambda mode: setattr(self, "mode", mode),
        )
        for name, value in replaced.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(capture, "_side_stream", functools.cache(capture._side_stream.__wrapped__))
        monkeypatch.setattr(capture, "_renew_generator", lambda device, state: self.done.append(("renewed", state)))
        return self


@contextlib.contextmanager
def attention_calls(calls: list[tuple]) -> Iterator[None]:
    """Note shape, strides and dtype of queries, keys, values and mask of every call, and its other arguments."""
    original: Callable[..., Tensor] = F.scaled_dot_product_attention

    def noted(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **options):
        tensors = [None if t is None else (tuple(t.shape), t.stride(), t.dtype) for t in (query, key, value, attn_mask)]
        calls.append((*tensors, dropout_p, is_causal, options))
        return original(query, key, value, attn_mask, dropout_p, is_causal, **options)

    F.scaled_dot_product_attention = noted
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original
