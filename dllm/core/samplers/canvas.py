"""What a sampler is given: token rows of different length, checked and laid out for the denoising loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dllm.fast.head import output_head
from dllm.fast.inputs import input_embedding, position_limit


def token_rows(inputs: Tensor | Sequence[Tensor | Sequence[int]] | Mapping[str, Any]) -> list[Tensor]:
    """Each row of token ids as an int64 vector on the CPU.

    What a tokenizer returns (`input_ids` and `attention_mask`) is taken, too, its padding left out.

    Raises:
        TypeError: neither a tensor [B, P] nor a list of rows of integers.

    Example:
        >>> token_rows([[5, 6], torch.tensor([7])])
        [tensor([5, 6]), tensor([7])]
    """
    if isinstance(inputs, Mapping):
        return _encoded_rows(inputs)
    if isinstance(inputs, Tensor) and inputs.dim() != 2:
        raise TypeError(f"inputs must have shape [B, P] or be a list of rows, got shape {list(inputs.shape)}")
    if not isinstance(inputs, (Tensor, list, tuple)):
        raise TypeError(f"inputs must be a list of token rows, got {type(inputs).__name__}")
    return [_token_row(row) for row in inputs]


def _encoded_rows(encoding: Mapping[str, Any]) -> list[Tensor]:
    if "input_ids" not in encoding:
        raise TypeError(f"inputs must hold input_ids where they are a mapping, got {', '.join(map(str, encoding))}")
    rows = token_rows(encoding["input_ids"])
    masks = encoding.get("attention_mask")
    if masks is None:
        return rows
    return [row[torch.as_tensor(mask).to("cpu") != 0] for row, mask in zip(rows, masks, strict=True)]


def _token_row(row: Tensor | Sequence[int]) -> Tensor:
    if isinstance(row, (str, bytes)):
        raise TypeError(f"a row of inputs must hold token ids, got text {row!r}: tokenize it first")
    try:
        tokens = torch.as_tensor(row)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"a row of inputs must hold token ids, got {type(row).__name__}: {error}") from error
    if tokens.dim() != 1:
        raise TypeError(f"a row of inputs must be a vector of token ids, got shape {list(tokens.shape)}")
    if tokens.numel() == 0:
        return torch.zeros(0, dtype=torch.int64)
    if tokens.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"a row of inputs must hold integers, got {str(tokens.dtype).removeprefix('torch.')}")
    return tokens.to("cpu", torch.int64)


def check_rows(model: nn.Module, rows: Sequence[Tensor], mask_id: int) -> None:
    """Check finished canvases against the model.

    Raises:
        ValueError: the model has no head, a token is outside the vocabulary, or a row is too long for it.
    """
    output_head(model)
    vocab_size, positions = len(input_embedding(model)), position_limit(model)
    if not 0 <= mask_id < vocab_size:
        raise ValueError(f"the mask token must lie in the vocabulary of {vocab_size} tokens, got {mask_id}")
    for number, row in enumerate(rows):
        if positions is not None and len(row) > positions:
            raise ValueError(f"every row must fit the model's {positions} positions, got {len(row)} in row {number}")
        if len(row) and not (0 <= int(row.min()) and int(row.max()) < vocab_size):
            wrong = int(row.min()) if int(row.min()) < 0 else int(row.max())
            raise ValueError(f"tokens must lie in [0, {vocab_size}), got {wrong} in row {number}")


def check_tokens(name: str, tokens: Sequence[int] | None, model: nn.Module) -> list[int]:
    """A list of token ids, [] for None.

    Raises:
        TypeError, ValueError: not a list of integers in the vocabulary.
    """
    if tokens is None:
        return []
    if not isinstance(tokens, (list, tuple)) or not all(type(token) is int for token in tokens):
        raise TypeError(f"{name} must be a list of token ids, got {tokens!r}")
    vocab_size = len(input_embedding(model))
    for token in tokens:
        if not 0 <= token < vocab_size:
            raise ValueError(f"{name} must lie in [0, {vocab_size}), got {token}")
    return list(tokens)


def stacked(rows: Sequence[Tensor], pad: int, device: torch.device) -> Tensor:
    """int64 [B, L]: the rows, padded on the right to the longest.

    Example:
        >>> stacked([torch.tensor([5, 6]), torch.tensor([7])], 0, torch.device("cpu"))
        tensor([[5, 6],
                [7, 0]])
    """
    longest = max((len(row) for row in rows), default=0)
    canvas = torch.full((len(rows), longest), pad, dtype=torch.int64)
    for b, row in enumerate(rows):
        canvas[b, : len(row)] = row
    return canvas.to(device)


def lookup(tokens: Sequence[int], model: nn.Module) -> Tensor | None:
    """bool [V], true for some tokens; None for none."""
    if not tokens:
        return None
    weight = output_head(model).weight
    found = torch.zeros(weight.shape[0], dtype=torch.bool)
    found[list(tokens)] = True
    return found.to(input_embedding(model).device)
