"""MDLMCollator: turns samples into a corrupted batch.

Masks are drawn on the host. So the number of masked tokens is known there, and matrix products over them have exactly
that size.
"""

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
from dllm_kernels import philox

_log = logging.getLogger("dllm")

# Of a data set without length, this many batches of an epoch have masks of their own.
_MAX_BATCHES_PER_EPOCH = 2**20


@dataclass(kw_only=True)
class MDLMCollator:
    """Pads samples with `base`, then masks each token that has a label with probability 1 - alpha(t) of its sample.

    Args:
        base: a collator that gives `input_ids` [B, L], padded on the right. It may give `labels` [B, L], -100 where a
            token is never masked, else the token; and `attention_mask` [B, L]. Without labels every attended token may
            be masked. A mask token in the data is never a target; one log line warns of it. Two more entries replace
            random draws: `times`, float32 [B], t of each sample, anywhere in [0, 1]; and `seeds`, int64 [B], for a
            text that appears several times in an epoch and should get other masks each time.
        scheduler: alpha(t), and w(t) unless `uniform_weight`.
        mask_id, pad_id: the mask token; the padding token, None if there is none.
        vocab_size: the number of token ids.
        seed: of the run.
        low, high: the range of t.
        antithetic: spread the times of a batch evenly.
        uniform_weight: weight 1 instead of w(t).
        right_shift: the token at p is predicted at p - 1, the first one at 0 (Dream, A2D).
        positions: the model's; None if they are unlimited.
        endless: the data set has no length. It may repeat within an epoch, so masks then also depend on the number of
            the batch in its worker process.

    A batch has the model's inputs: `input_ids`, corrupted; no labels; no attention mask that is all ones. Its entry
    "corruption" holds, for the N masked tokens of nonzero weight:
        rows: int64 [N], index b L + p of the position that predicts each.
        targets: int64 [N], the token.
        weight: float32 [N], w(t) of its sample.
        maskable: int64 [B], each sample's number of tokens that may be masked.
        lengths: int64 [B], each sample's number of attended tokens.

    Masks depend on `epoch`, which may be set at any time and reaches the worker processes of a data loader.

    Raises:
        TypeError, ValueError: a label differs from its token; a token id is outside the vocabulary; padding is on the
            left; shapes do not match; a row has more tokens than positions; a time is outside [0, 1]; a weight of the
            scheduler is negative or not finite.

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
    _batch_count: int = 0
    _epoch: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64).share_memory_(), repr=False)
    _warned_of_nothing_maskable: bool = False
    _warned_of_mask_tokens: bool = False

    @property
    def epoch(self) -> int:
        """The pass over the data."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    @property
    def _draw_number(self) -> int:
        """The step counter of the random stream: another number gives a sample other masks."""
        return (self.epoch * _MAX_BATCHES_PER_EPOCH + self._batch_count) % 2**31 if self.endless else self.epoch

    def __call__(self, samples: Sequence[Any]) -> dict[str, Any]:
        return self.corrupt(self.clean(samples))

    def clean(self, samples: Sequence[Any]) -> dict[str, Any]:
        """The collated batch x_0, with labels, not corrupted."""
        batch = dict(self.base(samples))
        tokens, attention_mask = batch["input_ids"], padding_mask(batch)
        if batch.get("labels") is None:
            batch["labels"] = tokens if attention_mask is None else torch.where(attention_mask != 0, tokens, IGNORE)
        return batch

    def corrupt(self, batch: Mapping[str, Any], keep_clean: bool = False) -> dict[str, Any]:
        """Corrupt a batch on the CPU.

        Args:
            batch: as :meth:`clean` gives it.
            keep_clean: add to "corruption" the clean batch, `input_ids`, `labels` and perhaps `attention_mask` [B, L];
                `masked`, bool [B, L]; and `times`, float32 [B] or [B, L].
        """
        batch = dict(batch)
        tokens, attention_mask = batch["input_ids"], padding_mask(batch)
        labels, times, seeds = (batch.pop(name, None) for name in ("labels", "times", "seeds"))
        check_batch(tokens, labels, attention_mask, self.vocab_size)
        check_fits(tokens, batch.get("position_ids"), self.positions)
        check_draws(times, seeds, len(tokens))
        if attention_mask is not None and bool((attention_mask != 0).all()):
            del batch["attention_mask"]  # all ones; many models would wait for the device to find that out
        maskable = (labels != IGNORE) & ~self._mask_tokens_in_data(tokens, labels)
        times, noised = self._corrupt(tokens, maskable, attention_mask, times, seeds)
        attended = torch.ones_like(tokens) if attention_mask is None else (attention_mask != 0).long()
        counts = dict(maskable=maskable.sum(1), lengths=attended.sum(1))
        self._warn_if_nothing_maskable(counts["maskable"])
        corruption = self._masked_rows(tokens, noised.masked, times) | counts
        if keep_clean:
            corruption |= dict(input_ids=tokens, labels=labels, masked=noised.masked, times=times)
            corruption |= {} if attention_mask is None else dict(attention_mask=attention_mask)
        self._batch_count += 1
        return self._model_inputs(batch, noised.tokens) | {CORRUPTION: corruption}

    def _model_inputs(self, batch: dict[str, Any], noised: Tensor) -> dict[str, Any]:
        """The model's inputs: the batch with corrupted tokens."""
        return batch | {"input_ids": noised}

    def _corrupt(
        self,
        tokens: Tensor,
        maskable: Tensor,
        attention_mask: Tensor | None,
        times: Tensor | None,
        seeds: Tensor | None,
    ) -> tuple[Tensor, noising.Noised]:
        """The times, drawn unless given, and the corrupted tokens."""
        if seeds is None:
            lengths = noising.real_lengths(tokens, attention_mask, self.pad_id)
            seeds = philox.sample_seeds(tokens, lengths, self.seed)
        if times is None:
            times = self._times(seeds, tokens.shape[1])
        options = dict(seeds=seeds, epoch=self._draw_number, scheduler=self.scheduler, mask_id=self.mask_id)
        return times, noising.corrupt(tokens, maskable, times, **options)

    def _times(self, seeds: Tensor, width: int) -> Tensor:
        """Diffusion times, float32 [B], or [B, width] for a time per token."""
        return noising.diffusion_times(
            seeds, self._draw_number, low=self.low, high=self.high, antithetic=self.antithetic
        )

    def _masked_rows(self, tokens: Tensor, masked: Tensor, times: Tensor) -> dict[str, Tensor]:
        """`rows`, `targets` and `weight` of the masked tokens of nonzero weight."""
        weight = self._weights(masked, times)
        row, position = (masked & (weight > 0)).nonzero(as_tuple=True)
        predicted_at = (position - 1).clamp(min=0) if self.right_shift else position
        rows = row * tokens.shape[1] + predicted_at
        return dict(rows=rows, targets=tokens[row, position], weight=weight[row, position].float())

    def _weights(self, masked: Tensor, times: Tensor) -> Tensor:
        """The loss weights [B, L], of which those of masked tokens are used."""
        weight = torch.ones_like(times) if self.uniform_weight else self.scheduler.weight(times)
        if not bool(((weight >= 0) & (weight < torch.inf)).all()):
            raise ValueError(f"weights of {type(self.scheduler).__name__} must be finite and at least 0, got {weight}")
        return (weight if weight.dim() == 2 else weight[:, None]).expand_as(masked)

    def _mask_tokens_in_data(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Mask tokens of the data that have a label, bool [B, L]; a warning is logged once, as they are not trained."""
        found = (tokens == self.mask_id) & (labels != IGNORE)
        if not self._warned_of_mask_tokens and bool(found.any()):
            self._warned_of_mask_tokens = True
            row, position = found.nonzero()[0].tolist()
            _log.warning(
                "the data hold the mask token (%d of a batch, first at row %d, position %d): it is not learnt",
                int(found.sum()),
                row,
                position,
            )
        return found

    def _warn_if_nothing_maskable(self, maskable: Tensor) -> None:
        if not self._warned_of_nothing_maskable and int(maskable.sum()) == 0:
            self._warned_of_nothing_maskable = True
            _log.warning("a batch has no token that may be masked (every label is %d): its loss is 0", IGNORE)
