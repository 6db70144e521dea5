"""Packing: several samples in one row, with attention only within each sample.

All rows of a batch are as long as the longest: with short samples most of a batch is padding. A packed row holds as
many samples as fit. Position ids restart at each sample and attention does not cross samples, so the model computes the
same for a sample as for it alone. This is tested for each family.

    samples = dataset.map(functools.partial(pack_samples, seq_length=1024), batched=True, batch_size=10_000,
                          remove_columns=dataset.column_names)
    trainer = MDLMTrainer(..., train_dataset=samples, data_collator=PackingCollator(model, tokenizer.pad_token_id))

The samples of a row share one diffusion time, and `loss_norm_type="sequence"` counts the row as one sample.
"""

from __future__ import annotations

import bisect
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dllm.data.chat import IGNORE

# Families that can be packed, and those of them whose positions start at padding_idx + 1.
FAMILIES = ("bert", "roberta", "xlm-roberta", "modernbert")
_COUNT_AFTER_PADDING = ("roberta", "xlm-roberta")


def pack_samples(examples: Mapping[str, Sequence[Any]], seq_length: int = 1024) -> dict[str, list[list[int]]]:
    """Concatenate samples into rows of at most `seq_length` tokens. To be mapped over a data set in batches.

    The algorithm is best fit decreasing: samples from longest to shortest, each into the fullest row with room for it.

    Args:
        examples: `input_ids` and optionally `labels`, a list per sample. Without labels all tokens are learnt.
        seq_length: maximum number of tokens per row.

    Returns:
        `input_ids`, `labels`, and `position_ids`, which restart at 0 at each sample.

    Raises:
        ValueError: a sample that is empty or longer than `seq_length`, or labels of a different length than the tokens.

    Example:
        >>> pack_samples({"input_ids": [[5, 6], [7, 8, 9], [4]]}, seq_length=4)["input_ids"]
        [[7, 8, 9, 4], [5, 6]]
        >>> pack_samples({"input_ids": [[5, 6], [7, 8, 9], [4]]}, seq_length=4)["position_ids"]
        [[0, 1, 2, 0], [0, 1]]
    """
    tokens = examples["input_ids"]
    labels = examples.get("labels", tokens)
    for sample, wanted in zip(tokens, labels, strict=True):
        if not 1 <= len(sample) <= seq_length:
            raise ValueError(f"a sample must have 1 to {seq_length} tokens to be packed, got {len(sample)}")
        if len(sample) != len(wanted):
            raise ValueError(f"a sample must have a label for each token, got {len(wanted)} for {len(sample)}")
    rows = _best_fit([len(sample) for sample in tokens], seq_length)
    return {
        "input_ids": [_concatenated(tokens[i] for i in row) for row in rows],
        "labels": [_concatenated(labels[i] for i in row) for row in rows],
        "position_ids": [_concatenated(range(len(tokens[i])) for i in row) for row in rows],
    }


