"""Which steps of a batch are replays of captured ones: where that works, and where it pays."""

from __future__ import annotations

import logging

import torch

from dllm.fast import capture
from dllm.fast.head.split import SplitModel
from dllm.fast.sampling import graphs
from dllm.fast.sampling.cache import KeyValueCache
from dllm.fast.sampling.passes import Pass
from dllm.fast.sampling.plan import Planner
from dllm.fast.sampling.state import Policy, State

_log = logging.getLogger("dllm.fast")


class Replays:
    """The captured steps of a batch, if there are any.

    captured: those that the batch works on; None: its steps run eagerly, and `note` says why.
    seconds, bytes: what capturing took and what graphs hold, s and bytes; once the steps are given back.

    Args:
        cuda_graph: None captures steps where that works and pays, True insists, False never does.
        device: of the batch.
        watched: somebody looks at each step, so no replay runs several.
    """

    def __init__(self, cuda_graph: bool | None, device: torch.device, *, watched: bool):
        self.cuda_graph, self.watched = cuda_graph, watched
        self.wanted, self.note = capture.wanted(cuda_graph, device)
        self.captured: graphs.CapturedSteps | None = None
        self.seconds, self.bytes = 0.0, 0

    def enter(
        self, split: SplitModel, state: State, policy: Policy, cache: KeyValueCache | None, planner: Planner, steps: int
    ) -> State:
        """Copy the state into that of captured steps where they pay for so many steps; returns the one to go on with.

        Raises:
            RuntimeError: cuda_graph=True and the step cannot be captured.
        """
        if not self.wanted:
            return state
        if state.row_groups is not None:
            self.refuse(capture.CaptureError("rows run in several forwards of a step"))
            return state
        upcoming = None if self.cuda_graph else steps
        try:
            bucket = split, state, policy, cache, planner.suffix_columns
            self.captured = graphs.CACHE.steps_for(*bucket, upcoming=upcoming)
        except capture.CaptureError as error:
            self.refuse(error)
            return state
        if self.captured is None:
            self.note = f"a capture does not pay for {steps} steps of this shape"
            return state
        self.note = ""
        self.seconds = -self.captured.seconds  # of earlier calls
        return self.captured.state

    def refuse(self, error: capture.CaptureError) -> None:
        """Run eagerly from here on, and log why.

        Raises:
            RuntimeError: cuda_graph=True.
        """
        self.captured, self.seconds = None, 0.0
        if self.cuda_graph:
            raise RuntimeError(f"cuda_graph=True, but the step cannot be captured: {error}") from error
        self.note = f"the step cannot be captured: {error}"
        _log.warning("eager steps, because %s", self.note)

    def run(
        self,
        split: SplitModel,
        policy: Policy,
        cache: KeyValueCache | None,
        planner: Planner,
        passes: list[Pass],
        step: int,
        last: int,
    ) -> int:
        """Replay steps from number `step` of the batch on, which has `last` at most. Returns how many; 0: none is
        captured, so the step is to run eagerly."""
        opening = step == 0 and policy.cache in ("block", "causal")  # it alone runs the prompts
        if self.captured is None or opening:
            return 0
        captured = self.captured
        count = graphs.STEPS_PER_REPLAY if self._replays_several(captured.state, planner, passes, step, last) else 1
        if not self._pays(planner, passes, count, step, last):
            return 0
        try:
            captured.replay(split, policy, cache, passes, count)
        except capture.CaptureError as error:
            graphs.CACHE.forget(captured)
            self.refuse(error)
            return 0
        return count

    def give_back(self) -> None:
        """Let later batches have the captured steps."""
        if self.captured is not None and self.captured.busy:
            self.captured.busy = False
            self.seconds += self.captured.seconds
            self.bytes = self.captured.pool.bytes

    def leave(self, why: str) -> None:
        """Go on without the captured steps: the batch gets another shape."""
        self.give_back()
        self.captured, self.wanted, self.note = None, False, why

    def _replays_several(self, state: State, planner: Planner, passes: list[Pass], step: int, last: int) -> bool:
        """Whether the steps from `step` on are known to run the same passes, and nobody looks at each of them."""
        following = range(step + 1, step + graphs.STEPS_PER_REPLAY)
        if self.watched or last < graphs.WORTH_SEVERAL or following.stop > last:
            return False
        return planner.steps_alike(state, passes, following) == len(following)

    def _pays(self, planner: Planner, passes: list[Pass], count: int, step: int, last: int) -> bool:
        """Whether such steps are captured, or come up often enough to be."""
        if self.cuda_graph or self.captured.has(passes, count):
            return True
        known = planner.steps_alike(self.captured.state, passes, range(step + 1, last))
        return self.captured.note(passes, count) + known >= graphs.WORTH_CAPTURING
