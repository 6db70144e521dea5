"""The denoising loop on the host: it runs steps until every row is finished, eagerly or as graph replays."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dllm.fast import capture, visibility
from dllm.fast.compiled import decision
from dllm.fast.head.split import SplitModel
from dllm.fast.model import block_size_of
from dllm.fast.sampling import graphs, live, unpadded
from dllm.fast.sampling.batch import DenoisingBatch
from dllm.fast.sampling.cache import SPARE, KeyValueCache
from dllm.fast.sampling.cache_layout import find_layout
from dllm.fast.sampling.clock import Clock
from dllm.fast.sampling.ends import EarlyEnds, fill_after_end
from dllm.fast.sampling.live import Step
from dllm.fast.sampling.passes import Pass
from dllm.fast.sampling.plan import Planner
from dllm.fast.sampling.state import Policy
from dllm.fast.sampling.step import denoise_step

# To ask a GPU whether rows are finished means to wait for it: do so every so many steps only.
POLL_EVERY = {"cpu": 1, "cuda": 8}

_log = logging.getLogger("dllm.fast")


class NoFiniteLogit(FloatingPointError, RuntimeError):
    """A model's logits were NaN or infinite where a token had to be chosen."""


class Denoiser:
    """One call: it denoises a batch of rows. Finished rows leave the batch (eager) and cost nothing more.

    After :meth:`run`:

    forwards: how often the model ran.
    row_steps: int64 [B], how many of these each row took part in.
    clock: seconds of the parts of a step, with `timed`.
    graphed: whether steps were graph replays; `note` says why not.
    rows_note: how rows of unequal length ran.
    compiling: whether the body runs compiled, and why.
    capture_seconds, graph_bytes, cache_bytes: what graphs and KV cache cost.
    masks_left: masks that are left in the canvases.

    Args:
        model: as :func:`dllm.fast.generate` takes it.
        policy: the settings.
        cuda_graph: None captures steps as CUDA graphs where that works and pays, True insists, False never does.
        compile_body: None compiles the model's body where that works and pays, True insists, False never does.
        on_step: called with a :class:`Step` after each step.
        timed: whether the parts of each step are timed.
        early_ends: asked, where the host looks for finished rows, which others end; None: no others do.
    """

    def __init__(
        self,
        model: nn.Module,
        policy: Policy,
        *,
        cuda_graph: bool | None = None,
        compile_body: bool | None = None,
        on_step: Callable[[Step], object] | None = None,
        timed: bool = False,
        early_ends: EarlyEnds | None = None,
    ):
        self.model, self.policy = model, policy
        self.cuda_graph, self.compile_body = cuda_graph, compile_body
        self.on_step, self.timed, self.early_ends = on_step, timed, early_ends
        self.forwards, self.note, self.rows_note, self.compiling = 0, "", "", decision.EAGER
        self.captured: graphs.CapturedSteps | None = None
        self.cache: KeyValueCache | None = None
        self.capture_seconds, self.graph_bytes, self.cache_bytes = 0.0, 0, 0
        self.masks_left = 0

    @property
    def graphed(self) -> bool:
        """Whether steps are replays of captured ones."""
        return self.captured is not None

    def run(self, batch: DenoisingBatch) -> Tensor:
        """Denoise a batch.

        Returns:
            The finished canvases, int64 [B, L], packed as the batch's were.

        Raises:
            ValueError: the model is causal, does not follow a block-causal mask, or attends by blocks and the policy
                does not.
            NoFiniteLogit: a row's logits had no finite number; a FloatingPointError and a RuntimeError.
            RuntimeError: cuda_graph=True and the step cannot be captured, or compile_body=True and the body cannot be
                compiled.
        """
        self.batch, self.canvas, device = batch, batch.tokens.clone(), batch.tokens.device
        self.clock = Clock(device, on=self.timed)
        self.failed, self.row_steps = torch.full_like(batch.first, -1), torch.zeros_like(batch.first)
        self.active = torch.arange(len(batch.tokens), device=device)
        steps = batch.schedule.steps.sum(1).tolist()
        most_steps = max(steps, default=0)
        as_scheduled = self.policy.follows_schedule and self.early_ends is None
        self.rows_end_apart = not (as_scheduled and min(steps, default=0) == most_steps)
        capturing, self.note = capture.wanted(self.cuda_graph, device)
        if most_steps == 0:
            return self.canvas
        self.state = batch.state(self.policy)
        _warn_of_dropout(self.model)
        self.split = SplitModel(self.model, self.canvas[:1, : min(16, self.canvas.shape[1])])
        self._lay_out_rows()
        if self.state.row_groups is not None and capturing:
            capturing = False
            self._leave_graphs(capture.CaptureError("rows run in several forwards of a step"))
        self.planner = Planner(self.policy, self.state, batch.schedule)
        try:
            if self.policy.cache is not None:
                self._take_cache()
            self._decide_to_compile(most_steps)
            if capturing:
                self._enter_graphs(most_steps)
            self._denoise(most_steps)
            self._retire(torch.ones_like(self.active, dtype=torch.bool))
            self._raise_if_failed()
            self._count_masks()
            return self.canvas
        finally:
            self._give_back()

    @property
    def _canvases(self) -> int:
        return 1 if self.policy.cfg_scale == 0 else 2

    def _lay_out_rows(self) -> None:
        """Check what the model sees, on a few tokens, and choose how rows run."""
        device = self.canvas.device
        if self.policy.block_causal is None and (size := block_size_of(self.model)) is not None:
            raise ValueError(
                f"{type(self.model).__name__} attends block by block, {size} tokens each, and this sampler attends to "
                "whole rows: take LLaDA2Sampler or LLaDA21Sampler with cache=True, or BD3LMSampler"
            )
        if self.policy.keeps_to_blocks:
            if len(self.canvas) > 1 and (why := visibility.why_not_batched(self.model, device)):
                raise ValueError(f"with a cache or block-causal attention rows run together, and {why}: give one row")
            if self.policy.cache is None:  # else it is checked where the cache's layout is found
                visibility.check_block_mask(self.model, device)
            return
        visibility.check_bidirectional(self.model, device)
        lengths = self.batch.length.tolist()
        packed, self.state.row_groups, self.rows_note = unpadded.row_layout(self.split, lengths, self._canvases, device)
        self.state.cells = unpadded.real_cells(self.state.attention_mask) if packed else None

    def _take_cache(self) -> None:
        """Take a KV cache for all rows, of both canvases under guidance."""
        batch, columns = self.canvas.shape
        layout, hidden = find_layout(self.split)
        self.cache = SPARE.take(
            layout,
            rows=self._canvases * batch,
            columns=columns,
            device=self.canvas.device,
            shift_column=hidden if self.policy.keeps_shift_column else None,
        )
        self.cache_bytes = self.cache.bytes

    def _decide_to_compile(self, most_steps: int) -> None:
        """Let the body run compiled where that is asked for, or pays; after all that is found out on a few tokens."""
        columns = self.canvas.shape[1] if self.cache is None else self.policy.window
        tokens = self._canvases * len(self.canvas) * columns
        how = dict(forwards=most_steps, tokens=tokens, device=self.canvas.device)
        self.compiling = decision.decide(self.model, self.compile_body, **how)
        self.split.body_context = self.compiling.context

    def _give_back(self) -> None:
        """Let later calls have the graphs and the cache."""
        if self.captured is not None:
            self.captured.busy = False
            self.capture_seconds += self.captured.seconds
            self.graph_bytes = self.captured.pool.bytes
        if self.cache is not None:
            SPARE.give_back(self.cache)
            self.cache = None

    def _denoise(self, most_steps: int) -> None:
        while self.forwards < most_steps:
            if self._step(most_steps):
                self._poll()
                if len(self.active) == 0:
                    return

    def _step(self, most_steps: int) -> bool:
        """Run one step, or one replay of several, and show it to the live view. Returns whether to retire rows now."""
        progress = live.Progress.of(self.state) if self.on_step is not None else None
        before = self.forwards
        self.forwards += self._replay(before, most_steps) or self._eager(before)
        polls = self._polls(before, most_steps)
        if polls and self.early_ends is not None:
            self.early_ends.end_rows(self.state, self.active)
        if progress is not None:
            shown = live.show(self.canvas, self.state, self.policy, self.active, progress, self._ended)
            self.on_step(shown)
        return polls

    def _polls(self, before: int, most_steps: int) -> bool:
        """Whether the host looks for finished rows after the steps from step `before` of the call on."""
        every = POLL_EVERY.get(self.canvas.device.type, 1)
        return self.rows_end_apart and self.forwards // every > before // every and self.forwards < most_steps

    def _eager(self, n: int) -> int:
        """Run step n of the call. Returns 1."""
        denoise_step(self.split, self.state, self.policy, self.clock, self.cache, self._passes(n))
        return 1

    def _replay(self, n: int, most_steps: int) -> int:
        """Replay steps from step n of the call on. Returns how many; 0 where step n is not captured."""
        opening = n == 0 and self.policy.cache == "block"  # it alone runs the prompts
        if not self.graphed or opening:
            return 0
        passes = self._passes(n)
        count = graphs.STEPS_PER_REPLAY if self._replays_several(passes, n, most_steps) else 1
        if not self._pays(passes, count, n, most_steps):
            return 0
        try:
            self.captured.replay(self.split, self.policy, self.cache, passes, count)
        except capture.CaptureError as error:
            graphs.CACHE.forget(self.captured)
            self._leave_graphs(error)
            return 0
        return count

    def _replays_several(self, passes: list[Pass], n: int, most_steps: int) -> bool:
        """Whether the steps from n on are known to run the same passes, and no live view wants each of them."""
        following = range(n + 1, n + graphs.STEPS_PER_REPLAY)
        if self.on_step is not None or most_steps < graphs.WORTH_SEVERAL or following.stop > most_steps:
            return False
        return self.planner.steps_alike(self.state, passes, following) == len(following)

    def _pays(self, passes: list[Pass], count: int, n: int, most_steps: int) -> bool:
        """Whether such steps, from step n of the call on, are captured, or come up often enough to be."""
        if self.cuda_graph or self.captured.has(passes, count):
            return True
        known = self.planner.steps_alike(self.state, passes, range(n + 1, most_steps))
        return self.captured.note(passes, count) + known >= graphs.WORTH_CAPTURING

    def _passes(self, n: int) -> list[Pass]:
        """The passes of step n of the call."""
        exact = self.canvas.device.type == "cpu" and not self.graphed
        return self.planner.passes(self.state, n, exact=exact)

    def _enter_graphs(self, most_steps: int) -> None:
        """Copy the state into that of captured steps, and go on with it, where that pays."""
        upcoming = None if self.cuda_graph else most_steps
        bucket = self.split, self.state, self.policy, self.cache, self.planner.suffix_columns
        try:
            self.captured = graphs.CACHE.steps_for(*bucket, upcoming=upcoming)
        except capture.CaptureError as error:
            self._leave_graphs(error)
            return
        if self.captured is None:
            self.note = f"a capture does not pay for {most_steps} steps of this shape"
            return
        self.state, self.note = self.captured.state, ""
        self.capture_seconds = -self.captured.seconds  # of earlier calls

    def _leave_graphs(self, error: capture.CaptureError) -> None:
        """Run eagerly from here on, and log why.

        Raises:
            RuntimeError: cuda_graph=True.
        """
        self.captured, self.capture_seconds = None, 0.0
        if self.cuda_graph:
            raise RuntimeError(f"cuda_graph=True, but the step cannot be captured: {error}") from error
        self.note = f"the step cannot be captured: {error}"
        _log.warning("eager steps, because %s", self.note)

    def _poll(self) -> None:
        """Retire finished rows. A captured batch keeps its shape until all rows are finished."""
        done = self.state.block >= self.state.blocks
        if bool(done.all() if self.graphed else done.any()):
            self._retire(done)

    def _retire(self, done: Tensor) -> None:
        """Move the rows `done` (bool, of the active ones) from the batch into the canvas."""
        leaving = done.nonzero().flatten()
        rows = self.active[leaving]
        self.canvas[rows] = self.state.tokens[leaving]
        self.failed[rows] = self.state.failed[leaving]
        self.row_steps[rows] = self.state.row_steps[leaving]
        staying = (~done).nonzero().flatten()
        self.active = self.active[staying]
        if not self.graphed:
            self.state = self.state.rows(staying)
            self.planner.keep(staying.tolist())
            if self.cache is not None and len(staying) < len(done):
                kept = [row + i * len(done) for i in range(self._canvases) for row in staying.tolist()]
                self.cache.keep(kept)
        self.canvas[rows] = self._ended(self.canvas[rows], rows)

    def _ended(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """Canvases [N, L] of finished rows, with EOS after the first EOS or end of turn."""
        if self.policy.eos_id is None:
            return tokens
        return fill_after_end(
            tokens, self.batch.first[rows], self.batch.length[rows], self.policy.eos_id, self.policy.eot_id
        )

    def _raise_if_failed(self) -> None:
        """Read, once, what only the device could see."""
        for row, step in enumerate(self.failed.tolist()):
            if step >= 0:
                raise NoFiniteLogit(f"row {row}: no logit was finite at step {step}, so no token could be chosen")
        if overflow := int(self.state.overflow):
            _log.warning(
                "the model chooses its mask token so often that masked positions had to wait for the head %d times; "
                "on a CPU none waits, and the tokens may differ",
                overflow,
            )

    def _count_masks(self) -> None:
        """Count the masks left in the canvases: the model chose the mask token, or steps were too few."""
        column = torch.arange(self.canvas.shape[1], device=self.canvas.device)
        left = (self.canvas == self.policy.mask_id) & (column < self.batch.length[:, None])
        if masks := int(left.sum()):
            self.masks_left = masks
            _log.warning(
                "%d of the generated tokens are still the mask token, the first in row %d: the model chose it, or the "
                "steps were too few; suppress_tokens of a sampler keeps it from being chosen",
                masks,
                int(left.any(1).int().argmax()),
            )


def _warn_of_dropout(model: nn.Module) -> None:
    """Warn if dropout is active: the model then samples other tokens in each call, whatever the seed."""
    if any(isinstance(part, nn.Dropout) and part.training and part.p > 0 for part in model.modules()):
        _log.warning("dropout of %s is active while it samples: call its eval() first", type(model).__name__)
