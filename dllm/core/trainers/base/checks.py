"""Checks before the first step: the model attends to what the loss assumes, and samples fit its positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from dllm.core.trainers.base.objective import Objective
from dllm.core.trainers.padding import PadToGrid
from dllm.data.collators import CollatorWrapper
from dllm.data.packing import PackingCollator
from dllm.fast.model import check_positions, position_limit, unwrapped
from dllm.fast.visibility import check_bidirectional, forget, probe_rows, visible_keys, why_not_padded

_PAD_ONLY = (PadToGrid, transformers.DataCollatorForSeq2Seq, transformers.DataCollatorWithPadding)


class ModelChecks(Objective):
    """A Trainer that checks the model's attention before the first batch.

    Every rank runs five forwards of at most 20 tokens (:mod:`dllm.fast.visibility`). A causal model raises, and so does
    a padded batch if the model attends to padding. A sample that exceeds the model's positions raises before the first
    step if the data set is in memory and the collator only pads, else in its batch. Rotary positions beyond those of
    the configuration give one warning.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._positions, self._positions_are_finite = position_limit(self.model)
        self._probed, self._why_not_padded = False, None

    def _on_train_begin(self) -> None:
        super()._on_train_begin()
        for name in ("train_dataset", "eval_dataset"):
            check_samples(self.model, getattr(self, name), self.data_collator, name)

    def _check_batch(self, model: nn.Module, inputs: Mapping[str, Any]) -> None:
        """Check a batch against the model, and before the first batch the wrapped model itself."""
        if not self._probed:
            self._probe_model(model, inputs["input_ids"].device)
            self._probed = True
        check_unpadded(inputs.get("attention_mask"), self._why_not_padded)
        if self._positions is not None and "position_ids" not in inputs:
            columns = self._text_columns(inputs)
            if columns > self._positions:  # the collator has checked a finite table of positions
                check_positions(self.model, columns, "a row of a batch must fit")

    def _probe_model(self, model: nn.Module, device: torch.device) -> None:
        """Check on a few tokens what the model attends to. Every rank calls this."""
        self._why_not_padded = check_padding(model, device)
        check_packing(model, self.data_collator, device)

    def _text_columns(self, inputs: Mapping[str, Any]) -> int:
        """The number of positions that a row of the batch takes."""
        return inputs["input_ids"].shape[1]


def check_padding(model: nn.Module, device: torch.device) -> str | None:
    """Check on a few tokens that a model is bidirectional, and find out whether it attends to padding.

    Args:
        model: wrapped or not; every rank calls this.
        device: of its inputs.

    Returns:
        Why rows may not be padded, None where they may.

    Raises:
        ValueError: the model is causal.
    """
    forget(model)
    check_bidirectional(model, device)
    return why_not_padded(model, device)


def check_packing(model: nn.Module, collator: Any, device: torch.device) -> None:
    """Check on a few tokens that samples packed into one row do not attend to each other, if the collator packs.

    Raises:
        ValueError: they do.
    """
    collator, (tokens, _) = _innermost(collator), probe_rows(unwrapped(model))
    if not isinstance(collator, PackingCollator) or len(tokens) < 2:
        return
    half = len(tokens) // 2
    row = {"input_ids": tokens, "position_ids": [*range(half), *range(len(tokens) - half)]}
    given = collator([row] * (1 + len(tokens)))
    inputs = {name: _to(given[name], device) for name in ("position_ids", "attention_mask")}
    sees = visible_keys(model, device, **inputs)
    if sees is not None and bool(sees[:half, half:].any() or sees[half:, :half].any()):
        raise ValueError(
            f"samples of one row must not see each other, and in {type(unwrapped(model)).__name__} they do, whatever "
            "attention_mask says: train without packing"
        )


def _to(mask: Any, device: torch.device) -> Any:
    return {name: _to(part, device) for name, part in mask.items()} if isinstance(mask, dict) else mask.to(device)


def _innermost(collator: Any) -> Any:
    """The collator inside this library's wrappers, none of which shortens a sample."""
    while isinstance(collator, CollatorWrapper) and type(collator).__module__.startswith("dllm."):
        collator = collator.collator
    return collator


def check_unpadded(attention_mask: object, why: str | None) -> None:
    """Check that no row of a batch is padded, unless `why` is None.

    Args:
        attention_mask: of the batch, or None.
        why: the reason why rows may not be padded.

    Raises:
        ValueError: a row is padded.

    Example:
        >>> check_unpadded(torch.tensor([[1, 1], [1, 0]]), "Net takes no attention_mask")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: rows of a batch must be of one length, because Net takes no attention_mask: cut or fill ...
    """
    if why is not None and isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
        raise ValueError(
            f"rows of a batch must be of one length, because {why}: cut or fill samples to one length, or set "
            "per_device_train_batch_size to 1"
        )


def check_samples(model: nn.Module, samples: Any, collator: Any, name: str) -> None:
    """Check that the longest sample fits the model's positions.

    Only a list or a data set in memory is checked, and only if the collator does nothing but pad.

    Args:
        model: the model.
        samples: a data set, a dict of data sets, or None.
        collator: of batches.
        name: of the data set, for the error.

    Raises:
        ValueError: the longest sample has more tokens than the model has positions.
    """
    if isinstance(samples, dict):
        for split, part in samples.items():
            check_samples(model, part, collator, f"{name}[{split!r}]")
        return
    collator = _innermost(collator)
    if type(collator) in _PAD_ONLY or collator is transformers.default_data_collator:
        longest = longest_sample(samples)
        if longest is not None:
            check_positions(model, longest, f"the longest sample of {name} must fit", ": set max_length")


def longest_sample(samples: Any) -> int | None:
    """The number of tokens of the longest sample in a list or a map-style data set; None for anything else.

    Example:
        >>> longest_sample([{"input_ids": [5]}, {"input_ids": [6, 7]}])
        2
    """
    if isinstance(samples, (list, tuple)) and all(isinstance(s, Mapping) and "input_ids" in s for s in samples):
        return max((len(sample["input_ids"]) for sample in samples), default=0)
    if not hasattr(samples, "__len__") or "input_ids" not in (getattr(samples, "column_names", None) or ()):
        return None
    import pyarrow.compute

    parts = samples.select_columns("input_ids").with_format("arrow").iter(batch_size=10_000)
    lengths = (pyarrow.compute.max(pyarrow.compute.list_value_length(part["input_ids"])).as_py() for part in parts)
    return max((length or 0 for length in lengths), default=0)
