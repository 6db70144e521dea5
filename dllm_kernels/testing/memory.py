"""Memory that shows what is read before it is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """torch.empty and its kin hand out NaN (floats) and -7 (integers), so that what is read unwritten shows.

    Example:
        >>> with poisoned_memory():
        ...     torch.empty(1)
        tensor([nan])
    """
    original = {name: getattr(torch, name) for name in ("empty", "empty_like", "empty_strided")}

    def poisoned(make):
        def wrapper(*args, **kwargs):
            fresh = make(*args, **kwargs)
            if fresh.dtype == torch.bool:
                return fresh
            return fresh.fill_(float("nan") if fresh.is_floating_point() else -7)

        return wrapper

    try:
        for name, make in original.items():
            setattr(torch, name, poisoned(make))
        yield
    finally:
        for name, make in original.items():
            setattr(torch, name, make)
