"""One denoising step: some masks of each row's current block become tokens.

A step runs the model's body, the head on the positions that may still be committed, the sampling kernel and the
transfer kernel. The same function runs eagerly and is captured as a CUDA graph: it reads and advances tensors of
the state and never asks the device for a value.

Rows do not know each other. Each is packed to column 0 of the canvas, so position means the row's own position; seeds,
prompts and early stops are its own.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from dllm.fast.head import HeadTap
from dllm_kernels import gumbel_argmax, philox, transfer_tokens

# On a GPU, where the number of masked positions stays on the device, the head has room for a whole block in every row
# and for this many holes besides (positions to which the model committed the mask token itself).
HOLES = 64
# Libraries switch algorithms for very few rows and the last bits with them: the head always sees multiples of this. On
# CPUs a row's bits are the same from 4 rows on (tested), and unused rows cost time.
ROW_MULTIPLE = {"cpu": 16, "cuda": 64}
# Rows of logits that exist at once: what a CPU's cache keeps, and on a GPU few enough to keep memory small.
HEAD_ROWS = {"cpu": 64, "cuda": 1024}


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What stays the same over all steps of a call."""

    mask_id: int
    block_length: int
    window: int  # columns left of a block's end that a step looks at: all that may hold a mask
    temperature: float
    cfg_scale: float
    impl: str


@dataclass(slots=True, kw_only=True)
class State:
    """What changes, B rows of L columns, a window of W columns, S steps a block. All tensors, on the model's device."""

    tokens: Tensor  # int64 [B, L], the canvas
    prompt: Tensor  # bool [B, L], columns that the caller gave
    attention_mask: Tensor | None  # int64 [B, L], None when no row is padded
    start: Tensor  # int64 [B], first column of the window
    stop: Tensor  # int64 [B], column after the current block
    seeds: Tensor  # int64 [B]
    take: Tensor  # int64 [S, B], how many to commit at each step
    order: Tensor | None  # float32 [S, B, W], random confidences in the current block
    step: Tensor  # int64 [1], within the block
    earlier: Tensor  # int64 [1], steps of the blocks before
    waited: Tensor  # int64 [1], masked positions for which the head had no room, all steps
    failed: Tensor  # int64 [B], first step of all at which the row's logits had no finite number, else -1
    proposals: Tensor  # int64 [B, W], of the last step; -1 where there was nothing to propose

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def rows(self, index: Tensor) -> State:
        """The state of some of the rows."""
        kept = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and field.name not in ("step", "earlier", "waited"):
                value = value.index_select(1 if field.name in ("take", "order") else 0, index)
            kept[field.name] = value
        return State(**kept)


def denoise_step(tap: HeadTap, state: State, policy: Policy, clock: Clock) -> None:
    """One step, in place: forward, head on the masked positions of the block, sampling, transfer."""
    clock.start()
    tokens, columns = state.tokens, state.tokens.shape[1]
    bodies = _bodies(tap, state, policy)
    clock.lap("body")

    column = state.start[:, None] + torch.arange(policy.window, device=tokens.device)
    masked = (tokens.gather(1, column) == policy.mask_id) & (column < state.stop[:, None])
    cells, slot, count = _compact(masked, len(tokens) * policy.block_length + HOLES)
    row = cells // policy.window
    position = column.flatten()[cells]
    hidden = [body.flatten(0, 1).index_select(0, row * columns + position) for body in bodies]
    token, confidence = _sample(tap, hidden, state.seeds[row], position, state.step, count, policy)
    state.waited += (count - len(cells)).clamp(min=0)
    listed = masked & (slot < len(cells))
    slot = slot.clamp(max=len(cells) - 1)
    state.proposals.copy_(torch.where(listed, token[slot], -1))
    confidence = confidence[slot]
    if state.order is not None:
        confidence = state.order.index_select(0, state.step)[0]
    clock.lap("head")

    nothing_finite = (listed & (state.proposals < 0)).any(1)
    state.failed.copy_(torch.where(nothing_finite & (state.failed < 0), state.earlier + state.step, state.failed))
    take = state.take.index_select(0, state.step)[0]
    transfer_tokens(
        tokens,
        state.proposals,
        confidence,
        mask_id=policy.mask_id,
        k=take,
        start=state.start,
        impl=policy.impl,
    )
    state.step += 1
    clock.lap("transfer")


