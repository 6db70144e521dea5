"""What an estimate of sampling is about, and what it says: the rows of a call, and the costs of its steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dllm.fast.sampling.inputs import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas:
    """The rows of a call, all of the same length.

    batch: number of rows.
    prompt: given tokens of a row.
    settings: of `generate`: tokens to generate, per block, and steps.

    Raises:
        ValueError: a number is below its least, 1 for the batch and 0 for the prompt.
    """

    batch: int
    prompt: int
    settings: Settings

    def __post_init__(self):
        for name, least in (("batch", 1), ("prompt", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    @property
    def columns(self) -> int:
        return self.prompt + self.settings.gen_length


class StepCost(NamedTuple):
    """One kind of step.

    name: when it runs.
    times: how often in a call.
    columns: of each row that run.
    memory: bytes at the peak of the step, without weights and KV cache.
    read: bytes of weights and of the KV cache that are read.
    flops: multiplications and additions of matrix products and attention.
    """

    name: str
    times: int
    columns: int
    memory: int
    read: int
    flops: int


class CacheCost(NamedTuple):
    """Sampling with one kind of cache: None, "block" or "dual"; bytes that it keeps, and the kinds of steps."""

    cache: str | None
    bytes: int
    steps: tuple[StepCost, ...]

    @property
    def peak(self) -> int:
        """Bytes of the cache and of the most expensive step."""
        return self.bytes + max(step.memory for step in self.steps)

    @property
    def flops(self) -> int:
        """Of the whole call."""
        return sum(step.times * step.flops for step in self.steps)


class SamplingEstimate(NamedTuple):
    """What sampling takes.

    parameters: of the model; shared ones count once.
    active: those that a token uses: all but the experts that are not chosen for it.
    weights: bytes.
    caches: the costs under each kind of cache that the model can use.
    """

    parameters: int
    active: int
    weights: int
    caches: tuple[CacheCost, ...]
