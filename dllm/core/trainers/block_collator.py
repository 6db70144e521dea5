"""Collators for block diffusion: rows [x_t ; x_0] of corrupted and clean text, and answers of whole blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dllm.core import noising
from dllm.core.trainers.collator import MDLMCollator
from dllm.data.collators import CollatorWrapper


@dataclass(kw_only=True)
class BD3LMCollator(MDLMCollator):
    """Corrupts a batch as :class:`~dllm.core.trainers.collator.MDLMCollator` does and appends the clean tokens.

    A batch has `input_ids` [B, 2 L], x_t and then x_0. Other entries [B, L, ...] are repeated in the same way.
    `attention_mask` stays [B, L] and is there only if a row is padded. "corruption" is that of MDLMCollator, with
    `rows` counted in rows of 2 L positions.

    Args:
        block_size: tokens of a block; the last may be shorter.
        time_per_block: a time t for each block instead of one for the whole text.

    Raises:
        ValueError: as the parent class; or the attention mask is over queries and keys.

    Example:
        >>> from dllm.core.schedulers import LinearAlphaScheduler
        >>> def stack(samples):
        ...     return {"input_ids": torch.tensor([s["input_ids"] for s in samples])}
        >>> collate = BD3LMCollator(
        ...     base=stack, scheduler=LinearAlphaScheduler(), mask_id=3, pad_id=None, vocab_size=10, seed=0, low=0.999
        ... )
        >>> batch = collate([{"input_ids": [5, 6]}, {"input_ids": [7, 8]}])
        >>> batch["input_ids"]
        tensor([[3, 3, 5, 6],
                [3, 3, 7, 8]])
        >>> batch["corruption"]["rows"]
        tensor([0, 1, 4, 5])
    """

    block_size: int = 32
    time_per_block: bool = False

    def _model_inputs(self, batch: dict[str, Any], noised: Tensor) -> dict[str, Any]:
        tokens, attention_mask = batch["input_ids"], batch.pop("attention_mask", None)
        if attention_mask is not None and not (isinstance(attention_mask, Tensor) and attention_mask.dim() == 2):
            raise ValueError("attention_mask must be [B, L] and mark padding: the rest is up to the block mask")
        doubled = {name: _doubled(value, tokens.shape) for name, value in batch.items()}
        padding = {} if attention_mask is None else {"attention_mask": attention_mask}
        return doubled | padding | {"input_ids": torch.cat([noised, tokens], dim=1)}

    def _times(self, seeds: Tensor, width: int) -> Tensor:
        if not self.time_per_block:
            return super()._times(seeds, width)
        spread = dict(low=self.low, high=self.high, antithetic=self.antithetic, blocks=-(-width // self.block_size))
        times = noising.diffusion_times(seeds, self._draw_number, **spread)
        return times.repeat_interleave(self.block_size, dim=1)[:, :width]

    def _masked_rows(self, tokens: Tensor, masked: Tensor, times: Tensor) -> dict[str, Tensor]:
        found, length = super()._masked_rows(tokens, masked, times), max(tokens.shape[1], 1)
        return found | {"rows": found["rows"] + found["rows"] // length * length}


class AppendEOSBlockWrapper(CollatorWrapper):
    """Extends every sample to whole blocks by end-of-text tokens, which are trained.

    A sampler always denoises a whole block, so a model must learn to fill the last block of an answer with end of text.

    Args:
        collator: has a `tokenizer` with an `eos_token_id`, as transformers' collators have. Samples have lists
            `input_ids` and perhaps `labels`, `attention_mask`, `token_type_ids`.
        block_size: tokens of a block.

    Raises:
        ValueError: `block_size` is below 1, or the tokenizer has no end-of-text token.

    Source: dLLM 0.1, whose name and arguments these are.

    Example:
        >>> from types import SimpleNamespace
        >>> class Collator:
        ...     tokenizer = SimpleNamespace(eos_token_id=2)
        ...     def __call__(self, samples):
        ...         return {"input_ids": samples[0]["input_ids"], "labels": samples[0]["labels"]}
        >>> AppendEOSBlockWrapper(Collator(), block_size=4)([{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}])
        {'input_ids': [5, 6, 7, 2], 'labels': [-100, 6, 7, 2]}
    """

    def __init__(self, collator: Callable[[Sequence[Any]], Mapping[str, Any]], block_size: int = 32):
        if not isinstance(block_size, int) or block_size < 1:
            raise ValueError(f"block_size must be an integer of at least 1, got {block_size!r}")
        super().__init__(collator)
        eos = getattr(getattr(collator, "tokenizer", None), "eos_token_id", None)
        if eos is None:
            raise ValueError(
                f"the collator's tokenizer must have an end-of-text token, got none from {type(collator).__name__}"
            )
        self.block_size, self._fillers = block_size, dict(input_ids=eos, labels=eos, attention_mask=1, token_type_ids=0)

    def before(self, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The samples, extended to whole blocks."""
        return [self._filled(sample) for sample in samples]

    def _filled(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        missing = -len(sample["input_ids"]) % self.block_size
        fillers = {name: [filler] * missing for name, filler in self._fillers.items() if name in sample}
        return dict(sample) | {name: [*sample[name], *filler] for name, filler in fillers.items()}


def _doubled(value: Any, shape: torch.Size) -> Any:
    """An entry [B, L, ...] repeated along its second dimension; any other entry unchanged."""
    return torch.cat([value, value], dim=1) if isinstance(value, Tensor) and value.shape[:2] == shape else value
