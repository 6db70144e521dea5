"""THE denoising loop, the host's side: blocks and steps, early stop, live view, eager steps or graph replays."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dllm.fast import graphs
from dllm.fast.denoise import Clock, Policy, State, begin_block, denoise_step
from dllm.fast.head import HeadTap
from dllm.fast.inputs import Plan
from dllm_kernels.transfer_tokens.api import MAX_WINDOW

# On a GPU asking whether rows have finished waits for the device: do so only every so many steps.
POLL_EVERY = {"cpu": 1, "cuda": 8}

_log = logging.getLogger("dllm.fast")


class Step(NamedTuple):
    """What a live view is shown after each denoising step; tensors are copies, in the caller's layout.

    canvas: int64 [B, L], masks where nothing is committed yet.
    tentative: int64 [B, L], the canvas with this step's proposals in place of the masks of the current block.
    block, blocks: index of the current block and how many there are.
    step, steps: index of the step within the block and how many there are.
    """

    canvas: Tensor
    tentative: Tensor
    block: int
    blocks: int
    step: int
    steps: int


class Denoiser:
    """One call's run over a batch.

    Every row is packed to column 0: padding on its left moves behind its end, where no real token sees it. Rows that
    have finished leave the batch (eager) and cost nothing more.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        mask_id: int,
        eos_token_id: int | None,
        impl: str,
        cuda_graph: bool | None,
        on_step: Callable[[Step], object] | None,
        timed: bool,
    ):
        self.model, self.plan, self.eos_token_id = model, plan, eos_token_id
        self.cuda_graph, self.on_step, self.timed = cuda_graph, on_step, timed
        self.policy = Policy(
            mask_id=mask_id,
            block_length=plan.block_length,
            window=min(plan.gen_length, MAX_WINDOW),
            temperature=float(plan.temperature),
            cfg_scale=float(plan.cfg_scale),
            impl=impl,
        )
        self.forwards, self.captured, self.note = 0, None, ""

    @property
    def graphed(self) -> bool:
        """Whether steps are replays of a captured one."""
        return self.captured is not None

    def run(self, prompt: Tensor, lengths: Tensor, seeds: Tensor) -> Tensor:
        """The finished canvas [B, P + gen_length], in the layout of the left-padded `prompt` [B, P].

        Raises:
            RuntimeError: a row's logits had no finite number, or a capture that was insisted on failed.
        """
        batch, device, plan = len(prompt), prompt.device, self.plan
        self.clock = Clock(device, on=self.timed)
        capturing, self.note = graphs.wanted(self.cuda_graph, device, plan.blocks * len(plan.transfers()))
        self.first, self.padding = lengths, prompt.shape[1] - lengths
        masks = prompt.new_full((batch, plan.gen_length), self.policy.mask_id)
        self.canvas = self._pack(torch.cat([prompt, masks], dim=1))
        self.failed = torch.full_like(lengths, -1)
        if batch == 0:
            return self.canvas
        self.active = torch.arange(batch, device=device)
        self.state = self._initial_state(seeds)
        self.tap = HeadTap(self.model, self.canvas[:1, : min(16, self.canvas.shape[1])])
        try:
            if capturing:
                self._capture()
            for block in range(plan.blocks):
                begin_block(self.state, self.first[self.active], block, self.policy)
                self._denoise_block(block)
                if len(self.active) == 0:
                    break
            self._retire(torch.ones_like(self.active, dtype=torch.bool))
            self._raise_if_failed()
            return self._unpack(self.canvas)
        finally:
            if self.captured is not None:
                self.captured.busy = False

    def _denoise_block(self, block: int) -> None:
        transfers = self.plan.transfers()
        poll_every = POLL_EVERY.get(self.canvas.device.type, 1)
        for step, k in enumerate(transfers):
            if k == 0:  # schedule A ends with its zeros: nothing more is committed in this block
                return
            self._step()
            if self.on_step is not None:
                self.on_step(self._view(block, step))
            if self.eos_token_id is not None and ((step + 1) % poll_every == 0 or step + 1 == len(transfers)):
                self._poll()
                if len(self.active) == 0:
                    return

    def _step(self) -> None:
        if self.graphed:
            self.captured.replay()
        else:
            denoise_step(self.tap, self.state, self.policy, self.clock)
        self.forwards += 1

    def _capture(self) -> None:
        """Move the state into a captured step; where that fails, stay eager and say why, unless it was insisted on."""
        began = time.perf_counter()
        begin_block(self.state, self.first, 0, self.policy)
        try:
            self.captured = graphs.CACHE.step_for(self.tap, self.state, self.policy)
        except graphs.CaptureError as error:
            if self.cuda_graph:
                raise RuntimeError(f"cuda_graph=True, but the step cannot be captured: {error}") from error
            self.note = f"the step cannot be captured: {error}"
            _log.warning("eager steps, because %s", self.note)
            return
        self.state = self.captured.state
        self.note = f"graph ready after {time.perf_counter() - began:.3f} s"

    def _poll(self) -> None:
        """Retire rows that have finished. A captured batch keeps its shape and stops when all have."""
        done = finished_rows(self.state.tokens, self.first[self.active], self.policy.mask_id, self.eos_token_id)
        if bool(done.all() if self.graphed else done.any()):
            self._retire(done)

    def _retire(self, done: Tensor) -> None:
        """Take the rows `done` (bool, over the active ones) out of the batch, into the canvas."""
        leaving = done.nonzero().flatten()
        rows = self.active[leaving]
        self.canvas[rows] = self.state.tokens[leaving]
        self.failed[rows] = self.state.failed[leaving]
        staying = (~done).nonzero().flatten()
        self.active = self.active[staying]
        if not self.graphed:
            self.state = self.state.rows(staying)
        if self.eos_token_id is not None:
            stop = self.first[rows] + self.plan.gen_length
            self.canvas[rows] = fill_after_eos(self.canvas[rows], self.first[rows], stop, self.eos_token_id)

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

    def _view(self, block: int, step: int) -> Step:
        canvas, tentative, state = self.canvas.clone(), self.canvas.clone(), self.state
        column = state.start[:, None] + torch.arange(self.policy.window, device=canvas.device)
        current = state.tokens.gather(1, column)
        open_to_change = (current == self.policy.mask_id) & (state.proposals >= 0)
        canvas[self.active] = state.tokens
        tentative[self.active] = state.tokens.scatter(1, column, torch.where(open_to_change, state.proposals, current))
        steps = len(self.plan.transfers())
        return Step(self._unpack(canvas), self._unpack(tentative), block, self.plan.blocks, step, steps)

    def _initial_state(self, seeds: Tensor) -> State:
        plan, tokens = self.plan, self.canvas.clone()
        (batch, columns), device = tokens.shape, tokens.device
        column, transfers = torch.arange(columns, device=device), plan.transfers()
        padded = bool((self.padding > 0).any())
        stop = self.first[:, None] + plan.gen_length
        return State(
            tokens=tokens,
            prompt=column < self.first[:, None],
            attention_mask=(column < stop).long() if padded else None,
            start=self.first.clone(),
            stop=self.first.clone(),
            seeds=seeds,
            take=torch.tensor(transfers, device=device)[:, None].repeat(1, batch),
            order=self._order(len(transfers), batch) if plan.order == "random" else None,
            step=torch.zeros(1, dtype=torch.int64, device=device),
            earlier=torch.zeros(1, dtype=torch.int64, device=device),
            waited=torch.zeros(1, dtype=torch.int64, device=device),
            failed=torch.full_like(seeds, -1),
            proposals=tokens.new_full((batch, self.policy.window), -1),
        )

    def _order(self, steps: int, batch: int) -> Tensor:
        return torch.zeros(steps, batch, self.policy.window, dtype=torch.float32, device=self.canvas.device)

    def _pack(self, canvas: Tensor) -> Tensor:
        return _rotate(canvas, self.padding)

    def _unpack(self, canvas: Tensor) -> Tensor:
        return _rotate(canvas, -self.padding)


