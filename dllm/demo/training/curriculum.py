"""The lessons as a dataset for :class:`~dllm.core.trainers.MDLMTrainer`: one item per forward pass and process.

Every token of an answer is masked with probability t; the t of a batch's rows are spread evenly over (0, 1). In rows
with a tail exactly the tail is masked. Masks depend on the seed, the step and the row only, so they are the same on any
number of processes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dllm.core.noising import diffusion_times
from dllm.core.trainers.collator import IGNORE
from dllm.demo.training.lessons import Batch, Lessons
from dllm_kernels import philox

# forward passes per process and step: long conversations, short ones, sums; before there are sums, two and one
FORWARDS = 3
LEAST_ROWS = 4  # per process and step, so that no forward pass is empty

Rows = dict[str, Tensor]


class Curriculum(Dataset):
    """Inputs of :class:`~dllm.core.trainers.collator.MDLMCollator`, each a whole batch.

    Item (step x FORWARDS + forward) x processes + process is the batch of one forward pass of one process, so a sampler
    that deals items out in turn gives each process its own.

    Args:
        lessons: the training data.
        steps: of the run.
        processes: number of processes; the rows of every batch are divided among them.

    Raises:
        ValueError: the batches are too small for that many processes.

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
        return split_rows(self._forwards(number)[forward], self.processes)[process]

    def _forwards(self, number: int) -> list[Rows]:
        """The FORWARDS batches of step `number`; the last step is cached."""
        if self._latest[0] != number:
            problems, *others = (collator_input(batch, number, self.lessons.seed) for batch in self.lessons[number])
            self._latest = number, [*split_rows(problems, FORWARDS - len(others)), *others]
        return self._latest[1]


def collator_input(batch: Batch, number: int, seed: int) -> Rows:
    """The input of MDLMCollator for a batch of step `number`: `input_ids` and `labels` [B, L], `times` and `seeds` [B].

    The seed of a row depends on the step: small talk and sums repeat, and must not be masked alike each time.
    """
    rows, width = batch.tokens.shape
    maskable = batch.answer & (torch.arange(width) >= batch.tail[:, None])  # tail is -1 in rows without one
    times = diffusion_times(torch.full((rows,), seed), number, low=0.0, high=1.0, antithetic=True)
    return {
        "input_ids": batch.tokens,
        "labels": batch.tokens.where(maskable, IGNORE),
        "times": times.masked_fill(batch.tail >= 0, 1.0),
        "seeds": philox.sample_seeds(batch.tokens, torch.full((rows,), width), seed + number),
    }


def split_rows(rows: Rows, count: int) -> list[Rows]:
    """Deal the rows out in turn to `count` batches."""
    return [{name: values[first::count] for name, values in rows.items()} for first in range(count)]
