"""One denoising step: some masks of each row's current block become tokens.

A step runs the model's body, the head on the positions that may still be committed, the sampling kernel and the
transfer kernel, and moves every row on in its schedule. The same function runs eagerly and is captured as a CUDA graph:
it reads and advances tensors of the state and never asks the device for a value.

Rows do not know each other. Each is packed to column 0 of the canvas, so position means the row's own position; seeds,
prompts, blocks, steps and early stops are its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from dllm.fast.cache import KeyValueCache
from dllm.fast.head import HeadTap
from dllm.fast.passes import Now, Pass, canvas, run
from dllm.fast.propose import ROW_MULTIPLE, Listed, propose
from dllm.fast.unpadded import Apart, real_cells
from dllm_kernels import transfer_tokens

# On a GPU, where the number of masked positions stays on the device, the head has room for a whole block in every row
# and for this many holes besides (positions to which the model committed the mask token itself).
HOLES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What stays the same over all steps of a call: which positions are eligible, what they are offered, how many of
    them take it.

    mask_id: the mask token.
    window: columns left of a block's end that a step looks at, all that may hold a mask.
    block_length: masked positions that a row can have in a block, at most.
    temperature, top_k, top_p, cfg_scale: of the proposals, as :func:`dllm_kernels.linear_gumbel_argmax` takes them.
    tempered: whether confidence is that of the tempered (and filtered) distribution instead of softmax(logits).
    right_shift: whether the logits of a position are read at the one before it; the first position reads its own.
    confidence: what ranks the proposals: "log_prob", "probability", "margin", "neg_entropy", or "random".
    order_temperature: above 0, positions are drawn without replacement from softmax(confidence / order_temperature)
        instead of taken in order of confidence.
    block_causal: size of the blocks beyond which no position sees a later one; None: every position sees all.
    cache: None, "block", "prefix" or "dual": what a step runs, see :mod:`dllm.fast.passes`. Then, and under
        `block_causal`, masks left of a row's block stay: its earlier blocks are final.
    rule: what the schedule's amounts are: "count", so many tokens are committed; "coin", each masked position is, by
        itself, with that probability.
    threshold, factor, budget: with "count" at most one of them, as :func:`dllm_kernels.transfer_tokens` takes them: a
        rule that commits as many as it allows, and at least the count. A block that adapts, by one of these or by
        coins, ends when nothing in it is masked any more; any other after its steps.
    edit_threshold: a token of the block that was committed in an earlier step is replaced by a proposal of a higher
        confidence than this; None: what is committed stays. A block is then over when it holds no mask before a step
        and the step replaces nothing, or after `edit_steps` steps without a mask; these come on top of the schedule's,
        whose last steps they are.
    eos_id: a row is finished once this token stands in its generated part with no mask left of it.
    stops_between_blocks: a row is finished no earlier than its block is over.
    impl: the kernels.
    """

    mask_id: int
    window: int
    block_length: int
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    cfg_scale: float = 0.0
    tempered: bool = False
    right_shift: bool = False
    confidence: str = "log_prob"
    order_temperature: float = 0.0
    block_causal: int | None = None
    cache: str | None = None
    rule: str = "count"
    threshold: float | None = None
    factor: float | None = None
    budget: float | None = None
    edit_threshold: float | None = None
    edit_steps: int = 0
    eos_id: int | None = None
    stops_between_blocks: bool = False
    impl: str = "auto"

    @property
    def follows_schedule(self) -> bool:
        """Whether a row takes exactly the steps that its schedule has."""
        return not self.adapts and self.eos_id is None

    @property
    def adapts(self) -> bool:
        """Whether a block may be done before its last step."""
        bounds = (self.threshold, self.factor, self.budget, self.edit_threshold)
        return self.rule == "coin" or any(bound is not None for bound in bounds)

    @property
    def keeps_before(self) -> bool:
        """Whether what is said of the column before a block is kept, as that column does not run along."""
        return self.right_shift and self.cache in ("prefix", "dual")

    @property
    def keeps_to_blocks(self) -> bool:
        """Whether a step looks at the columns of the row's block only."""
        return self.block_causal is not None or self.cache is not None


