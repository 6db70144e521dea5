"""The beginning of a block beside a "causal" cache: what is final is read as an autoregressive model reads it.

    causal pass    prompt, or the block before  ->  its keys and values, where no position sees a later one
    first token    drawn from the logits of the last final position, as an autoregressive model draws
    block          first token, then masks; denoised as any other block, over the kept keys and values

Keys and values that steps write of a block are those of a canvas that all of its positions see. The next causal pass
replaces them.

Source: `generate` of Nemotron-Labs-Diffusion (arXiv:2607.05722).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dllm.fast.head.split import SplitModel
from dllm.fast.sampling.cache import KeyValueCache
from dllm.fast.sampling.passes import Pass, run_window
from dllm.fast.sampling.propose import ROW_MULTIPLE, propose
from dllm.fast.sampling.state import Policy, State
from dllm_kernels import Candidates, CurrentBlock

# The step in the address of a first token's noise; those of a block's steps count from 0.
FIRST_TOKEN_STEP = -1


def begin_blocks(split: SplitModel, state: State, policy: Policy, cache: KeyValueCache, window: Pass) -> None:
    """Run the causal pass `window`, and write the first token of each row that starts a block, in place.

    A model may choose the mask token: then the position is denoised like the others.
    """
    now = CurrentBlock.of(state.schedule)
    starts = now.active & (state.step == 0)
    hidden, row, origin = run_window(split, state, policy, now, cache, window, starts)
    begin, width = now.begin[row], hidden[0].shape[1]
    last = torch.arange(len(row), device=row.device) * width + begin - 1 - origin
    candidates = _candidates(state, row, begin, last)
    flat = [part.flatten(0, 1) for part in hidden]
    token = propose(split, flat, candidates, policy, state.suppress, state.begin_suppress).token[: len(row)]

    own, wrong = starts[row], token < 0
    chosen = torch.where(wrong, policy.mask_id, token)
    state.tokens[row, begin] = torch.where(own, chosen, state.tokens[row, begin])
    state.failed[row] = torch.where(own & wrong & (state.failed[row] < 0), state.row_steps[row], state.failed[row])
    state.row_steps += starts
    if policy.max_thinking_tokens is not None:
        _end_thinking(state, policy, now, starts)


def _candidates(state: State, row: Tensor, position: Tensor, index: Tensor) -> Candidates:
    """A place for each row [b], in a list as long as those of other steps are."""
    device, count = row.device, len(row)
    multiple = ROW_MULTIPLE.get(device.type, ROW_MULTIPLE["cuda"])

    def listed(values: Tensor) -> Tensor:
        return torch.nn.functional.pad(values, (0, -count % multiple))

    return Candidates(
        index=listed(index),
        position=listed(position),
        seed=listed(state.seeds[row]),
        step=listed(torch.full_like(row, FIRST_TOKEN_STEP)),
        count=torch.full((1,), count, dtype=torch.int64, device=device),
        slot=torch.arange(count, device=device)[:, None],
        temperature=None if state.temperature is None else listed(state.temperature[row]),
    )


def _end_thinking(state: State, policy: Policy, now: CurrentBlock, starts: Tensor) -> None:
    """Write the token that ends the reasoning where the budget of a row ends in the block that it starts, unless the
    row has chosen it before, the block's first token included."""
    column = torch.arange(state.tokens.shape[1], device=state.tokens.device)
    last = state.first + policy.max_thinking_tokens
    ends_here = starts & (now.begin <= last) & (last < now.stop)
    generated = (column >= state.first[:, None]) & (column <= now.begin[:, None])
    ended = ((state.tokens == policy.think_end_id) & generated).any(1)
    written = (column == last[:, None]) & (ends_here & ~ended)[:, None]
    state.tokens.masked_fill_(written, policy.think_end_id)
