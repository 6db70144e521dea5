"""Statistics of a sampler's call: forwards, seconds, tokens, memory."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dllm.fast.sampling.loop import Denoiser
from dllm.fast.sampling.state import ends_row


@dataclass(slots=True)
class Stats:
    """Statistics of one call.

    forwards: how often the model ran (under guidance one run serves both canvases; beside a cache, a step in which only
        some rows begin a block runs their canvas and the windows of the others, and counts once; so does a step whose
        rows run apart, see `note`; beside a "causal" cache a causal pass counts by itself). On a GPU it runs on
        for a few steps after the last row has finished: `idle_forwards` of these were that.
    row_forwards: for each row the runs that it took part in; a row that has finished takes part in no more.
    seconds: wall time of the call, s.
    body_seconds, head_seconds, transfer_seconds: of the model's body, of the head with sampling, and of the transfer,
        s; None where steps were replayed as a CUDA graph.
    tokens: generated tokens, all rows.
    useful_tokens: generated tokens up to the first EOS of each row, that one included.
    masks_left: generated tokens that are still the mask token: the model chose it, or the steps were too few.
    mode: "eager" or "graph".
    note: why not "graph"; whether rows of unequal length ran without their padding, or apart, and why.
    cache_bytes: memory of the keys and values that the steps kept, 0 without a cache.
    capture_seconds: what of `seconds` went into capturing graphs, s: 0 where earlier calls have captured all.
    compiled: whether the model's body ran compiled, as `compile_body` says; `compile_note` says why, or why not.
    compile_seconds: what of `seconds` went into compiling it, s: 0 where earlier calls have compiled all.
    graph_bytes: memory that graphs work in, those of other shapes on the device too, as they share it; 0 without one,
        and where the memory allocator is not torch's own.
    """

    forwards: int
    row_forwards: list[int]
    seconds: float
    body_seconds: float | None
    head_seconds: float | None
    transfer_seconds: float | None
    tokens: int
    useful_tokens: int
    mode: str
    note: str
    cache_bytes: int = 0
    capture_seconds: float = 0.0
    graph_bytes: int = 0
    masks_left: int = 0
    compiled: bool = False
    compile_note: str = ""
    compile_seconds: float = 0.0

    @property
    def idle_forwards(self) -> int:
        """Runs in which no row took part any more; beside a "causal" cache also causal passes of other rows than the
        one that took part in most runs."""
        return self.forwards - max(self.row_forwards, default=0)

    @property
    def tokens_per_forward(self) -> float:
        """Useful tokens of a row over the runs that it took part in, on average over rows."""
        return self.useful_tokens / max(1, sum(self.row_forwards))


def stats_of(
    denoiser: Denoiser,
    tokens: Tensor,
    generated: Tensor,
    eos_id: int | None,
    seconds: float,
    eot_id: int | None = None,
) -> Stats:
    """The stats of a finished run that left tokens [B, L], of which `generated` (bool [B, L]) were masked before."""
    useful = int(generated.sum())
    total = useful
    if eos_id is not None:
        ends = ends_row(tokens, eos_id, eot_id) & generated
        useful = int((generated & (ends.cumsum(1) - ends.long() == 0)).sum())
    running = denoiser.running
    parts = {} if running.graphed or running.clock is None else running.clock.seconds()
    return Stats(
        forwards=running.forwards,
        row_forwards=denoiser.row_steps.tolist(),
        seconds=seconds,
        body_seconds=parts.get("body"),
        head_seconds=parts.get("head"),
        transfer_seconds=parts.get("transfer"),
        tokens=total,
        useful_tokens=useful,
        mode="graph" if running.graphed else "eager",
        note=running.note,
        cache_bytes=running.cache_bytes,
        capture_seconds=0.0 if running.replays is None else running.replays.seconds,
        graph_bytes=0 if running.replays is None else running.replays.bytes,
        masks_left=denoiser.masks_left,
        compiled=running.compiling.compiled,
        compile_note=running.compiling.note,
        compile_seconds=running.compiling.seconds,
    )
