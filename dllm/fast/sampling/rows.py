"""What the host knows of the rows that run, and what is told of those that leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from dllm.fast.sampling.batch import DenoisingBatch
from dllm.fast.sampling.merge import Sizes
from dllm.fast.sampling.row_layout import rounded_up
from dllm.fast.sampling.state import Policy, State


class NoFiniteLogit(FloatingPointError, RuntimeError):
    """A model's logits were NaN or infinite where a token had to be chosen."""


class FinishedRow(NamedTuple):
    """A row that has left, because it is finished or because of an error.

    id: of :meth:`dllm.fast.sampling.running.Running.join`.
    tokens: int64 [length], its columns, with EOS after the first end of text where the policy has one.
    forwards: how many forwards it took part in.
    error: its logits had no finite number; None: it is finished.
    log_probs: float32 [length], of each generated token in the step that wrote it, else NaN; None: they are not kept.
    """

    id: int
    tokens: Tensor
    forwards: int
    error: NoFiniteLogit | None
    log_probs: Tensor | None

    @classmethod
    def of(cls, row: Row, tokens: Tensor, failed: int, forwards: int, log_probs: Tensor | None) -> FinishedRow:
        """A row with the canvas that it leaves, and the step in which it failed, -1 if it did not."""
        error = (
            None if failed < 0 else NoFiniteLogit(f"no logit was finite at step {failed}, so no token could be chosen")
        )
        kept = log_probs[: row.length] if row.keeps_log_probs else None
        return cls(row.id, tokens[: row.length], forwards, error, kept)


@dataclass(slots=True)
class Row:
    """A row that runs.

    id: its own.
    length, width: its columns, and how many of them run, with padding.
    blocks, steps: how many it has, and how many steps one of them has, at most.
    temperature: T of its proposals.
    left: steps that it has left, at most.
    keeps_log_probs: whether it has the log-probabilities of its tokens.
    """

    id: int
    length: int
    width: int
    blocks: int
    steps: int
    temperature: float
    left: int
    keeps_log_probs: bool = False


def rows_of(
    batch: DenoisingBatch, policy: Policy, first_id: int, *, multiple: int | None, limit: int | None
) -> list[Row]:
    """The rows of a batch; waits for the device.

    Args:
        batch, policy: as they were planned.
        first_id: of the first row.
        multiple: widths are multiples of this (:func:`~dllm.fast.sampling.row_layout.rounded_up`); None: lengths.
        limit: the model's positions.
    """
    schedule, lengths = batch.schedule, batch.length.tolist()
    widths = lengths if multiple is None else [rounded_up(length, multiple, limit) for length in lengths]
    own = [policy.temperature] * len(lengths) if batch.temperature is None else batch.temperature.tolist()
    counts = zip(schedule.blocks.tolist(), schedule.steps.tolist(), own, strict=True)
    return [
        Row(first_id + place, length, width, blocks, max(steps), temperature, sum(steps))
        for place, (length, width, (blocks, steps, temperature)) in enumerate(zip(lengths, widths, counts, strict=True))
    ]


def sizes_of(rows: Sequence[Row], policy: Policy) -> Sizes:
    """What rows need room for."""
    columns = max(row.width for row in rows)
    blocks, steps = max(row.blocks for row in rows), max(row.steps for row in rows)
    return Sizes(columns, max(blocks, 1), max(steps, 1), min(policy.window, columns))


def with_temperatures(state: State, policy: Policy, rows: Sequence[Row]) -> tuple[State, Policy]:
    """State and policy with the temperatures of some rows: the policy's, where it is one number, which costs least.

    Otherwise the policy has the highest.
    """
    temperatures = [row.temperature for row in rows]
    own = None
    if len(set(temperatures)) > 1:
        own = torch.tensor(temperatures, dtype=torch.float32, device=state.tokens.device)
    return replace(state, temperature=own), replace(policy, temperature=max(temperatures))


def with_log_probs(state: State, rows: Sequence[Row]) -> State:
    """The state with a table of log-probabilities if some of the rows keep them, and else with none, which is faster.

    Where rows joined without one, nothing is known of their tokens.
    """
    keeps = any(row.keeps_log_probs for row in rows)
    if keeps == (state.log_probs is not None):
        return state
    unknown = torch.full_like(state.tokens, torch.nan, dtype=torch.float32) if keeps else None
    return replace(state, log_probs=unknown)


def common_policy(own: Policy, new: Policy) -> Policy:
    """The policy of rows that run and of new ones, which may differ in what follows from their lengths, and in the
    temperature, which rows bring themselves.

    Raises:
        ValueError: they differ in more.
    """
    wider = replace(own, window=max(own.window, new.window), block_length=max(own.block_length, new.block_length))
    theirs = dict(window=wider.window, block_length=wider.block_length, temperature=wider.temperature)
    if replace(new, **theirs) != wider:
        raise ValueError(f"rows of one policy run together, got {new} beside {own}")
    return wider


def check_company(state: State, policy: Policy, batch: DenoisingBatch) -> None:
    """Check that rows may join those of a state; waits for the device.

    Raises:
        ValueError: there is a cache, or the rows lie on another device or suppress other tokens.
    """
    if policy.cache is not None:
        raise ValueError("beside a KV cache rows join only while none runs")
    if batch.tokens.device != state.tokens.device:
        raise ValueError(f"rows must be on {state.tokens.device}, got {batch.tokens.device}")
    for name in ("suppress", "begin_suppress"):
        own, new = getattr(state, name), getattr(batch, name)
        if (own is None) != (new is None) or (own is not None and not torch.equal(own, new)):
            raise ValueError(f"{name} must be that of the rows that run, got another")