@dataclass(slots=True, kw_only=True)
class State:
    """What changes, B rows of L columns, a window of W columns, N blocks of S steps. All tensors, on the model's
    device. The tables are a :class:`dllm.fast.schedule.Schedule`."""

    tokens: Tensor  # int64 [B, L], the canvas
    given: Tensor  # bool [B, L], columns that guidance hides
    editable: Tensor | None  # bool [B, L], columns that were generated; None where nothing is replaced
    attention_mask: Tensor | None  # int64 [B, L], None when no row is padded
    first: Tensor  # int64 [B], first generated column
    length: Tensor  # int64 [B], columns of the row
    seeds: Tensor  # int64 [B]
    blocks: Tensor  # int64 [B], table
    begin: Tensor  # int64 [B, N], table
    stop: Tensor  # int64 [B, N], table
    steps: Tensor  # int64 [B, N], table
    amount: Tensor  # int64 or float32 [B, N, S], table
    block: Tensor  # int64 [B], the current block; blocks[b] when row b has finished
    step: Tensor  # int64 [B], within the block
    idle: Tensor  # int64 [B], steps that the row's block has taken part in without a mask
    spent: Tensor  # int64 [B], steps that the row has taken part in
    failed: Tensor  # int64 [B], the first of those at which the row's logits had no finite number, else -1
    waited: Tensor  # int64 [1], masked positions for which the head had no room, all steps
    start: Tensor  # int64 [B], first column of the window of the last step
    proposals: Tensor  # int64 [B, W], of the last step; -1 where there was nothing to propose
    confidence: Tensor  # float32 [B, W], of the last step's proposals
    suppress: Tensor | None  # bool [V], tokens that are never proposed
    begin_suppress: Tensor | None  # bool [V], tokens that may be proposed, with no confidence
    real: Tensor | None = None  # int64 [T], the cells that are no padding, where rows run without it
    apart: Apart | None = None  # how rows run, where they do not run together; never in captured steps

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}

    def copy(self) -> State:
        """The same on memory of its own."""
        return State(**{field.name: None for field in fields(self)} | {n: t.clone() for n, t in self.tensors().items()})

    def rows(self, index: Tensor) -> State:
        """The state of some of the rows."""
        kept = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and field.name not in ("waited", "suppress", "begin_suppress", "real", "apart"):
                value = value.index_select(0, index)
            kept[field.name] = value
        if self.real is not None:
            kept["real"] = real_cells(kept["attention_mask"])
        if self.apart is not None:
            kept["apart"] = self.apart.rows(index.tolist())
        return State(**kept)