class PackingCollator:
    """Collates rows of :func:`pack_samples`, with an attention mask that separates the samples.

    A batch has `input_ids`, `labels` and `position_ids`, int64 [B, L], padded on the right (labels -100), and
    `attention_mask` in the form that the model's family and the installed transformers require: query q of a row
    attends to key k if both belong to one sample. BERT and RoBERTa take one mask, bool [B, 1, L, L] (transformers 4:
    int64 [B, L, L]; eager attention: additive, float). ModernBERT takes a dict with one mask per kind of layer; the
    sliding window does not cross samples either.

    Args:
        model: a masked language model of transformers, optionally with an adapter; attention is "sdpa" or "eager".
        pad_token_id: of the tokenizer.
        pad_to_multiple_of: L is a multiple of this.

    Raises:
        ValueError: an unsupported family or attention implementation; ModernBERT under transformers 4, which accepts
            no such mask.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> tiny = dict(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, vocab_size=50)
        >>> rows = pack_samples({"input_ids": [[5, 6], [7]]}, seq_length=4)
        >>> batch = PackingCollator(BertForMaskedLM(BertConfig(**tiny)), pad_token_id=0)(
        ...     [{name: column[0] for name, column in rows.items()}]
        ... )
        >>> batch["position_ids"]
        tensor([[0, 1, 0]])
        >>> batch["attention_mask"].squeeze().int()
        tensor([[1, 1, 0],
                [1, 1, 0],
                [0, 0, 1]], dtype=torch.int32)
    """

    def __init__(self, model: nn.Module, pad_token_id: int, *, pad_to_multiple_of: int = 1):
        config = model.config
        self.family, self.attention = config.model_type, config._attn_implementation
        if self.family not in FAMILIES:
            raise ValueError(f"packing is known for {', '.join(FAMILIES)}, got the family {self.family!r}")
        if self.attention not in ("sdpa", "eager"):
            raise ValueError(f"packing needs attn_implementation sdpa or eager, got {self.attention!r}")
        if pad_to_multiple_of < 1:
            raise ValueError(f"pad_to_multiple_of must be at least 1, got {pad_to_multiple_of}")
        takes = inspect.signature(getattr(model, model.base_model_prefix, model).forward).parameters
        self.single_mask = self.family != "modernbert"
        if not self.single_mask and "sliding_window_mask" in takes:
            raise ValueError("packing for ModernBERT needs transformers 5, whose masks can be given")
        self.takes_4d_mask = not _transformers_4()
        self.window = None if self.single_mask else config.local_attention // 2
        after_padding = self.family in _COUNT_AFTER_PADDING
        self.first_position = config.pad_token_id + 1 if after_padding else 0
        self.pad_token_id, self.pad_to_multiple_of = pad_token_id, pad_to_multiple_of

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        positions = self._pad([_positions(sample) for sample in samples], 0)
        return {
            "input_ids": self._pad([sample["input_ids"] for sample in samples], self.pad_token_id),
            "labels": self._pad([sample.get("labels", sample["input_ids"]) for sample in samples], IGNORE),
            "position_ids": positions + self.first_position,
            "attention_mask": self._attention_mask(positions),
        }

    def _pad(self, rows: Sequence[Sequence[int]], value: int) -> Tensor:
        longest = max(len(row) for row in rows)
        width = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        return torch.stack([F.pad(torch.as_tensor(row), (0, width - len(row)), value=value) for row in rows])

    def _attention_mask(self, positions: Tensor) -> Tensor | dict[str, Tensor]:
        # padding has position 0, so each padding token is a sample of its own and no row of the mask is empty
        sample = (positions == 0).cumsum(1)
        together = sample[:, :, None] == sample[:, None, :]
        if self.single_mask:
            return self._in_model_form(together)
        place = torch.arange(positions.shape[1])
        near = (place[:, None] - place).abs() <= self.window
        return {
            "full_attention": self._in_model_form(together),
            "sliding_attention": self._in_model_form(together & near),
        }

    def _in_model_form(self, together: Tensor) -> Tensor:
        """Convert a mask, bool [B, L, L], to the form that the model takes."""
        if not self.takes_4d_mask:
            return together.long()  # transformers makes it 4-D and additive
        mask = together[:, None]
        return mask if self.attention == "sdpa" else torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)


def _positions(sample: Mapping[str, Any]) -> Sequence[int]:
    positions = sample.get("position_ids", range(len(sample["input_ids"])))
    if len(positions) != len(sample["input_ids"]) or positions[0] != 0:
        raise ValueError(f"position_ids must begin at 0 and be as many as the tokens, got {list(positions)}")
    return list(positions)


def _transformers_4() -> bool:
    import transformers

    return transformers.__version__.startswith("4.")


def _best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """The indices of the samples in each row."""
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (free tokens, row), fullest row first
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect.bisect_left(free, (lengths[index], -1))
        left, row = free.pop(at) if at < len(free) else (room, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
        bisect.insort(free, (left - lengths[index], row))
    return rows


def _concatenated(parts: Any) -> list[int]:
    return [number for part in parts for number in part]
