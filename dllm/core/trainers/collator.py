"""From samples to a corrupted batch. Masks are drawn here, on the host, so that the number of masked tokens is known
before anything is sent to a device, and a product over them has exactly their size."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dllm.core import noising
from dllm.core.schedulers import BaseAlphaScheduler
from dllm.core.trainers.batches import CORRUPTION, IGNORE, check_batch, check_draws, check_fits, padding_mask

_log = logging.getLogger("dllm")

# Batches of an epoch that are told apart where a data set has no end.
_BATCHES = 2**20


@dataclass(kw_only=True)
class MDLMCollator:
    """Pads samples with `base`, then masks each token that has a label with probability 1 - alpha(t) of its sample.

    Args:
        base: a collator that gives `input_ids` [B, L], padded on the right, and may give `labels` [B, L] (-100 where a
            token is never masked, else the token itself) and `attention_mask` [B, L]. Without labels every token that
            is attended to may be masked. A mask token in the data is never learnt; a log line says so once. Two more
            entries take the place of what would be drawn: `times`, float32 [B], the t of each sample, from 0 to 1
            whatever `low` and `high`; and `seeds`, int64 [B], of each sample, where a text comes more than once in an
            epoch and must not always lose its tokens in the same order.
        scheduler: alpha(t), and w(t) for the weight "scheduler".
        mask_id, pad_id: the mask token; the padding token, None if there is none.
        vocab_size: token ids lie below it.
        seed: of the run.
        low, high: the range of t.
        antithetic: spread the times of a batch evenly.
        uniform_weight: weight 1 instead of w(t).
        right_shift: the token at p is predicted at p - 1 (Dream, A2D), at 0 that at 0.
        positions: that the model has; None where they do not end.

    A batch has the model's inputs, `input_ids` corrupted, no labels, no attention mask where it would be all ones, and
    under "corruption", with N masked tokens of nonzero weight:
        rows: int64 [N], position b L + p of the prediction of each.
        targets: int64 [N], the token.
        weight: float32 [N], w(t) of its sample.
        maskable: int64 [B], tokens of each sample that may be masked.
        lengths: int64 [B], tokens of each sample that are attended to.

    `epoch`, which the masks depend on, may be set at any time and reaches the processes of a data loader. With
    `endless` they depend on the number of the batch in its process too: a stream may begin again within an epoch, and a
    text must not lose the same tokens every time.

    Raises:
        TypeError, ValueError: labels that differ from the tokens, token ids outside the vocabulary, padding on the
            left, shapes that do not fit, more tokens than positions, times outside [0, 1]; weights of the scheduler
            that are negative or not finite.

    Example:
        >>> from dllm.core.schedulers import LinearAlphaScheduler
        >>> def stack(samples):
        ...     return {"input_ids": torch.tensor([s["input_ids"] for s in samples])}
        >>> collate = MDLMCollator(
        ...     base=stack, scheduler=LinearAlphaScheduler(), mask_id=3, pad_id=None, vocab_size=10, seed=0, low=0.999
        ... )
        >>> batch = collate([{"input_ids": [5, 6]}, {"input_ids": [7, 8]}])
        >>> batch["input_ids"]
        tensor([[3, 3],
                [3, 3]])
        >>> batch["corruption"]["targets"]
        tensor([5, 6, 7, 8])
    """

    base: Callable[[Sequence[Any]], Mapping[str, Any]]
    scheduler: BaseAlphaScheduler
    mask_id: int
    pad_id: int | None
    vocab_size: int
    seed: int
    low: float = 1e-3
    high: float = 1.0
    antithetic: bool = False
    uniform_weight: bool = False
    right_shift: bool = False
    positions: int | None = None
    endless: bool = False
    _batches: int = 0
    _epoch: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64).share_memory_(), repr=False)
    _warned: bool = False
    _warned_of_masks: bool = False

    @property
    def epoch(self) -> int:
        """The pass over the data."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    @property
    def _draw(self) -> int:
        """The number that tells what is drawn for a sample now from what is drawn for it at another time."""
        return (self.epoch * _BATCHES + self._batches) % 2**31 if self.endless else self.epoch

    def __call__(self, samples: Sequence[Any]) -> dict[str, Any]:
        return self.corrupt(self.clean(samples))

    def clean(self, samples: Sequence[Any]) -> dict[str, Any]:
        """The batch of x_0, with labels."""
        batch = dict(self.base(samples))
        tokens, attention_mask = batch["input_ids"], padding_mask(batch)
        if batch.get("labels") is None:
            batch["labels"] = tokens if attention_mask is None else torch.where(attention_mask != 0, tokens, IGNORE)
        return batch

    def corrupt(self, batch: Mapping[str, Any], keep_clean: bool = False) -> dict[str, Any]:
        """The batch of x_t, of one of x_0 on the CPU.

        Args:
            batch: as :meth:`clean` gives it.
            keep_clean: note under "corruption" also x_0, `input_ids`, `labels` and perhaps `attention_mask` [B, L];
                `masked`, bool [B, L]; and `times`, float32 [B] or [B, L].
        """
        batch = dict(batch)
        tokens, attention_mask = batch["input_ids"], padding_mask(batch)
        labels, times, seeds = (batch.pop(name, None) for name in ("labels", "times", "seeds"))
        check_batch(tokens, labels, attention_mask, self.vocab_size)
        check_fits(tokens, batch.get("position_ids"), self.positions)
        check_draws(times, seeds, len(tokens))
        if attention_mask is not None and bool((attention_mask != 0).all()):
            del batch["attention_mask"]  # says nothing, and many models wait for the device to find that out
        maskable = (labels != IGNORE) & ~self._masks_in(tokens, labels)
        times, noised = self._corrupt(tokens, maskable, attention_mask, times, seeds)
        attended = torch.ones_like(tokens) if attention_mask is None else (attention_mask != 0).long()
        counts = dict(maskable=maskable.sum(1), lengths=attended.sum(1))
        self._warn_once_of_nothing(counts["maskable"])
        chosen = self._chosen(tokens, noised.masked, times)
        if keep_clean:
            chosen |= dict(input_ids=tokens, labels=labels, masked=noised.masked, times=times)
            chosen |= {} if attention_mask is None else dict(attention_mask=attention_mask)
        self._batches += 1
        return self._model_inputs(batch, noised.tokens) | {CORRUPTION: chosen | counts}

    def _model_inputs(self, batch: dict[str, Any], noised: Tensor) -> dict[str, Any]:
        """The batch of x_0 as that of x_t."""
        return batch | {"input_ids": noised}

    def _corrupt(
        self,
        tokens: Tensor,
        maskable: Tensor,
        attention_mask: Tensor | None,
        times: Tensor | None,
        seeds: Tensor | None,
    ) -> tuple[Tensor, noising.Noised]:
        """Times, and the corrupted tokens; times and seeds that are not given are drawn."""
        if seeds is None:
            lengths = noising.real_lengths(tokens, attention_mask, self.pad_id)
            seeds = noising.sample_seeds(tokens, lengths, self.seed)
        if times is None:
            times = self._times(seeds, tokens.shape[1])
        options = dict(seeds=seeds, epoch=self._draw, scheduler=self.scheduler, mask_id=self.mask_id)
        return times, noising.corrupt(tokens, maskable, times, **options)

    def _times(self, seeds: Tensor, width: int) -> Tensor:
        """float32 [B], or [B, width] for a time per token."""
        return noising.diffusion_times(seeds, self._draw, low=self.low, high=self.high, antithetic=self.antithetic)

    def _chosen(self, tokens: Tensor, masked: Tensor, times: Tensor) -> dict[str, Tensor]:
        """The masked tokens that carry loss: where they are predicted, what they are, what they weigh."""
        weight = self._weights(masked, times)
        row, position = (masked & (weight > 0)).nonzero(as_tuple=True)
        predicted_at = (position - 1).clamp(min=0) if self.right_shift else position
        rows = row * tokens.shape[1] + predicted_at
        return dict(rows=rows, targets=tokens[row, position], weight=weight[row, position].float())

    def _weights(self, masked: Tensor, times: Tensor) -> Tensor:
        """The loss weight of each masked token, [B, L]; what it says of others is not used."""
        weight = torch.ones_like(times) if self.uniform_weight else self.scheduler.weight(times)
        if not bool(((weight >= 0) & (weight < torch.inf)).all()):
            raise ValueError(f"weights of {type(self.scheduler).__name__} must be finite and at least 0, got {weight}")
        return (weight if weight.dim() == 2 else weight[:, None]).expand_as(masked)

    def _masks_in(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Masks that the data have where a token is to be learnt, bool [B, L]: there is nothing to predict at them."""
        found = (tokens == self.mask_id) & (labels != IGNORE)
        if not self._warned_of_masks and bool(found.any()):
            self._warned_of_masks = True
            row, position = found.nonzero()[0].tolist()
            _log.warning(
                "the data hold the mask token (%d of a batch, first at row %d, position %d): it is not learnt",
                int(found.sum()),
                row,
                position,
            )
        return found

    def _warn_once_of_nothing(self, maskable: Tensor) -> None:
        if not self._warned and int(maskable.sum()) == 0:
            self._warned = True
            _log.warning("a batch has no token that may be masked (every label is %d): its loss is 0", IGNORE)