def denoise_step(
    tap: HeadTap,
    state: State,
    policy: Policy,
    clock: Clock,
    cache: KeyValueCache | None = None,
    passes: Sequence[Pass] | None = None,
) -> None:
    """One step, in place: forward, head on the masked positions of the blocks, sampling, transfer, advance.

    `passes` say which columns the forward runs (:func:`dllm.fast.passes.plan`); None: the canvas. Rows that have
    finished stay as they are, in the cache too, but for what the live view reads (`start`, `proposals`, `confidence`).
    """
    clock.start()
    tokens, now = state.tokens, Now.of(state)
    bodies = run(tap, state, policy, now, cache, passes or canvas(state))
    clock.lap("body")

    state.start.copy_((now.stop - policy.window).clamp(min=0))
    column = state.start[:, None] + torch.arange(policy.window, device=tokens.device)
    in_block = (column >= now.begin[:, None]) & (column < now.stop[:, None])
    current = tokens.gather(1, column)
    masked = (current == policy.mask_id) & (in_block if policy.keeps_to_blocks else column < now.stop[:, None])
    asked = masked if policy.edit_threshold is None else masked | (in_block & state.editable.gather(1, column))
    cells, slot, count = _compact(asked, len(tokens) * policy.block_length + HOLES)
    row = cells // policy.window
    listed = Listed(row, column.flatten()[cells], state.seeds[row], state.step[row], count)
    token, confidence, coin = propose(tap, bodies, listed, policy, state.suppress, state.begin_suppress)
    state.waited += (count - len(cells)).clamp(min=0)
    offered = asked & (slot < len(cells))
    slot = slot.clamp(max=len(cells) - 1)
    state.proposals.copy_(torch.where(offered, token[slot], -1))
    state.confidence.copy_(confidence[slot])
    nothing_finite = (offered & (state.proposals < 0)).any(1)
    state.failed.copy_(torch.where(nothing_finite & (state.failed < 0), state.spent, state.failed))
    clock.lap("head")

    step = state.step.clamp(max=state.amount.shape[2] - 1)[:, None, None]
    block = now.block[:, None, None].expand(-1, -1, state.amount.shape[2])
    amount = state.amount.gather(1, block).gather(2, step).flatten()
    transfer_tokens(
        tokens,
        state.proposals,
        state.confidence,
        mask_id=policy.mask_id,
        k=_take(amount, offered & masked, coin, slot, policy),
        threshold=policy.threshold,
        factor=policy.factor,
        budget=policy.budget,
        start=state.start,
        impl=policy.impl,
    )
    over = state.step + 1 >= now.steps
    if policy.edit_threshold is not None:
        over |= _edit(state, policy, now, column, current, masked, offered)
    elif policy.adapts:
        over |= ~((tokens.gather(1, column) == policy.mask_id) & in_block).any(1)
    _advance(state, policy, now.active, now.active & over)
    clock.lap("transfer")


def finished_rows(tokens: Tensor, first: Tensor, mask_id: int, eos_id: int) -> Tensor:
    """bool [B]: rows whose generated part holds an EOS with no mask left of it: what precedes it is final."""
    generated = torch.arange(tokens.shape[1], device=tokens.device) >= first[:, None]
    is_eos = (tokens == eos_id) & generated
    masks_before = ((tokens == mask_id) & generated).cumsum(1)
    return (is_eos & (masks_before == 0)).any(1)


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


def _take(amount: Tensor, offered: Tensor, coin: Tensor | None, slot: Tensor, policy: Policy) -> Tensor:
    """How many tokens each row commits, int64 [B], from the schedule's number for this step [B]."""
    if policy.rule == "count":
        return amount
    return (offered & (coin[slot] < amount[:, None])).sum(1)


def _edit(
    state: State,
    policy: Policy,
    now: Now,
    column: Tensor,
    before: Tensor,
    masked: Tensor,
    offered: Tensor,
) -> Tensor:
    """Replace what was committed in earlier steps where the model is sure of another token now. Returns bool [B], the
    rows whose block is over by that: nothing was left to fill and nothing replaced, or masks are left and no steps.

    `before` int64 [B, W] holds the tokens of the columns before the step. The mask token replaces nothing.
    """
    other = (state.proposals != before) & (state.proposals != policy.mask_id)
    edited = offered & ~masked & other & (state.confidence > policy.edit_threshold)
    after = state.tokens.gather(1, column)
    state.tokens.scatter_(1, column, torch.where(edited, state.proposals, after))
    full = now.active & ~masked.any(1)
    state.idle += full
    given_up = (masked & (after == policy.mask_id)).any(1) & (state.step + 1 >= now.steps - policy.edit_steps)
    return given_up | (full & (~edited.any(1) | (state.idle >= policy.edit_steps)))


def _advance(state: State, policy: Policy, active: Tensor, over: Tensor) -> None:
    """Move every row on: to its next step, to its next block when this one is over, to its end after an EOS."""
    state.spent += active
    state.step += active
    state.block += over
    state.step.masked_fill_(over, 0)
    state.idle.masked_fill_(over, 0)
    if policy.eos_id is not None:
        finished = finished_rows(state.tokens, state.first, policy.mask_id, policy.eos_id)
        if policy.stops_between_blocks:
            finished &= over
        state.block.copy_(torch.where(finished, state.blocks, state.block))


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