def begin_block(state: State, first: Tensor, block: int, policy: Policy) -> None:
    """Move the state to the start of a block; `first` [B] is the first generated column of each row."""
    state.stop.copy_(first + (block + 1) * policy.block_length)
    state.start.copy_((state.stop - policy.window).clamp(min=0))
    state.step.zero_()
    state.earlier.fill_(block * len(state.take))
    if state.order is not None:
        position = state.start[:, None] + torch.arange(policy.window, device=first.device)
        step = torch.arange(len(state.take), device=first.device)
        noise = philox.uniform(state.seeds[:, None], position, step[:, None, None], philox.RANDOM_CONFIDENCE)
        state.order.copy_(noise)


class Clock:
    """Seconds spent in each part of the steps. Off, it does nothing; on a GPU it records events, waiting at the end.

    Example:
        >>> clock = Clock(torch.device("cpu"), on=True)
        >>> clock.start(); clock.lap("body")
        >>> sorted(clock.seconds())
        ['body']
    """

    def __init__(self, device: torch.device, on: bool):
        self.device, self.on = device, on
        self.laps: list[tuple[str, object, object]] = []
        self.last: object = None

    def start(self) -> None:
        if self.on:
            self.last = self._now()

    def lap(self, part: str) -> None:
        if self.on:
            now = self._now()
            self.laps.append((part, self.last, now))
            self.last = now

    def seconds(self) -> dict[str, float]:
        """Total of each part; waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        total: dict[str, float] = {}
        for part, begin, end in self.laps:
            took = begin.elapsed_time(end) / 1e3 if self.device.type == "cuda" else end - begin
            total[part] = total.get(part, 0.0) + took
        return total

    def _now(self) -> object:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event


def _bodies(tap: HeadTap, state: State, policy: Policy) -> list[Tensor]:
    """The body's output [B, L, H] for the canvas and, under guidance, for the canvas with its prompt masked."""
    if policy.cfg_scale == 0:
        return [tap.body(state.tokens, state.attention_mask)]
    blind = torch.where(state.prompt, policy.mask_id, state.tokens)
    mask = state.attention_mask
    both = tap.body(torch.cat([state.tokens, blind]), None if mask is None else torch.cat([mask, mask]))
    return list(both.chunk(2))


def _compact(masked: Tensor, room: int) -> tuple[Tensor, Tensor, Tensor]:
    """The masked cells of [B, W] as a list, without asking the device how many there are.

    Their number does not follow from the schedule: a model may propose the mask token itself, and a position that was
    committed stays a hole. On a CPU the number is at hand and the list is cut to it; on a GPU the list has `room` for
    a number that is exceeded only by models that leave holes everywhere, and what does not fit has to wait.

    Returns:
        cells: int64 [N], flat indices of the masked cells in order, then zeros; N is a multiple of ROW_MULTIPLE.
        slot: int64 [B, W], where each masked cell stands in that list, or would stand; some number for the others.
        count: int64 [1], how many masked cells there are.
    """
    flat = masked.flatten()
    running = flat.cumsum(0)
    count, slot = running[-1:], (running - 1).clamp(min=0)
    if flat.device.type == "cpu":
        room = max(int(count.numpy()[0]), 1)
    room = _round_up(room, ROW_MULTIPLE.get(flat.device.type, ROW_MULTIPLE["cuda"]))
    target = torch.where(flat, slot, room).clamp(max=room)  # all others write to one spare place
    index = torch.arange(len(flat), device=flat.device)
    cells = torch.zeros(room + 1, dtype=torch.int64, device=flat.device).scatter_(0, target, index)[:room]
    return cells, slot.view_as(masked), count


def _sample(
    tap: HeadTap, hidden: list[Tensor], seeds: Tensor, position: Tensor, step: Tensor, count: Tensor, policy: Policy
) -> tuple[Tensor, Tensor]:
    """Sampled token and log-probability [N] of rows of hidden states [N, H], logits never held for all of them."""
    chunk = HEAD_ROWS.get(position.device.type, HEAD_ROWS["cuda"])
    tokens, confidences = [], []
    for begin in range(0, len(position), chunk):
        part = slice(begin, begin + chunk)
        if len(hidden) == 2:
            logits = tap.guided_logits(hidden[0][part], hidden[1][part], policy.cfg_scale)
        else:
            logits = tap.logits(hidden[0][part])
        if logits.dtype == torch.float64:
            logits = logits.float()
        drawn = gumbel_argmax(
            logits,
            temperature=policy.temperature,
            seeds=seeds[part],
            positions=position[part],
            step=step,
            count=count - begin,
            impl=policy.impl,
        )
        tokens.append(drawn.token)
        confidences.append(drawn.log_prob)
    return torch.cat(tokens), torch.cat(confidences)


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
