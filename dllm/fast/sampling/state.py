"""What the steps of one call share, and what each step changes.

`Policy` holds the settings, which stay the same. `State` holds the tensors, which every step reads and updates in
place.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor

from dllm.fast.sampling.unpadded import RowGroups, cells_of
from dllm_kernels import BlockSchedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The settings of one call: which positions a step may commit, how it samples their tokens, how many it commits.

    mask_id: the mask token.
    window: a step looks at this many columns, up to the end of the row's block. No mask may lie left of them.
    block_length: the most masked positions that a row has in one block.
    temperature, top_k, top_p, cfg_scale: of the sampled tokens, as :func:`dllm_kernels.linear_gumbel_argmax` takes
        them. Where rows have temperatures of their own (:attr:`State.temperature`), the highest.
    top_k_first: top_p counts the mass within the top_k tokens (RND1); else within all tokens (Dream). It matters only
        where both are on.
    greedy: the most probable token is taken whatever the temperature, which then only serves the confidence.
    tempered: confidence is taken from the tempered (and filtered) distribution; else from softmax(logits).
    right_shift: the logits of position p are read at position p - 1; the first position reads its own.
    confidence: what ranks the sampled tokens: "log_prob", "probability", "margin", "neg_entropy", or "random".
    order_temperature: 0 commits the tokens of highest confidence; above 0, positions are drawn without replacement
        from softmax(confidence / order_temperature).
    block_causal: the block size of block-causal attention, in which no position sees a later block; None: every
        position sees all others.
    cache: the KV cache: None, "block", "prefix", "dual" or "causal" (:mod:`dllm.fast.sampling.passes`). With a cache,
        and under `block_causal`, the blocks before the current one are final: masks that are left in them stay.
    rule: what the schedule's amounts mean. "count": so many tokens are committed. "bernoulli": each masked position is
        committed with this probability, independently.
    threshold, factor, budget: with "count" at most one of them, as :func:`dllm_kernels.transfer_tokens` takes them: it
        commits as many tokens as the rule allows, and at least the count.
    edit_threshold: a token that an earlier step committed in this block is replaced if another one is sampled with a
        higher confidence than this; None: committed tokens stay. A block then ends when it has no mask before a step
        and that step replaces nothing, or after `edit_steps` steps without a mask. These steps come at the end of the
        schedule.
    eos_id: a row is finished once this token stands in its generated part with no mask before it; what follows it
        becomes this token.
    eot_id: an end of turn, which finishes a row just so and stays; None: none does. It needs `eos_id`.
    stops_between_blocks: a row is finished no earlier than its block is over.
    think_end_id, max_thinking_tokens: beside a "causal" cache, the token that ends a row's reasoning, and after how
        many generated tokens it is written in if the row has not chosen it by then; None: it never is.
    impl: the kernels' implementation.
    """

    mask_id: int
    window: int
    block_length: int
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    cfg_scale: float = 0.0
    top_k_first: bool = False
    greedy: bool = False
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
    eot_id: int | None = None
    stops_between_blocks: bool = False
    think_end_id: int | None = None
    max_thinking_tokens: int | None = None
    impl: str = "auto"

    @property
    def follows_schedule(self) -> bool:
        """Whether every row takes exactly the steps of its schedule."""
        return not self.adapts and self.eos_id is None

    @property
    def adapts(self) -> bool:
        """Whether a block may end before its last step."""
        bounds = (self.threshold, self.factor, self.budget, self.edit_threshold)
        return self.rule == "bernoulli" or any(bound is not None for bound in bounds)

    @property
    def keeps_shift_column(self) -> bool:
        """Whether the hidden state of the column before a block is stored: under a right shift the block's first token
        is read there, and with these caches that column is not run again."""
        return self.right_shift and self.cache in ("prefix", "dual")

    @property
    def canvases(self) -> int:
        """How many canvases of each row run: the second one is that without the prompt, under guidance."""
        return 1 if self.cfg_scale == 0 else 2

    @property
    def keeps_to_blocks(self) -> bool:
        """Whether a step commits tokens in the row's current block only."""
        return self.block_causal is not None or self.cache is not None


@dataclass(slots=True, kw_only=True)
class State:
    """The tensors that steps read and update, all on the model's device: B rows of L columns, a window of W columns,
    N blocks of at most S steps. The tables are those of a :class:`dllm.fast.sampling.schedule.Schedule`."""

    tokens: Tensor  # int64 [B, L], the canvas
    given: Tensor  # bool [B, L], not generated; masked in the unconditional canvas of guidance
    editable: Tensor | None  # bool [B, L], columns that were generated; None where nothing is replaced
    attention_mask: Tensor | None  # int64 [B, L]; None when no row is padded
    first: Tensor  # int64 [B], first generated column
    length: Tensor  # int64 [B], columns of the row
    seeds: Tensor  # int64 [B]
    blocks: Tensor  # int64 [B], table
    begin: Tensor  # int64 [B, N], table
    stop: Tensor  # int64 [B, N], table
    steps: Tensor  # int64 [B, N], table
    amount: Tensor  # int64 or float32 [B, N, S], table
    block: Tensor  # int64 [B], index of the current block; blocks[b] when row b is finished
    step: Tensor  # int64 [B], index of the step within the block
    unmasked_steps: Tensor  # int64 [B], steps of the current block that began without a mask in it
    row_steps: Tensor  # int64 [B], all steps that the row has taken, and causal passes
    failed: Tensor  # int64 [B], the first step in which a row's logits had no finite number, else -1
    overflow: Tensor  # int64 [1], masked positions for which the head had no room, summed over steps
    start: Tensor  # int64 [B], first column of the last step's window
    proposals: Tensor  # int64 [B, W], tokens that the last step sampled; -1 elsewhere
    confidence: Tensor  # float32 [B, W], their confidence; -inf elsewhere
    temperature: Tensor | None  # float32 [B]; None where that of the policy is every row's
    suppress: Tensor | None  # bool [V], tokens that are never sampled
    begin_suppress: Tensor | None  # bool [V], tokens that are sampled with no confidence
    log_probs: Tensor | None = None  # float32 [B, L], of each token in the step that wrote it, else NaN; None: unknown
    cells: Tensor | None = None  # int64 [T], flat indices of the cells that are no padding, where rows run packed
    row_groups: RowGroups | None = None  # how rows run, where they do not run together; never in captured steps

    @property
    def schedule(self) -> BlockSchedule:
        """The tables, and where each row is in them."""
        return BlockSchedule(self.block, self.step, self.blocks, self.begin, self.stop, self.steps, self.amount)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}

    def copy(self) -> State:
        """The same state in memory of its own."""
        return State(**{field.name: None for field in fields(self)} | {n: t.clone() for n, t in self.tensors().items()})

    def rows(self, index: Tensor) -> State:
        """The state of the rows `index`, int64 [b]."""
        kept = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and field.name not in _OF_THE_BATCH:
                value = value.index_select(0, index)
            kept[field.name] = value
        if self.cells is not None:
            kept["cells"] = cells_of(kept["tokens"], kept["attention_mask"])
        if self.row_groups is not None:
            kept["row_groups"] = self.row_groups.rows(index.tolist())
        return State(**kept)


_OF_THE_BATCH = ("overflow", "suppress", "begin_suppress", "cells", "row_groups")


def ends_row(tokens: Tensor, eos_id: int, eot_id: int | None) -> Tensor:
    """Where tokens are an EOS, or an end of turn if there is one; bool, of their shape."""
    return tokens == eos_id if eot_id is None else (tokens == eos_id) | (tokens == eot_id)
