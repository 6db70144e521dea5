"""Wrappers that change the samples before a collator or the batch after it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dllm.data.chat import IGNORE
from dllm.data.lengths import PER_TOKEN
from dllm.data.tokens import prepend_bos
from dllm_kernels import philox


class CollatorWrapper:
    """Base class: a collator with a hook before it (on the samples) and one after it (on the batch).

    All other attributes are those of the wrapped collator.

    Example:
        >>> wrapped = CollatorWrapper(lambda samples: {"input_ids": samples})
        >>> wrapped([1, 2])
        {'input_ids': [1, 2]}
    """

    def __init__(self, collator: Callable[[Sequence[Any]], Mapping[str, Any]]):
        self.collator = collator

    def before(self, samples: Sequence[Any]) -> Sequence[Any]:
        """Return the samples for the collator."""
        return samples

    def after(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the final batch."""
        return batch

    def __call__(self, samples: Sequence[Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self.after(dict(self.collator(self.before(samples), *args, **kwargs)))

    def __getattr__(self, name: str) -> Any:
        if name == "collator":  # missing while this object is being unpickled
            raise AttributeError(name)
        return getattr(self.collator, name)


class NoAttentionMaskWrapper(CollatorWrapper):
    """Drops the attention mask, so that padding is attended to: the model learns to end its answers with padding.

    Example:
        >>> NoAttentionMaskWrapper(lambda samples: {"input_ids": samples, "attention_mask": [1]})([5])
        {'input_ids': [5]}
    """

    def after(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch without its attention mask."""
        batch.pop("attention_mask", None)
        return batch


class PrependBOSWrapper(CollatorWrapper):
    """Prepends a BOS token to each row of a batch; it is never masked. See :func:`~dllm.data.tokens.prepend_bos`.

    Args:
        collator: makes batches [B, L], padded on the right.
        bos_token_id: id of the BOS token.
        label_pad_token_id: label of the BOS token.

    Raises:
        TypeError: `bos_token_id` is not an integer.

    Example:
        >>> wrapped = PrependBOSWrapper(lambda samples: {"input_ids": torch.tensor(samples)}, bos_token_id=1)
        >>> wrapped([[5, 6]])
        {'input_ids': tensor([[1, 5, 6]])}
    """

    def __init__(
        self,
        collator: Callable[[Sequence[Any]], Mapping[str, Any]],
        bos_token_id: int,
        label_pad_token_id: int = IGNORE,
    ):
        if not isinstance(bos_token_id, int):
            raise TypeError(f"bos_token_id must be a token id, got {bos_token_id!r}: does the tokenizer have one?")
        super().__init__(collator)
        self.bos_token_id, self.label_pad_token_id = bos_token_id, label_pad_token_id

    def after(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with [B, L + 1] tokens."""
        return prepend_bos(batch, self.bos_token_id, self.label_pad_token_id)


class RandomTruncateWrapper(CollatorWrapper):
    """Cuts a small share of batches to a random length, so that the model also learns shorter lengths.

    The length is uniform over all lengths that keep at least one label in the batch: 1 to L if every token has one.
    Whether and where a batch is cut depends only on its tokens, not on the process or on resumption.

    Args:
        collator: makes batches [B, L], padded on the right.
        random_length_ratio: probability that a batch is cut.
        label_pad_token_id: label of tokens that are not learnt.

    Raises:
        ValueError: `random_length_ratio` is outside [0, 1].

    Source: LLaDA (arXiv:2502.09992), which does so for 1 % of its pre-training data.

    Example:
        >>> wrapped = RandomTruncateWrapper(lambda samples: {"input_ids": torch.tensor(samples)}, random_length_ratio=1)
        >>> wrapped([[5, 6, 7, 8, 9]])["input_ids"].shape[1] <= 5
        True
    """

    def __init__(
        self,
        collator: Callable[[Sequence[Any]], Mapping[str, Any]],
        random_length_ratio: float = 0.01,
        label_pad_token_id: int = IGNORE,
    ):
        if not 0 <= random_length_ratio <= 1:
            raise ValueError(f"random_length_ratio must lie in [0, 1], got {random_length_ratio}")
        super().__init__(collator)
        self.random_length_ratio, self.label_pad_token_id = random_length_ratio, label_pad_token_id

    def after(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch, or its first columns."""
        tokens = batch["input_ids"]
        width = tokens.shape[1]
        shortest = self._shortest(batch.get("labels"))
        generator = generator_of(tokens)
        if generator.random() >= self.random_length_ratio or shortest >= width:
            return batch
        length = generator.randint(shortest, width)
        return {name: value[:, :length] if name in PER_TOKEN else value for name, value in batch.items()}

    def _shortest(self, labels: Tensor | None) -> int:
        """The smallest length at which the batch has a label."""
        if labels is None:
            return 1
        learnt = (labels != self.label_pad_token_id).any(0).nonzero()
        return int(learnt[0]) + 1 if len(learnt) else labels.shape[1]


def generator_of(tokens: Tensor) -> random.Random:
    """A random generator whose seed is derived from the batch's tokens."""
    row = tokens.reshape(1, -1)
    return random.Random(int(philox.sample_seeds(row, torch.tensor([row.shape[1]]), run_seed=0)))
