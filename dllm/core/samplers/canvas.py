"""Token rows of a sampler: read from its inputs, checked against the model, stacked to a canvas [B, L]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dllm.fast.head.split import output_head
from dllm.fast.model import check_positions, find_mask_id, input_embedding
from dllm_kernels import _checks

Rows = Tensor | Sequence[Tensor | Sequence[int]] | Mapping[str, Any]


def token_rows(inputs: Rows) -> list[Tensor]:
    """Each row of token ids as an int64 vector on the CPU.

    Of a mapping, as a tokenizer of transformers 5 returns it, a row is `input_ids` where `attention_mask` is not 0.

    Raises:
        TypeError: `inputs` is neither a tensor [B, P], nor a list of rows of integers, nor a mapping with one of these.
        ValueError: the attention mask has another shape than its rows.

    Example:
        >>> token_rows([[5, 6], torch.tensor([7])])
        [tensor([5, 6]), tensor([7])]
        >>> token_rows({"input_ids": [[0, 6]], "attention_mask": [[0, 1]]})
        [tensor([6])]
    """
    if isinstance(inputs, Mapping):
        return _attended(inputs)
    if isinstance(inputs, Tensor) and inputs.dim() != 2:
        raise TypeError(f"inputs must have shape [B, P] or be a list of rows, got shape {list(inputs.shape)}")
    if not isinstance(inputs, (Tensor, list, tuple)):
        raise TypeError(f"inputs must be a list of token rows, got {type(inputs).__name__}")
    return [_token_row(row) for row in inputs]


def _attended(inputs: Mapping[str, Any]) -> list[Tensor]:
    if "input_ids" not in inputs:
        raise TypeError(f"inputs must hold input_ids, got a mapping with {', '.join(map(str, inputs)) or 'nothing'}")
    rows, masks = token_rows(inputs["input_ids"]), inputs.get("attention_mask")
    if masks is None:
        return rows
    masks = token_rows(masks)
    if [len(mask) for mask in masks] != [len(row) for row in rows]:
        raise ValueError("attention_mask must have the shape of input_ids, got another one")
    return [row[mask != 0] for row, mask in zip(rows, masks, strict=True)]


def _token_row(row: Tensor | Sequence[int]) -> Tensor:
    if isinstance(row, (str, bytes)):
        raise TypeError(f"a row of inputs must hold token ids, got text {row!r}: tokenize it first")
    try:
        tokens = torch.as_tensor(row)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"a row of inputs must hold token ids, got {type(row).__name__}: {error}") from error
    if tokens.is_meta:
        raise TypeError("a row of inputs must hold token ids, got a tensor on the device meta, which holds none")
    if tokens.dim() != 1:
        raise TypeError(f"a row of inputs must be a vector of token ids, got shape {list(tokens.shape)}")
    if tokens.numel() == 0:
        return torch.zeros(0, dtype=torch.int64)
    if tokens.dtype.is_floating_point or tokens.dtype.is_complex or tokens.dtype == torch.bool:
        raise TypeError(f"a row of inputs must hold integers, got {str(tokens.dtype).removeprefix('torch.')}")
    return tokens.to("cpu", torch.int64)


def mask_token(model: nn.Module, tokenizer: object) -> int:
    """The mask token of a model.

    Raises:
        ValueError: the model has no head, or neither tokenizer nor model names a mask token.
    """
    output_head(model)
    return find_mask_id(model, None, tokenizer)


def check_rows(model: nn.Module, rows: Sequence[Tensor], mask_id: int) -> None:
    """Check rows, with the masks to be filled, against the model's vocabulary and positions.

    Raises:
        ValueError: a token is outside the vocabulary, or a row is too long for the model.
    """
    check_lengths(model, [len(row) for row in rows])
    vocab_size = len(input_embedding(model))
    if not 0 <= mask_id < vocab_size:
        raise ValueError(f"the mask token must lie in the vocabulary of {vocab_size} tokens, got {mask_id}")
    for number, row in enumerate(rows):
        if len(row) and not (0 <= int(row.min()) and int(row.max()) < vocab_size):
            wrong = int(row.min()) if int(row.min()) < 0 else int(row.max())
            raise ValueError(f"tokens must lie in [0, {vocab_size}), got {wrong} in row {number}")


def check_lengths(model: nn.Module, lengths: Sequence[int]) -> None:
    """Check how long rows are, before they are laid out.

    Raises:
        ValueError: one is too long for the model.
    """
    longest = max(lengths, default=0)
    check_positions(model, longest, "every row must fit", f" in row {lengths.index(longest)}" if lengths else "")


def check_tokens(name: str, tokens: Sequence[int] | None, model: nn.Module) -> list[int]:
    """A list of token ids, [] for None.

    Raises:
        TypeError, ValueError: it is not a list of integers in the vocabulary.
    """
    if tokens is None:
        return []
    if not isinstance(tokens, (list, tuple)):
        raise TypeError(f"{name} must be a list of token ids, got {tokens!r}")
    tokens, vocab_size = [_checks.int64(name, token) for token in tokens], len(input_embedding(model))
    for token in tokens:
        if not 0 <= token < vocab_size:
            raise ValueError(f"{name} must lie in [0, {vocab_size}), got {token}")
    return tokens


def stack_rows(rows: Sequence[Tensor], pad: int, device: torch.device) -> Tensor:
    """The rows, padded on the right to the longest, int64 [B, L].

    Example:
        >>> stack_rows([torch.tensor([5, 6]), torch.tensor([7])], 0, torch.device("cpu"))
        tensor([[5, 6],
                [7, 0]])
    """
    longest = max((len(row) for row in rows), default=0)
    canvas = torch.full((len(rows), longest), pad, dtype=torch.int64)
    for b, row in enumerate(rows):
        canvas[b, : len(row)] = row
    return canvas.to(device)


def hidden_by_guidance(tokens: Tensor, length: Tensor, mask_id: int, keep: Sequence[int]) -> Tensor:
    """The given tokens that classifier-free guidance masks, bool [B, L]: all but masks, padding and `keep`.

    Args:
        tokens: int64 [B, L].
        length: int64 [B], columns of each row before its padding.
        mask_id: the mask token.
        keep: tokens that guidance does not mask.

    Example:
        >>> hidden_by_guidance(torch.tensor([[5, 6, 3, 0]]), torch.tensor([3]), mask_id=3, keep=[6])
        tensor([[ True, False, False, False]])
    """
    given = (tokens != mask_id) & (torch.arange(tokens.shape[1], device=tokens.device) < length[:, None])
    return given & ~torch.isin(tokens, torch.tensor(keep, device=tokens.device)) if keep else given


def token_flags(tokens: Sequence[int], model: nn.Module) -> Tensor | None:
    """bool [V], True for these tokens; None if there are none."""
    if not tokens:
        return None
    embedding = input_embedding(model)
    flags = torch.zeros(len(embedding), dtype=torch.bool)
    flags[list(tokens)] = True
    return flags.to(embedding.device)
