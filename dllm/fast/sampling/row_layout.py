"""How the rows of a batch run: what the model must offer, and which rows share a forward."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dllm.fast import visibility
from dllm.fast.head.split import SplitModel
from dllm.fast.model import block_size_of
from dllm.fast.sampling import unpadded
from dllm.fast.sampling.state import Policy
from dllm.fast.sampling.unpadded import RowGroups

_log = logging.getLogger("dllm.fast")


def lay_out(
    split: SplitModel, policy: Policy, rows: Sequence[tuple[int, int]], device: torch.device, *, by_width: bool
) -> tuple[Tensor | None, RowGroups | None, str]:
    """Check what a model sees, on a few tokens, and choose how rows run.

    Args:
        split: of the model.
        policy: of the rows.
        rows: length and width of each.
        device: of the tokens.
        by_width: rows of another width run in another forward, where padding is hidden by a mask.

    Returns:
        The fields `cells` and `row_groups` of the state, and what to tell the user.

    Raises:
        ValueError: the model is causal, does not follow a block-causal mask, or attends by blocks and the policy does
            not.
    """
    if policy.block_causal is None and (size := block_size_of(split.model)) is not None:
        raise ValueError(
            f"{type(split.model).__name__} attends block by block, {size} tokens each, and this sampler attends to "
            "whole rows: take LLaDA2Sampler or LLaDA21Sampler with cache=True, or BD3LMSampler"
        )
    if policy.keeps_to_blocks:
        if len(rows) > 1 and (why := visibility.why_not_batched(split.model, device)):
            raise ValueError(f"with a cache or block-causal attention rows run together, and {why}: give one row")
        if policy.cache is None:  # else it is checked where the cache's layout is found
            visibility.check_block_mask(split.model, device)
        return None, None, ""
    visibility.check_bidirectional(split.model, device)
    lengths, widths = zip(*rows, strict=True)
    packed, groups, note = unpadded.row_layout(split, list(lengths), policy.canvases, device)
    if packed:
        column = torch.arange(max(widths), device=device)
        real = column < torch.tensor(lengths, device=device)[:, None]
        return unpadded.real_cells(real), None, note
    if groups is None and by_width:
        groups = RowGroups(widths, one_by_one=False, padded=True)
    return None, groups, note


def warn_of_dropout(model: nn.Module) -> None:
    """Warn if dropout is active: the model then samples other tokens in each call, whatever the seed."""
    if any(isinstance(part, nn.Dropout) and part.training and part.p > 0 for part in model.modules()):
        _log.warning("dropout of %s is active while it samples: call its eval() first", type(model).__name__)


def rounded_up(length: int, multiple: int, limit: int | None) -> int:
    """The width of a row: the next multiple above its length, so that it has padding; at most the model's positions.

    Attention may run another kernel beside a mask that hides something, so a row that fills its width would have other
    last bits alone than beside shorter rows.

    Example:
        >>> rounded_up(31, 32, None), rounded_up(32, 32, None), rounded_up(32, 32, 50)
        (32, 64, 50)
    """
    width = (length // multiple + 1) * multiple
    return width if limit is None else max(length, min(width, limit))
