"""Checks of a batch before it is corrupted, and names of its entries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

IGNORE = -100  # the label of a token that is never masked
CORRUPTION = "corruption"  # this entry of a corrupted batch is for the loss, all others are for the model


def check_batch(tokens: object, labels: object, attention_mask: object, vocab_size: int) -> None:
    """Check a batch that the base collator made.

    Raises:
        TypeError: tokens or labels are not int64 tensors.
        ValueError: a shape is not [B, L]; an id is outside the vocabulary; a label is neither -100 nor its token; the
            attention mask is not right padding.

    Example:
        >>> check_batch(torch.tensor([[5, 6]]), torch.tensor([[-100, 7]]), None, vocab_size=10)
        Traceback (most recent call last):
        ...
        ValueError: labels must equal input_ids wherever they are not -100, got label 7 for token 6 at row 0, position 1
    """
    for name, value in (("input_ids", tokens), ("labels", labels)):
        if not isinstance(value, Tensor) or value.dtype != torch.int64:
            raise TypeError(f"{name} must be an int64 tensor, got {_kind(value)}")
    if tokens.dim() != 2 or labels.shape != tokens.shape:
        raise ValueError(
            f"input_ids and labels must have one shape [B, L], got {list(tokens.shape)} and {list(labels.shape)}"
        )
    _check_range("input_ids", tokens, tokens, vocab_size)
    _check_range("labels", labels, labels[labels != IGNORE], vocab_size)
    wrong = ((labels != tokens) & (labels != IGNORE)).nonzero()
    if len(wrong):
        row, position = wrong[0].tolist()
        raise ValueError(
            f"labels must equal input_ids wherever they are not {IGNORE}, got label {int(labels[row, position])} for "
            f"token {int(tokens[row, position])} at row {row}, position {position}"
        )
    if attention_mask is not None:
        real = attention_mask != 0
        if real.shape != tokens.shape:
            raise ValueError(
                f"attention_mask must have the shape of input_ids {list(tokens.shape)}, got {list(real.shape)}"
            )
        if bool((~real[:, :-1] & real[:, 1:]).any()):
            raise ValueError(
                "attention_mask must be right padding: in each row ones, then zeros (tokenizer.padding_side = 'right')"
            )


def check_fits(tokens: Tensor, position_ids: object, positions: int | None) -> None:
    """Check that rows fit the model's positions.

    Args:
        tokens: [B, L], padding included.
        position_ids: of packed samples, which give the length of the longest; else None.
        positions: the model's; None if they are unlimited.

    Raises:
        ValueError: a row or a packed sample is longer.

    Example:
        >>> check_fits(torch.tensor([[5, 6, 7]]), None, positions=2)
        Traceback (most recent call last):
        ...
        ValueError: a row of a batch must fit the model's 2 positions, got 3: set max_length
    """
    width = tokens.shape[1]
    if isinstance(position_ids, Tensor) and position_ids.numel():
        width = int(position_ids.max() - position_ids.min()) + 1
    if positions is not None and width > positions:
        raise ValueError(f"a row of a batch must fit the model's {positions} positions, got {width}: set max_length")


def check_draws(times: object, seeds: object, samples: int) -> None:
    """Check the times and seeds of a batch; None where the base collator gave none.

    Raises:
        TypeError: times are not a float32 tensor, or seeds not an int64 tensor.
        ValueError: there is not one for each sample, or a time is outside [0, 1].

    Example:
        >>> check_draws(torch.tensor([0.5, 1.5]), None, samples=2)
        Traceback (most recent call last):
        ...
        ValueError: times must lie in [0, 1], got 1.5 for row 1
    """
    for name, value, kind in (("times", times, "float32"), ("seeds", seeds, "int64")):
        if value is None:
            continue
        if _kind(value) != kind:
            raise TypeError(f"{name} must be a tensor of {kind}, got {_kind(value)}")
        if value.shape != (samples,):
            raise ValueError(f"{name} must have the shape [{samples}], one for each sample, got {list(value.shape)}")
    if times is not None and len(outside := (~((times >= 0) & (times <= 1))).nonzero()):  # also finds NaN
        row = int(outside[0])
        raise ValueError(f"times must lie in [0, 1], got {float(times[row])} for row {row}")


def _check_range(name: str, all_ids: Tensor, ids: Tensor, vocab_size: int) -> None:
    if ids.numel() and not (0 <= int(ids.min()) and int(ids.max()) < vocab_size):
        outside = int(ids[(ids < 0) | (ids >= vocab_size)][0])
        place = (all_ids == outside).nonzero()[0].tolist()
        raise ValueError(
            f"{name} must lie in the vocabulary [0, {vocab_size}), got {outside} at row {place[0]}, position {place[1]}"
        )


def padding_mask(batch: Mapping[str, Any]) -> Any:
    """The attention mask of a batch if it marks padding; None if it keeps packed samples apart.

    The latter masks are over queries and keys and come with `position_ids`
    (:class:`dllm.data.packing.PackingCollator`).
    """
    mask = batch.get("attention_mask")
    of_query_and_key = isinstance(mask, Mapping) or (isinstance(mask, Tensor) and mask.dim() > 2)
    return None if of_query_and_key and "position_ids" in batch else mask


def _kind(value: object) -> str:
    """A value's type for an error message; of a tensor its dtype."""
    return str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else type(value).__name__
