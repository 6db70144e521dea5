"""Which passes each step of a call runs, known in advance where the schedule tells."""

from __future__ import annotations

import itertools

from dllm.fast.sampling.passes import Pass, canvas
from dllm.fast.sampling.schedule import Schedule
from dllm.fast.sampling.state import Policy, State
from dllm_kernels import CurrentBlock


class Planner:
    """Plans the passes of a call's steps.

    Args:
        policy: of the call.
        state: before its first step.
        schedule: of its rows.
    """

    def __init__(self, policy: Policy, state: State, schedule: Schedule):
        self.policy = policy
        # a row that stops early ends; it is never ahead of its schedule
        known = policy.cache is not None and not policy.adapts
        self._block_starts = _block_starts(schedule) if known else None
        opening = {"block": schedule.stop, "causal": schedule.begin}.get(policy.cache)
        self._opening = None if opening is None else int(opening[:, 0].max())
        self.suffix_columns = 0
        if policy.cache == "prefix":
            self.suffix_columns = int((state.length - schedule.begin[:, 0]).max())

    def passes(self, state: State, step: int, *, exact: bool) -> list[Pass]:
        """The passes of step `step` of the call; `exact` as in :func:`plan`."""
        return plan(
            state,
            self.policy,
            opening=self._opening if step == 0 else None,
            starting_rows=self._starting_rows(state, step, exact),
            exact=exact,
            suffix_columns=self.suffix_columns,
        )

    def steps_alike(self, state: State, passes: list[Pass], steps: range) -> int:
        """How many of `steps` are known to run these passes."""
        if self._block_starts is None:
            return 0 if self.policy.cache in ("prefix", "dual", "causal") else len(steps)
        return sum(self.passes(state, step, exact=False) == passes for step in steps)

    def keep(self, rows: list[int]) -> None:
        """Go on with some of the rows."""
        if self._block_starts is not None:
            self._block_starts = [self._block_starts[row] for row in rows]

    def _starting_rows(self, state: State, step: int, exact: bool) -> int | None:
        """How many rows start a block at a step, at most; None where that is neither known nor needed.

        The schedule tells, unless blocks adapt. Then all caches but a block cache read one number from the device in
        each step. A block cache reads it on a CPU only: elsewhere a window of twice the width costs less than the wait.
        """
        if self._block_starts is not None:
            return sum(step in starts for starts in self._block_starts)
        if self.policy.cache in ("prefix", "dual", "causal") or (self.policy.cache == "block" and exact):
            return int(((state.step == 0) & (state.block < state.blocks)).sum())
        return None


def plan(
    state: State,
    policy: Policy,
    *,
    opening: int | None,
    starting_rows: int | None,
    exact: bool,
    suffix_columns: int = 0,
) -> list[Pass]:
    """The passes of a step.

    Args:
        state: of the rows.
        policy: of the call.
        opening: in the first step of the call, the column where the first block of every row has ended, or beside a
            "causal" cache has not begun yet; else None.
        starting_rows: how many rows start a block in this step, at most; None: not known.
        exact: numbers of the state may be read, so that windows are no larger than they must be. Otherwise no step
            waits for a device, and few kinds of steps come up to be captured.
        suffix_columns: columns from the start of a row's first block to its end, at most; for the "prefix" cache.
    """
    rows, columns = state.tokens.shape
    padded = state.attention_mask is not None
    if policy.cache is None:
        if policy.block_causal is None:
            return canvas(state)
        width = int(CurrentBlock.of(state.schedule).stop.max()) if exact else columns
        return [Pass(max(width, 1), None, None)]
    if policy.cache == "block":
        shift = int(policy.right_shift)  # the column before the block is read for the block's first
        if opening is not None:
            return [Pass(opening, None, None)]
        stop = CurrentBlock.of(state.schedule).stop if exact else None
        visible = columns if stop is None else max(int(stop.max()), 1)
        if starting_rows != 0:
            return [Pass(policy.block_causal + policy.window, policy.block_causal, visible)]
        all_visible = stop is not None and shift == 0 and bool((stop == visible).all())
        return [Pass(policy.window + shift, shift, visible, all_visible=all_visible)]
    if policy.cache == "causal":
        return _causal(state, policy, opening, starting_rows, exact)
    whole = Pass(columns, None, None, all_visible=not padded)
    if starting_rows == rows:
        return [whole]
    width = policy.window
    if policy.cache == "prefix":
        width = int((state.length - CurrentBlock.of(state.schedule).begin).max()) if exact else suffix_columns
    window = Pass(width, 0, columns, all_visible=not padded)
    if starting_rows == 0:
        return [window]
    return [whole._replace(starting_rows=_room_for(starting_rows, rows, exact)), window]


def _causal(state: State, policy: Policy, opening: int | None, starting_rows: int, exact: bool) -> list[Pass]:
    """The passes beside a "causal" cache: of rows that start a block what is final, then the blocks."""
    rows, columns = state.tokens.shape
    now, size = CurrentBlock.of(state.schedule), policy.block_causal
    visible = max(int(now.stop.max()), 1) if exact else columns
    window = Pass(policy.window, 0, visible, all_visible=exact and bool((now.stop == visible).all()))
    if starting_rows == 0:
        return [window]
    if opening is not None:
        return [Pass(opening, None, None, causal=True), window]
    some = _room_for(starting_rows, rows, exact)
    return [Pass(size, size, visible, starting_rows=some, causal=True), window]


def _room_for(starting_rows: int, rows: int, exact: bool) -> int:
    """For how many rows a pass over those that start a block has room: a power of two where steps may be captured, as
    each number of rows is a graph."""
    return starting_rows if exact else min(rows, 1 << (starting_rows - 1).bit_length())


def _block_starts(schedule: Schedule) -> list[set[int]]:
    """The steps of the call at which each row starts a block, where rows take all steps that they have."""
    steps, blocks = schedule.steps.tolist(), schedule.blocks.tolist()
    return [{0, *itertools.accumulate(row[: count - 1])} for row, count in zip(steps, blocks, strict=True)]
