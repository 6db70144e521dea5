"""Data loaders whose batches are corrupted, with a stream of masks that a resumed run continues."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dllm.core.trainers.batches import CORRUPTION
from dllm.core.trainers.collator import MDLMCollator
from dllm.core.trainers.objective import Objective, Split

_log = logging.getLogger("dllm")


class CorruptingLoaders(Objective):
    """A Trainer whose data loaders corrupt samples while they collate them, in the loaders' own processes.

    What is masked depends on the run's seed, the sample's tokens and the epoch alone: not on the batch, rank, padding
    or a resumption (:mod:`dllm.core.noising`); `antithetic_time` gives up the independence of the batch. The order of
    the samples is seeded by the epoch, too. Every evaluation masks the same tokens, those of epoch 0. Where a subclass
    has replaced a step of the loss, batches come as they were collated, with `labels`, and are corrupted in the
    training process.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._collators: dict[Split, MDLMCollator] = {}
        self._sample_order = torch.Generator()  # seeded in each epoch
        self._epoch_number: int | None = None

    def _make_collators(self) -> None:
        """Once everything that a collator needs is known."""
        self._collators = {"train": self._collator(), "eval": self._collator()}

    def _on_epoch_begin(self, dataloader: Any) -> None:
        super()._on_epoch_begin(dataloader)
        if self._epoch_number is None:
            step = self.state.global_step
            self._epoch_number = step // self._steps_per_epoch(dataloader) - 1
            if step and not has_length(dataloader):
                _log.warning(
                    "resumed on a data set without length: what follows is the uninterrupted run only if that was in "
                    "its first pass over the data"
                )
        self._epoch_number += 1
        self._collators["train"].epoch = self._epoch_number
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self._sample_order.manual_seed(seed + self._epoch_number)

    def _on_train_begin(self) -> None:
        super()._on_train_begin()
        self._epoch_number = None

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """Of corrupted batches, with new masks in every epoch."""
        self._collators["train"].endless = not has_length(self.train_dataset)
        with self._collating("train"):
            return self._with_own_generator(super().get_train_dataloader())

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> torch.utils.data.DataLoader:
        """Of corrupted batches, with the same masks every time."""
        with self._collating("eval"):
            return self._with_own_generator(super().get_eval_dataloader(*args, **kwargs))

    def get_test_dataloader(self, *args: Any, **kwargs: Any) -> torch.utils.data.DataLoader:
        """Of corrupted batches, with the same masks every time."""
        with self._collating("eval"):
            return self._with_own_generator(super().get_test_dataloader(*args, **kwargs))

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> torch.utils.data.Sampler | None:
        """A sampler without a generator would draw the order from torch's, whose state a resumed run restores only
        later: it is given one that each epoch seeds."""
        sampler = super()._get_train_sampler(*args, **kwargs)
        if getattr(sampler, "generator", self) is None:
            sampler.generator = self._sample_order
        return sampler

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """On the device. What the loss needs keeps its dtype: DeepSpeed would round weights to the model's."""
        model_inputs = super()._prepare_inputs({name: value for name, value in inputs.items() if name != CORRUPTION})
        if CORRUPTION not in inputs:
            return model_inputs
        return model_inputs | {CORRUPTION: {k: v.to(self.args.device) for k, v in inputs[CORRUPTION].items()}}

    def _corrupted(self, inputs: Mapping[str, Any], split: Split) -> Mapping[str, Any]:
        if CORRUPTION in inputs:
            return inputs
        on_host = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in inputs.items()}
        return self._prepare_inputs(self._corrupt(self._collators[split], on_host))

    def _corrupt(self, collator: MDLMCollator, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch of x_0 on the CPU as one of x_t."""
        return collator.corrupt(batch)

    @contextmanager
    def _collating(self, split: Split) -> Iterator[None]:
        """Within this context data loaders are made with the corrupting collator."""
        collator = self._collators[split]
        base, self.data_collator = self.data_collator, collator.clean if self._replaced() else collator
        try:
            yield
        finally:
            self.data_collator = base

    def _with_own_generator(self, loader: torch.utils.data.DataLoader) -> torch.utils.data.DataLoader:
        """A loader draws a number when its workers start, which a resumed run does at another moment: not from torch's
        generator, which dropout continues with."""
        getattr(loader, "base_dataloader", loader).generator = torch.Generator().manual_seed(self.args.seed)
        return loader

    def _steps_per_epoch(self, dataloader: Any) -> int:
        """Optimizer steps of an epoch; of a data set without length all steps are one, as transformers sees it."""
        if not has_length(dataloader):
            return max(1, self.args.max_steps)
        return max(1, -(-len(dataloader) // self.args.gradient_accumulation_steps))


def has_length(data: Any) -> bool:
    """Whether a data set, or a loader of one, knows how long it is.

    Example:
        >>> has_length([1, 2]), has_length(iter([1, 2]))
        (True, False)
    """
    try:
        return len(data) >= 0
    except TypeError:
        return False
