"""Rows that wait: first come, first served within a key, and one key after the other."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """A queue for each key, and turns among the keys.

    Example:
        >>> queue = FairQueue()
        >>> for key, item in [("a", 1), ("a", 2), ("b", 3)]:
        ...     queue.put(key, item)
        >>> [queue.take() for _ in range(4)]
        [1, 3, 2, None]
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[Hashable, deque[Item]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[Item]:
        for items in self._waiting.values():
            yield from items

    def put(self, key: Hashable, item: Item) -> None:
        """Let an item wait behind those of its key."""
        self._waiting.setdefault(key, deque()).append(item)

    def take(self, fits: Callable[[Item], bool] = lambda item: True) -> Item | None:
        """The next item that fits; None if the first one of no key does."""
        for key, items in self._waiting.items():
            if fits(items[0]):
                item = items.popleft()
                self._waiting.move_to_end(key)
                if not items:
                    del self._waiting[key]
                return item
        return None

    def remove(self, key: Hashable, item: Item) -> bool:
        """Take an item out; returns whether it was there."""
        items = self._waiting.get(key, ())
        if item not in items:
            return False
        items.remove(item)
        if not items:
            del self._waiting[key]
        return True
