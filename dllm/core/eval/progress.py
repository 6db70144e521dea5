"""The progress bar of an evaluation. It counts the work that requests cost, so that its time left is honest."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.std import tqdm


class Progress:
    """One bar for all requests of a run, or none.

    Requests differ by a factor of a thousand in what they cost, and the long ones run first: a bar that counts requests
    would promise too much. This one counts token positions that run through the model, as estimated beforehand. A
    request that ends early is counted in full.

    Args:
        total: the work of the run, in token positions.
        shown: whether this process shows the bar.

    Example:
        >>> progress = Progress(100, shown=False)
        >>> progress.add(60)
        >>> progress.close()
    """

    def __init__(self, total: int, *, shown: bool):
        # the average over the whole run, not the last seconds: requests are sorted by length
        self._bar = tqdm(
            total=max(total, 1),
            disable=not shown,
            unit="tok",
            unit_scale=True,
            smoothing=0,
            file=sys.stderr,
            desc="evaluation",
        )

    def add(self, work: int, **shown: Any) -> None:
        """Count the work of a request; `shown` is written behind the bar."""
        if shown:
            self._bar.set_postfix(shown, refresh=False)
        self._bar.update(work)

    def close(self) -> None:
        """End the bar."""
        self._bar.close()
