"""The rows that one call denoises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dllm.fast.sampling.merge import padding_mask
from dllm.fast.sampling.schedule import Schedule
from dllm.fast.sampling.state import Policy, State


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoisingBatch:
    """B rows of L columns, each packed to column 0.

    tokens: int64 [B, L], the canvases.
    given: bool [B, L], the prompt and other columns that were not generated; guidance masks them in its unconditional
        canvas.
    first: int64 [B], the first generated column; an EOS counts from there on.
    length: int64 [B], columns of each row; the rest is padding.
    seeds: int64 [B].
    schedule: of the rows.
    temperature: float32 [B], of each row; None: the policy's.
    suppress, begin_suppress: bool [V], tokens that are never sampled, or sampled with no confidence.
    """

    tokens: Tensor
    given: Tensor
    first: Tensor
    length: Tensor
    seeds: Tensor
    schedule: Schedule
    temperature: Tensor | None = None
    suppress: Tensor | None = None
    begin_suppress: Tensor | None = None

    def rows(self, index: Sequence[int]) -> DenoisingBatch:
        """Some of the rows."""
        chosen = torch.tensor(index, dtype=torch.int64, device=self.tokens.device)
        per_row = ("tokens", "given", "first", "length", "seeds", "temperature")
        values = {name: getattr(self, name) for name in per_row}
        own = {name: None if value is None else value[chosen] for name, value in values.items()}
        return replace(self, schedule=self.schedule.rows(chosen), **own)

    def state(self, policy: Policy) -> State:
        """The state before the first step. Padding holds the mask token, so that no end of text stands in it."""
        (batch, columns), device = self.tokens.shape, self.tokens.device
        window, mask = min(policy.window, max(columns, 1)), padding_mask(self.length, columns)
        tokens = self.tokens if mask is None else self.tokens.masked_fill(mask == 0, policy.mask_id)
        zeros = torch.zeros(batch, dtype=torch.int64, device=device)
        return State(
            tokens=tokens.clone(),
            given=self.given,
            editable=None if policy.edit_threshold is None else self.tokens == policy.mask_id,
            attention_mask=mask,
            first=self.first,
            length=self.length,
            seeds=self.seeds,
            blocks=self.schedule.blocks,
            begin=self.schedule.begin,
            stop=self.schedule.stop,
            steps=self.schedule.steps,
            amount=self.schedule.amount,
            block=zeros.clone(),
            step=zeros.clone(),
            unmasked_steps=zeros.clone(),
            row_steps=zeros.clone(),
            failed=zeros - 1,
            overflow=torch.zeros(1, dtype=torch.int64, device=device),
            start=zeros.clone(),
            proposals=self.tokens.new_full((batch, window), -1),
            confidence=torch.zeros(batch, window, dtype=torch.float32, device=device),
            temperature=self.temperature,
            suppress=self.suppress,
            begin_suppress=self.begin_suppress,
        )
