"""The progress bar of an evaluation, with a time left for each type of request."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping

from tqdm.std import tqdm

from dllm.core.eval.jobs import NAMES


class Progress:
    """One bar for all requests of a run, or none.

    Requests differ by a factor of a thousand in what they cost, and the long ones run first: a bar that counts requests
    would promise too much. This one counts token positions that run through the model, as estimated beforehand. A
    request that ends early is counted in full.

    A position of one type of request takes another time than one of another: likelihoods share rows, and texts end
    early. So the time left is that of each type by its own pace so far. A type that has not run yet has none, and is
    named instead.

    Args:
        work: of the run, in token positions, by type of request.
        shown: whether this process shows the bar.

    Example:
        >>> progress = Progress({"loglikelihood": 100}, shown=False)
        >>> progress.begin("loglikelihood")
        >>> progress.add("loglikelihood", 60)
        >>> progress.close()
    """

    def __init__(self, work: Mapping[str, int], *, shown: bool):
        self._left, self._done, self._seconds = Counter(work), Counter(), Counter()
        self._since = time.perf_counter()
        self._bar = tqdm(
            total=max(self._left.total(), 1),
            disable=not shown,
            file=sys.stderr,
            desc="evaluation",
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}",
        )

    def begin(self, kind: str) -> None:
        """Requests of this type start to run."""
        self._since = time.perf_counter()

    def add(self, kind: str, work: int, task: str = "") -> None:
        """Count the work of a request that is answered."""
        now = time.perf_counter()
        self._seconds[kind] += now - self._since
        self._since = now
        self._done[kind] += work
        self._left[kind] -= work
        self._bar.set_postfix_str(", ".join(filter(None, (self.time_left(), task))), refresh=False)
        self._bar.update(work)

    def time_left(self) -> str:
        """The time left, in words.

        Example:
            >>> progress = Progress({"generate_until": 50, "loglikelihood_rolling": 9}, shown=False)
            >>> progress.time_left()
            'perplexities and texts are not timed yet'
        """
        left = [kind for kind, work in self._left.items() if work > 0]
        timed = [kind for kind in left if self._done[kind]]
        untimed = " and ".join(sorted(NAMES[kind] for kind in left if not self._done[kind]))
        seconds = sum(self._seconds[kind] / self._done[kind] * self._left[kind] for kind in timed)
        known = f"{duration(seconds)} left" if timed or not untimed else ""
        return "; ".join(filter(None, (known, untimed and f"{untimed} are not timed yet")))

    def close(self) -> None:
        """End the bar."""
        self._bar.close()


def duration(seconds: float) -> str:
    """A time as people say it.

    Example:
        >>> duration(4.2), duration(125), duration(9000)
        ('4.2 s', '2 min 5 s', '2 h 30 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
