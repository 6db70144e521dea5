"""Data loaders that corrupt batches, with random masks that a resumed run continues."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dllm.core.trainers.base.objective import Objective, Split
from dllm.core.trainers.batches import CORRUPTION
from dllm.core.trainers.collator import MDLMCollator

_log = logging.getLogger("dllm")


class CorruptingLoaders(Objective):
    """A Trainer whose data loaders corrupt samples while they collate them, in the loaders' worker processes.

    Which tokens are masked depends on the run's seed, the sample's tokens and the epoch alone
    (:mod:`dllm.core.noising`), not on the batch, the rank, padding or resumption. With `antithetic_time` it depends on
    the batch as well. The order of samples is seeded by the epoch. Every evaluation masks the same tokens, those of
    epoch 0. Where a subclass has replaced a step of the loss, batches arrive with `labels` and are corrupted in the
    training process.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._collators: dict[Split, MDLMCollator] = {}
        self._sample_order = torch.Generator()  # seeded in each epoch
        self._epoch_number: int | None = None

    def _make_collators(self) -> None:
        """Make the collators of both splits; called when everything that they need is known."""
        self._collators = {"train": self._make_collator(), "eval": self._make_collator()}

    def _collator_options(self) -> dict[str, Any]:
        """Arguments that the collators of all objectives share."""
        return dict(
            base=self.data_collator,
            scheduler=self.scheduler,
            mask_id=self.mask_id,
            pad_id=getattr(self.processing_class, "pad_token_id", None),
            vocab_size=self._vocab_size,
            seed=self.args.seed,
            antithetic=self.args.antithetic_time,
            positions=self._positions if self._positions_are_finite else None,
        )

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
        """A loader of corrupted batches, with new masks in every epoch."""
        self._collators["train"].endless = not has_length(self.train_dataset)
        with self._collating("train"):
            return self._with_separate_generator(super().get_train_dataloader())

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> torch.utils.data.DataLoader:
        """A loader of corrupted batches, with the same masks every time."""
        with self._collating("eval"):
            return self._with_separate_generator(super().get_eval_dataloader(*args, **kwargs))

    def get_test_dataloader(self, *args: Any, **kwargs: Any) -> torch.utils.data.DataLoader:
        """A loader of corrupted batches, with the same masks every time."""
        with self._collating("eval"):
            return self._with_separate_generator(super().get_test_dataloader(*args, **kwargs))

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> torch.utils.data.Sampler | None:
        """The sampler of training, with a generator that each epoch seeds.

        Without one it would draw the order from torch's global generator, whose state a resumed run restores later.
        """
        sampler = super()._get_train_sampler(*args, **kwargs)
        if getattr(sampler, "generator", self) is None:
            sampler.generator = self._sample_order
        return sampler

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch on the device. Loss weights keep their dtype; DeepSpeed would round them to the model's."""
        model_inputs = super()._prepare_inputs({name: value for name, value in inputs.items() if name != CORRUPTION})
        if CORRUPTION not in inputs:
            return model_inputs
        return model_inputs | {CORRUPTION: {k: v.to(self.args.device) for k, v in inputs[CORRUPTION].items()}}

    def _ensure_corrupted(self, inputs: Mapping[str, Any], split: Split) -> Mapping[str, Any]:
        if CORRUPTION in inputs:
            return inputs
        on_host = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in inputs.items()}
        return self._prepare_inputs(self._corrupt(self._collators[split], on_host))

    def _corrupt(self, collator: MDLMCollator, batch: dict[str, Any]) -> dict[str, Any]:
        """A clean batch on the CPU, corrupted."""
        return collator.corrupt(batch)

    @contextmanager
    def _collating(self, split: Split) -> Iterator[None]:
        """Within this context data loaders are made with the corrupting collator."""
        collator = self._collators[split]
        base, self.data_collator = self.data_collator, collator.clean if self._replaced_methods() else collator
        try:
            yield
        finally:
            self.data_collator = base

    def _with_separate_generator(self, loader: torch.utils.data.DataLoader) -> torch.utils.data.DataLoader:
        """The loader with a generator of its own.

        A loader draws a number when its workers start, which happens at another moment in a resumed run. Drawn from
        torch's global generator, that would change the dropout masks that follow.
        """
        getattr(loader, "base_dataloader", loader).generator = torch.Generator().manual_seed(self.args.seed)
        return loader

    def _steps_per_epoch(self, dataloader: Any) -> int:
        """Optimizer steps of an epoch. A data set without length counts as one epoch, as in transformers."""
        if not has_length(dataloader):
            return max(1, self.args.max_steps)
        return max(1, -(-len(dataloader) // self.args.gradient_accumulation_steps))


def has_length(data: Any) -> bool:
    """Whether a data set or a data loader has a length.

    Example:
        >>> has_length([1, 2]), has_length(iter([1, 2]))
        (True, False)
    """
    try:
        return len(data) >= 0
    except TypeError:
        return False
