"""Rows on their way through the batcher: what is to be done, who listens, and how they end."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import NamedTuple

from dllm.core.samplers.run import Plan
from dllm.fast.sampling.batch import DenoisingBatch
from dllm.fast.sampling.live import RowView
from dllm.fast.sampling.state import Policy

FINISHED, ABORTED, FAILED = "finished", "aborted", "failed"


class Work(NamedTuple):
    """Rows that are checked and laid out.

    batch: one or several rows.
    policy: of the loop.
    eos_id: the tokenizer's; None: it has none.
    """

    batch: DenoisingBatch
    policy: Policy
    eos_id: int | None

    @classmethod
    def of(cls, plan: Plan) -> Work:
        """The rows of a sampler's plan."""
        return cls(plan.batch, plan.policy, plan.eos_id)


class Listener:
    """Hears of one row, in the engine's thread; so its methods must be quick and must not raise.

    watches: whether it wants to see each step.
    """

    watches: bool = False

    def on_final(self, tokens: list[int]) -> bool:
        """More tokens from the row's first column on are final, as :class:`dllm.fast.sampling.ends.EarlyEnds` tells.
        Returns whether the row may end with them."""
        return False

    def on_view(self, view: RowView) -> None:
        """A step has run."""

    def on_end(self, end: End) -> None:
        """The row is over; nothing comes after this."""


class End(NamedTuple):
    """How a row ended.

    kind: FINISHED; ABORTED, because the server ends; or FAILED, with an error.
    tokens: all columns of a finished row; of another one the tokens that were final, from its first generated column.
    log_probs: of the tokens in all columns of a finished row, NaN for those that were given; None: not wanted.
    forwards: runs of the model that it took part in.
    error: why it failed.
    began: whether it ran at all.
    queued_seconds, computed_seconds: how long it waited, and how long it ran.
    """

    kind: str
    tokens: list[int]
    log_probs: list[float] | None
    forwards: int
    error: BaseException | None
    began: bool
    queued_seconds: float
    computed_seconds: float

    @classmethod
    def of(
        cls,
        ticket: Ticket,
        kind: str,
        *,
        tokens: list[int] | None = None,
        forwards: int | None = None,
        error: BaseException | None = None,
    ) -> End:
        """The end of a row now."""
        now, joined = time.monotonic(), ticket.joined
        queued = (now if joined is None else joined) - ticket.submitted
        computed = 0.0 if joined is None else now - joined
        forwards = ticket.steps if forwards is None else forwards
        return cls(kind, tokens or [], None, forwards, error, joined is not None, queued, computed)


@dataclass(slots=True, eq=False)
class Ticket:
    """One row in the batcher.

    batch: the row. policy, eos_id: see :class:`Work`. listener: hears of it. key: of the client.
    keeps_log_probs: whether those of its tokens are wanted.
    length: its columns.
    submitted, joined: by `time.monotonic`; None: it has not joined yet.
    final: its tokens that no step can change any more, from its first generated column on.
    steps: how many it has taken part in.
    cancelled: nobody wants it any more.
    fault: what its listener raised.
    """

    batch: DenoisingBatch
    policy: Policy
    eos_id: int | None
    listener: Listener
    key: str = ""
    keeps_log_probs: bool = False
    length: int = field(init=False)
    submitted: float = 0.0
    joined: float | None = None
    final: list[int] = field(default_factory=list)
    steps: int = 0
    cancelled: bool = False
    fault: Exception | None = None

    def __post_init__(self) -> None:
        self.length = int(self.batch.length[0])

    def tell(self, end: End) -> None:
        """Tell the listener of the end, unless it was cancelled."""
        if not self.cancelled:
            self.listener.on_end(end)
