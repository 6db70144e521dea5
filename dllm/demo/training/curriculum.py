"""The lessons as a data set of :class:`~dllm.core.trainers.MDLMTrainer`, every forward of every process ready made.

Of each answer of N tokens, every token is masked with probability t, t spread evenly over (0, 1) among the rows of a
batch; in the rows that have a tail, all of it. What is masked depends on the seed, the number of the step and the
lesson alone, so it is the same on any number of processes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dllm.core.noising import diffusion_times, sample_seeds
from dllm.core.trainers.collator import IGNORE
from dllm.demo.training.lessons import Batch, Lessons

FORWARDS = 3  # of each process in a step: long conversations, short ones, sums; before there are sums, two and one
LEAST_ROWS = 4  # of a process in a step, so that none of its forwards is empty

Rows = dict[str, Tensor]


class Curriculum(Dataset):
    """What the base collator of :class:`~dllm.core.trainers.collator.MDLMCollator` hands on, by number.

    Item ((step x FORWARDS) + forward) x processes + process: taken in turn, a process's items are its own.

    Args:
        lessons: of a run.
        steps: of the run.
        processes: that train together; each takes its share of the rows of every batch.

    Raises:
        ValueError: batches too small for that many processes.

    Example:
        >>> from dllm.demo.training.lessons import vocabulary
        >>> lessons = Lessons(vocabulary(), batch_size=10, seed=0)
        >>> curriculum = Curriculum(lessons, steps=1401, processes=1)
        >>> [len(curriculum[item]["input_ids"]) for step in (7, 1400) for item in range(3 * step, 3 * step + 3)]
        [4, 3, 3, 7, 3, 10]
    """

    def __init__(self, lessons: Lessons, *, steps: int, processes: int):
        if lessons.batch_size < LEAST_ROWS * processes:
            raise ValueError(
                f"expected a batch_size of at least {LEAST_ROWS} for each process, {LEAST_ROWS * processes}, "
                f"got {lessons.batch_size}"
            )
        self.lessons, self.steps, self.processes = lessons, steps, processes
        self._latest: tuple[int, list[Rows]] = (-1, [])

    def __len__(self) -> int:
        return self.steps * FORWARDS * self.processes

    def __getitem__(self, item: int) -> Rows:
        turn, process = divmod(item, self.processes)
        number, forward = divmod(turn, FORWARDS)
        return shares(self._forwards(number)[forward], self.processes)[process]

    def _forwards(self, number: int) -> list[Rows]:
        """Step `number`, kept until another is asked for."""
        if self._latest[0] != number:
            problems, *others = (prepared(batch, number, self.lessons.seed) for batch in self.lessons[number])
            self._latest = number, [*shares(problems, FORWARDS - len(others)), *others]
        return self._latest[1]


def prepared(batch: Batch, number: int, seed: int) -> Rows:
    """A batch of step `number` as MDLMCollator takes it: `input_ids` and `labels` [B, L], `times` and `seeds` [B].

    The seed of a row is drawn anew for each step: lines of small talk and sums come again and again.
    """
    rows, width = batch.tokens.shape
    maskable = batch.answer & (torch.arange(width) >= batch.tail[:, None])  # of a row without tail all: it is -1
    times = diffusion_times(torch.full((rows,), seed), number, low=0.0, high=1.0, antithetic=True)
    return {
        "input_ids": batch.tokens,
        "labels": batch.tokens.where(maskable, IGNORE),
        "times": times.masked_fill(batch.tail >= 0, 1.0),
        "seeds": sample_seeds(batch.tokens, torch.full((rows,), width), seed + number),
    }


def shares(rows: Rows, count: int) -> list[Rows]:
    """The rows dealt out to `count`."""
    return [{name: values[first::count] for name, values in rows.items()} for first in range(count)]
