"""What stands around a collator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


class CollatorWrapper:
    """A collator with something done before it (to the samples) and after it (to the batch); all else is its own.

    Example:
        >>> wrapped = CollatorWrapper(lambda samples: {"input_ids": samples})
        >>> wrapped([1, 2])
        {'input_ids': [1, 2]}
    """

    def __init__(self, collator: Callable[[Sequence[Any]], Mapping[str, Any]]):
        self.collator = collator

    def before(self, samples: Sequence[Any]) -> Sequence[Any]:
        """The samples that the collator is given."""
        return samples

    def after(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch that is handed on."""
        return batch

    def __call__(self, samples: Sequence[Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self.after(dict(self.collator(self.before(samples), *args, **kwargs)))

    def __getattr__(self, name: str) -> Any:
        if name == "collator":  # not there yet while this object is being unpickled
            raise AttributeError(name)
        return getattr(self.collator, name)


class NoAttentionMaskWrapper(CollatorWrapper):
    """Without an attention mask padding is attended to: so trained, a model learns to end its answers with it.

    Example:
        >>> NoAttentionMaskWrapper(lambda samples: {"input_ids": samples, "attention_mask": [1]})([5])
        {'input_ids': [5]}
    """

    def after(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch without its attention mask."""
        batch.pop("attention_mask", None)
        return batch