def finished_rows(tokens: Tensor, first: Tensor, mask_id: int, eos_token_id: int) -> Tensor:
    """bool [B]: rows whose generated part holds an EOS with no mask left of it: what precedes it is final."""
    generated = torch.arange(tokens.shape[1], device=tokens.device) >= first[:, None]
    is_eos = (tokens == eos_token_id) & generated
    masks_before = ((tokens == mask_id) & generated).cumsum(1)
    return (is_eos & (masks_before == 0)).any(1)


def fill_after_eos(tokens: Tensor, first: Tensor, stop: Tensor, eos_token_id: int) -> Tensor:
    """Tokens with everything after each row's first generated EOS, up to column `stop` [B], replaced by EOS."""
    column = torch.arange(tokens.shape[1], device=tokens.device)
    generated = (column >= first[:, None]) & (column < stop[:, None])
    seen = ((tokens == eos_token_id) & generated).cumsum(1) > 0
    return torch.where(seen & generated, eos_token_id, tokens)


def _rotate(canvas: Tensor, by: Tensor) -> Tensor:
    """Each row b of [B, L] moved `by[b]` columns to the left, around the edge."""
    columns = canvas.shape[1]
    return canvas.gather(1, (torch.arange(columns, device=canvas.device) + by[:, None]) % columns)
