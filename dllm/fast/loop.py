"""THE denoising loop, the host's side: steps until every row is done, live view, eager steps or graph replays."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dllm.fast import graphs, trial, unpadded
from dllm.fast.cache import POOL, KeyValueCache, layout_of, said_of
from dllm.fast.denoise import Clock, Policy, State, denoise_step
from dllm.fast.head import HeadTap
from dllm.fast.passes import Pass, plan
from dllm.fast.schedule import Schedule

# On a GPU asking whether rows have finished waits for the device: do so only every so many steps.
POLL_EVERY = {"cpu": 1, "cuda": 8}

_log = logging.getLogger("dllm.fast")


class NoFiniteLogit(FloatingPointError, RuntimeError):
    """A model's logits were NaN or infinite where a token had to be chosen."""


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

    After a run: `forwards` of the model, `spent` (int64 [B], those that each row took part in), `clock`, `graphed`,
    `capture_seconds`, `graph_bytes`, `cache_bytes`, `note` and `rows_note` tell what it cost, `masks_left` how many
    masks are left in the canvases.
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
        self.forwards, self.note, self.rows_note = 0, "", ""
        self.captured: graphs.CapturedSteps | None = None
        self.cache: KeyValueCache | None = None
        self.capture_seconds, self.graph_bytes, self.cache_bytes = 0.0, 0, 0
        self.masks_left = 0

    @property
    def graphed(self) -> bool:
        """Whether steps are replays of captured ones."""
        return self.captured is not None

    def run(self, work: Work) -> Tensor:
        """The finished canvases [B, L], packed as the work's were.

        Raises:
            ValueError: the model is causal, or does not see what a mask of blocks shows it.
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
        self.state = self._initial_state()
        _warn_of_dropout(self.model)
        self.tap = HeadTap(self.model, self.canvas[:1, : min(16, self.canvas.shape[1])])
        self._arrange_rows()
        if self.state.apart is not None and capturing:
            capturing = False
            self._leave_graphs(graphs.CaptureError("rows run in several forwards of a step"))
        # a row that stops early ends; it is never ahead of its schedule
        known = self.policy.cache is not None and not self.policy.adapts
        self.begins = _beginnings(work.schedule) if known else None
        self.opening = int(work.schedule.stop[:, 0].max()) if self.policy.cache == "block" else None
        self.reach = int((work.length - work.schedule.begin[:, 0]).max()) if self.policy.cache == "prefix" else 0
        try:
            if self.policy.cache is not None:
                self._take_cache()
            if capturing:
                self._enter_graphs()
            self._denoise(most_steps)
            self._retire(torch.ones_like(self.active, dtype=torch.bool))
            self._raise_if_failed()
            self._count_masks()
            return self.canvas
        finally:
            if self.captured is not None:
                self.captured.busy = False
                self.capture_seconds += self.captured.seconds
                self.graph_bytes = self.captured.pool.bytes
            if self.cache is not None:
                POOL.give_back(self.cache)
                self.cache = None

    def _arrange_rows(self) -> None:
        """How rows run, by what was found of the model on a few tokens."""
        device = self.canvas.device
        if self.policy.keeps_to_blocks:
            if len(self.canvas) > 1 and (why := trial.why_rows_run_alone(self.model, device)):
                raise ValueError(
                    f"beside a cache, or a mask of blocks, rows run together, and {why}: give one at a time"
                )
            if self.policy.cache is None:  # else its layout is found by such a trial
                trial.check_blocks(self.model, device)
            return
        trial.check_both_sides(self.model, device)
        canvases = 1 if self.policy.cfg_scale == 0 else 2
        as_one, self.state.apart, self.rows_note = unpadded.arranged(
            self.tap, self.work.length.tolist(), canvases, device
        )
        self.state.real = unpadded.real_cells(self.state.attention_mask) if as_one else None

    def _denoise(self, most_steps: int) -> None:
        poll_every = POLL_EVERY.get(self.canvas.device.type, 1)
        while (begun := self.forwards) < most_steps:
            self._step(most_steps)
            if self.polls and self.forwards // poll_every > begun // poll_every and self.forwards < most_steps:
                self._poll()
                if len(self.active) == 0:
                    return

    def _step(self, most_steps: int) -> None:
        """One step of all rows, or one replay of several, and what the live view is shown of it."""
        progress = self._progress() if self.on_step is not None else None
        self.forwards += self._replay(self.forwards, most_steps) or self._eager(self.forwards)
        if progress is not None:
            self.on_step(self._view(*progress))

    def _eager(self, n: int) -> int:
        denoise_step(self.tap, self.state, self.policy, self.clock, self.cache, self._passes(n))
        return 1

    def _replay(self, n: int, most_steps: int) -> int:
        """Replay step n of the call, and maybe some after it: how many; 0 where it is not captured."""
        opening = n == 0 and self.policy.cache == "block"  # it alone runs the prompts
        if not self.graphed or opening:
            return 0
        passes = self._passes(n)
        count = graphs.STEPS_PER_REPLAY if self._alike(passes, n, most_steps) else 1
        try:
            self.captured.replay(self.tap, self.policy, self.cache, passes, count)
        except graphs.CaptureError as error:
            graphs.CACHE.forget(self.captured)
            self._leave_graphs(error)
            return 0
        return count

    def _alike(self, passes: list[Pass], n: int, most_steps: int) -> bool:
        """Whether steps from n on, as many as a replay may have, are known to run the same columns; nobody watches."""
        several = range(n + 1, n + graphs.STEPS_PER_REPLAY)
        if self.on_step is not None or most_steps < graphs.WORTH_SEVERAL or several.stop > most_steps:
            return False
        if self.begins is None:
            return self.policy.cache not in ("prefix", "dual")
        return all(self._passes(m) == passes for m in several)

    def _take_cache(self) -> None:
        """Memory for the keys and values of all rows, of both canvases under guidance."""
        batch, columns = self.canvas.shape
        rows = batch if self.policy.cfg_scale == 0 else 2 * batch
        before = said_of(self.tap) if self.policy.keeps_before else None
        given = dict(rows=rows, columns=columns, device=self.canvas.device, before=before)
        self.cache = POOL.take(layout_of(self.tap), **given)
        self.cache_bytes = self.cache.bytes

    def _passes(self, n: int) -> list[Pass]:
        """What step n of the call runs."""
        exact = self.canvas.device.type == "cpu" and not self.graphed
        opening = self.opening if n == 0 else None
        beginning = self._beginning(n, exact)
        return plan(self.state, self.policy, opening=opening, beginning=beginning, exact=exact, reach=self.reach)

    def _beginning(self, n: int, exact: bool) -> int | None:
        """How many rows begin a block at step n of the call, at most; None where that is not known, and not needed.

        The schedule tells, unless blocks adapt. Then the prefix and dual caches read one number a step; a block cache
        does on a CPU alone: elsewhere a window twice as wide costs less than to wait for a device.
        """
        if self.begins is not None:
            return sum(n in steps for steps in self.begins)
        if self.policy.cache in ("prefix", "dual") or (self.policy.cache == "block" and exact):
            return int(((self.state.step == 0) & (self.state.block < self.state.blocks)).sum())
        return None

    def _enter_graphs(self) -> None:
        """Move the state into that of captured steps."""
        try:
            self.captured = graphs.CACHE.steps_for(self.tap, self.state, self.policy, self.cache, self.reach)
        except graphs.CaptureError as error:
            self._leave_graphs(error)
            return
        self.state, self.note = self.captured.state, ""
        self.capture_seconds = -self.captured.seconds  # until now, by other calls

    def _leave_graphs(self, error: graphs.CaptureError) -> None:
        """Be eager from here on and say why, unless graphs were insisted on."""
        self.captured, self.capture_seconds = None, 0.0
        if self.cuda_graph:
            raise RuntimeError(f"cuda_graph=True, but the step cannot be captured: {error}") from error
        self.note = f"the step cannot be captured: {error}"
        _log.warning("eager steps, because %s", self.note)

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
        if self.begins is not None:
            self.begins = [self.begins[row] for row in staying]
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
                raise NoFiniteLogit(f"row {row}: no logit was finite at step {step}, so no token could be chosen")
        if waited := int(self.state.waited):
            _log.warning(
                "the model commits its mask token so often that masked positions had to wait for the head %d times; "
                "on a CPU none waits, and the tokens may differ",
                waited,
            )

    def _count_masks(self) -> None:
        """Masks that are left in the canvases: tokens that were never committed, or committed as what they were."""
        column = torch.arange(self.canvas.shape[1], device=self.canvas.device)
        left = (self.canvas == self.policy.mask_id) & (column < self.work.length[:, None])
        if masks := int(left.sum()):
            self.masks_left = masks
            _log.warning(
                "%d of the generated tokens are still the mask token, the first in row %d: the model chose it, or the "
                "steps were too few; suppress_tokens of a sampler keeps it from being chosen",
                masks,
                int(left.any(1).int().argmax()),
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
