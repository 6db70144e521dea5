"""Many rows, some at a time: the next one takes the place of one that is finished."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from dllm.core.samplers.run import Plan
from dllm.fast.sampling.ends import EarlyEnds, Finished
from dllm.fast.sampling.loop import warn_of_masks, warn_of_waiting
from dllm.fast.sampling.rows import NoFiniteLogit
from dllm.fast.sampling.running import Running


class SampledRow(NamedTuple):
    """A row of :meth:`~dllm.core.samplers.base.BaseSampler.sample_many`.

    tokens: int64 [length], its prompt and what was generated, on the model's device.
    forwards: runs of the model that it took part in.
    seconds: its share of the time, s: each step's is divided among the rows that ran, so that all add up.
    """

    tokens: Tensor
    forwards: int
    seconds: float


def run_many(
    model: nn.Module,
    plan: Plan,
    *,
    rows: int,
    width_multiple: int | None,
    finished: Finished | None,
    on_row: Callable[[int, SampledRow], object] | None,
) -> list[SampledRow]:
    """Denoise all rows of a plan, at most `rows` at a time, the longest first.

    So canvases only become narrower, and memory is at its highest at the start. Beside a KV cache, and where steps are
    captured as CUDA graphs, the next rows come when all are finished.

    Raises:
        NoFiniteLogit: a row's logits had no finite number; rows that were finished before were told of.
    """
    lengths = plan.batch.length.tolist()
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])  # by id
    early_ends = None
    if finished is not None:
        early_ends = EarlyEnds(lambda id_, tokens: finished(order[id_], tokens), plan.policy, plan.eos_id)
    running = Running(
        model,
        plan.policy,
        width_multiple=width_multiple,
        cuda_graph=plan.config.cuda_graph,
        compile_body=plan.config.compile_body,
        early_ends=early_ends,
    )
    joined, results, seconds = 0, {}, defaultdict(float)
    try:
        while joined < len(order) or running:
            began = time.perf_counter()
            if running.takes_more and (coming := order[joined : joined + rows - len(running)]):
                running.join(plan.batch.rows(coming), plan.policy)
                joined += len(coming)
            active = running.ids
            leaving = running.step()
            share = (time.perf_counter() - began) / len(active)
            for id_ in active:
                seconds[id_] += share
            for row in leaving:
                number = order[row.id]
                if row.error is not None:
                    raise NoFiniteLogit(f"row {number}: {row.error}")
                results[number] = SampledRow(row.tokens, row.forwards, seconds[row.id])
                if on_row is not None:
                    on_row(number, results[number])
    finally:
        running.close()
    _tell(plan, running, results)
    return [results[number] for number in range(len(order))]


def _tell(plan: Plan, running: Running, results: dict[int, SampledRow]) -> None:
    """Warn of masked positions that had to wait, and of masks that are left."""
    warn_of_waiting(running.overflow)
    left = {number: int((row.tokens == plan.policy.mask_id).sum()) for number, row in results.items()}
    if masks := sum(left.values()):
        warn_of_masks(masks, min(number for number, count in left.items() if count))
