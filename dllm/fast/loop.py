"""THE denoising loop, the host's side: steps until every row is done, live view, eager steps or graph replays."""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dllm.fast import graphs
from dllm.fast.cache import POOL, KeyValueCache, layout_of
from dllm.fast.denoise import Clock, Policy, State, denoise_step
from dllm.fast.head import HeadTap
from dllm.fast.passes import Pass, plan
from dllm.fast.schedule import Schedule

# On a GPU asking whether rows have finished waits for the device: do so only every so many steps.
POLL_EVERY = {"cpu": 1, "cuda": 8}

_log = logging.getLogger("dllm.fast")


class Step(NamedTuple):
    """What a live view is shown after each denoising step; tensors are copies, in the caller's layout.

    canvas: int64 [B, L], masks where nothing is committed yet.
    tentative: int64 [B, L], the canvas with this step's proposals in place of the masks that it might have committed.
    confidence: float32 [B, L], what ranked this step's proposals (log-probabilities, by default), NaN elsewhere.
    block, blocks: index of the current block and how many there are, of the row that is farthest behind.
    step, steps: index of the step within that block and how many it has at most.
    """

    canvas: Tensor
    tentative: Tensor
    confidence: Tensor
    block: int
    blocks: int
    step: int
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be denoised: B rows of L columns, each packed to column 0.

    tokens: int64 [B, L], the canvases.
    given: bool [B, L], columns that guidance hides.
    first: int64 [B], the first generated column: an EOS counts from there on.
    length: int64 [B], columns that each row has; what is behind them is padding.
    seeds: int64 [B].
    schedule: of the rows.
    suppress, begin_suppress: bool [V], tokens that are never chosen, or chosen without confidence.
    """

    tokens: Tensor
    given: Tensor
    first: Tensor
    length: Tensor
    seeds: Tensor
    schedule: Schedule
    suppress: Tensor | None = None
    begin_suppress: Tensor | None = None


class Denoiser:
    """One call's run over a batch. Rows that have finished leave the batch (eager) and cost nothing more.

    After a run: `forwards` of the model, `spent` (int64 [B], those that each row took part in), `clock`, `graphed` and
    `note` tell what it cost.
    """

    def __init__(
        self,
        model: nn.Module,
        policy: Policy,
        *,
        cuda_graph: bool | None = None,
        on_step: Callable[[Step], object] | None = None,
        timed: bool = False,
    ):
        self.model, self.policy = model, policy
        self.cuda_graph, self.on_step, self.timed = cuda_graph, on_step, timed
        self.forwards, self.captured, self.note = 0, None, ""
        self.cache: KeyValueCache | None = None
        self.cache_bytes = 0

    @property
    def graphed(self) -> bool:
        """Whether steps are replays of a captured one."""
        return self.captured is not None

    def run(self, work: Work) -> Tensor:
        """The finished canvases [B, L], packed as the work's were.

        Raises:
            RuntimeError: a row's logits had no finite number, or a capture that was insisted on failed.
        """
        self.work, self.canvas, device = work, work.tokens.clone(), work.tokens.device
        self.clock = Clock(device, on=self.timed)
        self.failed, self.spent = torch.full_like(work.first, -1), torch.zeros_like(work.first)
        self.active = torch.arange(len(work.tokens), device=device)
        steps = work.schedule.steps.sum(1).tolist()
        most_steps = max(steps, default=0)
        self.polls = not (self.policy.follows_schedule and min(steps, default=0) == most_steps)
        capturing, self.note = graphs.wanted(self.cuda_graph, device, most_steps)
        if most_steps == 0:
            return self.canvas
        if self.policy.cache in ("prefix", "dual") and capturing:
            capturing, self.note = self._uncaptured()
        self.state = self._initial_state()
        _warn_of_dropout(self.model)
        self.tap = HeadTap(self.model, self.canvas[:1, : min(16, self.canvas.shape[1])])
        self.opens = _beginnings(work.schedule) if device.type != "cpu" and self.policy.follows_schedule else None
        self.reach = int((work.length - work.schedule.begin[:, 0]).max()) if self.policy.cache == "prefix" else 0
        try:
            if self.policy.cache is not None:
                self._take_cache()
                if capturing:
                    self._open()
            if capturing:
                self._capture()
            self._denoise(most_steps)
            self._retire(torch.ones_like(self.active, dtype=torch.bool))
            self._raise_if_failed()
            return self.canvas
        finally:
            if self.captured is not None:
                self.captured.busy = False
            if self.cache is not None:
                POOL.give_back(self.cache)
                self.cache = None

    def _denoise(self, most_steps: int) -> None:
        poll_every = POLL_EVERY.get(self.canvas.device.type, 1)
        for n in range(self.forwards, most_steps):
            self._step(self.captured.replay if self.graphed else functools.partial(self._eager, n, self.clock))
            if self.polls and (n + 1) % poll_every == 0 and n + 1 < most_steps:
                self._poll()
                if len(self.active) == 0:
                    return

    def _step(self, run: Callable[[], None]) -> None:
        """One step of all rows, and what the live view is shown of it."""
        progress = self._progress() if self.on_step is not None else None
        run()
        self.forwards += 1
        if progress is not None:
            self.on_step(self._view(*progress))

    def _eager(self, n: int, clock: Clock) -> None:
        denoise_step(self.tap, self.state, self.policy, clock, self.cache, self._passes(n))

    def _take_cache(self) -> None:
        """Memory for the keys and values of all rows, of both canvases under guidance."""
        batch, columns = self.canvas.shape
        rows = batch if self.policy.cfg_scale == 0 else 2 * batch
        self.cache = POOL.take(layout_of(self.tap), rows=rows, columns=columns, device=self.canvas.device)
        self.cache_bytes = self.cache.bytes

    def _uncaptured(self) -> tuple[bool, str]:
        """Which rows begin a block decides what such a step runs: it is not captured."""
        why = f"a step beside the {self.policy.cache} cache runs other columns where a row begins a block"
        if self.cuda_graph:
            raise ValueError(f"cuda_graph must be None or False here, because {why}; got True")
        _log.info("eager steps, because %s", why)
        return False, why

    def _open(self) -> None:
        """The first step of a call beside a block cache, eager: it alone runs the prompts."""
        self._step(functools.partial(self._eager, 0, Clock(self.canvas.device, on=False)))

    def _passes(self, n: int) -> list[Pass]:
        """What step n of the call runs. A CPU reads the state; for a GPU the schedule tells where blocks begin, unless
        they adapt: then the prefix and dual caches read one flag a step."""
        exact, beginning = self.canvas.device.type == "cpu", None
        if self.opens is not None:
            beginning = torch.tensor([n in steps for steps in self.opens])
        elif self.policy.cache is not None and (exact or self.policy.cache != "block"):
            beginning = ((self.state.step == 0) & (self.state.block < self.state.blocks)).cpu()
        return plan(self.state, self.policy, opening=n == 0, beginning=beginning, exact=exact, reach=self.reach)

    def _capture(self) -> None:
        """Move the state into a captured step; where that fails, stay eager and say why, unless it was insisted on."""
        began = time.perf_counter()
        try:
            self.captured = graphs.CACHE.step_for(self.tap, self.state, self.policy, *self._beside())
        except graphs.CaptureError as error:
            if self.cuda_graph:
                raise RuntimeError(f"cuda_graph=True, but the step cannot be captured: {error}") from error
            self.note = f"the step cannot be captured: {error}"
            _log.warning("eager steps, because %s", self.note)
            return
        self.state = self.captured.state
        self.note = f"graph ready after {time.perf_counter() - began:.3f} s"

    def _beside(self) -> tuple[object, ...]:
        """The cache and the passes of a captured step, which must serve all steps: under a block cache its window
        reaches back to the block before."""
        if not self.policy.keeps_to_blocks:
            return ()
        return self.cache, plan(self.state, self.policy, opening=False, beginning=None, exact=False)

    def _poll(self) -> None:
        """Retire rows that have finished. A captured batch keeps its shape and stops when all have."""
        done = self.state.block >= self.state.blocks
        if bool(done.all() if self.graphed else done.any()):
            self._retire(done)

    def _retire(self, done: Tensor) -> None:
        """Take the rows `done` (bool, over the active ones) out of the batch, into the canvas."""
        leaving = done.nonzero().flatten()
        rows = self.active[leaving]
        self.canvas[rows] = self.state.tokens[leaving]
        self.failed[rows] = self.state.failed[leaving]
        self.spent[rows] = self.state.spent[leaving]
        staying = (~done).nonzero().flatten()
        self.active = self.active[staying]
        if not self.graphed:
            self.state = self.state.rows(staying)
            self._keep(staying.tolist(), len(done))
        self.canvas[rows] = self._ended(self.canvas[rows], rows)

    def _keep(self, staying: list[int], batch: int) -> None:
        """Let what goes with the state's rows follow them."""
        if self.opens is not None:
            self.opens = [self.opens[row] for row in staying]
        if self.cache is not None and len(staying) < batch:
            canvases = 1 if self.policy.cfg_scale == 0 else 2
            self.cache.keep([row + i * batch for i in range(canvases) for row in staying])

    def _ended(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """Canvases [N, L] of finished rows, with EOS to the end after the first one."""
        if self.policy.eos_id is None:
            return tokens
        return fill_after_eos(tokens, self.work.first[rows], self.work.length[rows], self.policy.eos_id)

    def _raise_if_failed(self) -> None:
        """What only the device saw, read once at the end."""
        for row, step in enumerate(self.failed.tolist()):
            if step >= 0:
                raise RuntimeError(f"row {row}: no logit was finite at step {step}, so no token could be chosen")
        if waited := int(self.state.waited):
            _log.warning(
                "the model commits its mask token so often that masked positions had to wait for the head %d times; "
                "on a CPU none waits, and the tokens may differ",
                waited,
            )

    def _progress(self) -> tuple[int, int, int, int]:
        """block, blocks, step, steps of the row that is farthest behind, before a step."""
        state = self.state
        left = torch.where(state.block < state.blocks, state.blocks - state.block, -1)
        row = int(left.argmax())
        block = min(int(state.block[row]), state.stop.shape[1] - 1)
        return block, int(state.blocks[row]), int(state.step[row]), int(state.steps[row, block])

    def _view(self, *progress: int) -> Step:
        canvas, tentative, state = self.canvas.clone(), self.canvas.clone(), self.state
        confidence = torch.full(canvas.shape, torch.nan, dtype=torch.float32, device=canvas.device)
        column = state.start[:, None] + torch.arange(self.policy.window, device=canvas.device)
        current = state.tokens.gather(1, column)
        proposed = state.proposals >= 0
        open_to_change = (current == self.policy.mask_id) & proposed
        offered = state.tokens.scatter(1, column, torch.where(open_to_change, state.proposals, current))
        done = (state.block >= state.blocks)[:, None]
        for shown, tokens in ((canvas, state.tokens), (tentative, offered)):
            shown[self.active] = torch.where(done, self._ended(tokens, self.active), tokens)
        ranked = torch.where(proposed, state.confidence, torch.nan)
        confidence[self.active] = confidence[self.active].scatter(1, column, ranked)
        return Step(canvas, tentative, confidence, *progress)

    def _initial_state(self) -> State:
        work, policy = self.work, self.policy
        (batch, columns), device = work.tokens.shape, work.tokens.device
        column = torch.arange(columns, device=device)
        padded = bool((work.length < columns).any())
        zeros = torch.zeros(batch, dtype=torch.int64, device=device)
        return State(
            tokens=work.tokens.clone(),
            given=work.given,
            editable=None if policy.edit_threshold is None else work.tokens == policy.mask_id,
            attention_mask=(column < work.length[:, None]).long() if padded else None,
            first=work.first,
            length=work.length,
            seeds=work.seeds,
            blocks=work.schedule.blocks,
            begin=work.schedule.begin,
            stop=work.schedule.stop,
            steps=work.schedule.steps,
            amount=work.schedule.amount,
            block=zeros.clone(),
            step=zeros.clone(),
            idle=zeros.clone(),
            spent=zeros.clone(),
            failed=zeros - 1,
            waited=torch.zeros(1, dtype=torch.int64, device=device),
            start=zeros.clone(),
            proposals=work.tokens.new_full((batch, policy.window), -1),
            confidence=torch.zeros(batch, policy.window, dtype=torch.float32, device=device),
            suppress=work.suppress,
            begin_suppress=work.begin_suppress,
        )


def _warn_of_dropout(model: nn.Module) -> None:
    """A model is run as it is; one that drops things at random proposes something else each time, whatever the seed."""
    if any(isinstance(part, nn.Dropout) and part.training and part.p > 0 for part in model.modules()):
        _log.warning("%s drops out at random while it samples: call its eval() first", type(model).__name__)


def _beginnings(schedule: Schedule) -> list[set[int]]:
    """At which steps of the call each row begins a block, where rows take all steps that they have."""
    steps, blocks = schedule.steps.tolist(), schedule.blocks.tolist()
    return [{0, *itertools.accumulate(row[: count - 1])} for row, count in zip(steps, blocks, strict=True)]


def fill_after_eos(tokens: Tensor, first: Tensor, stop: Tensor, eos_id: int) -> Tensor:
    """Tokens with everything after each row's first generated EOS, up to column `stop` [B], replaced by EOS."""
    column = torch.arange(tokens.shape[1], device=tokens.device)
    generated = (column >= first[:, None]) & (column < stop[:, None])
    seen = ((tokens == eos_id) & generated).cumsum(1) > 0
    return torch.where(seen & generated, eos_id, tokens)
