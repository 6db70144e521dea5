"""Rows of one policy that run together, and whose they are."""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import nn

from dllm.fast.sampling.ends import EarlyEnds
from dllm.fast.sampling.rows import FinishedRow
from dllm.fast.sampling.running import Running
from dllm.serve.tickets import FAILED, FINISHED, End, Ticket


class Group:
    """Rows that run together, and whose they are. All methods are called in the engine's thread.

    Args:
        model, width_multiple, compile_body: as :class:`dllm.fast.sampling.running.Running` takes them.
        first: a row that will join.
    """

    def __init__(self, model: nn.Module, first: Ticket, *, width_multiple: int | None, compile_body: bool | None):
        eos_id = first.policy.mask_id if first.eos_id is None else first.eos_id  # it only fills what nobody reads
        self.tickets: dict[int, Ticket] = {}
        self.running = Running(
            model,
            first.policy,
            width_multiple=width_multiple,
            compile_body=compile_body,
            record_body=True,
            early_ends=EarlyEnds(self._on_final, first.policy, eos_id),
        )

    @property
    def columns(self) -> int:
        """Columns that a step runs."""
        return sum(self.running.widths)

    @property
    def tokens(self) -> int:
        """How many of them are no padding."""
        return sum(ticket.length for ticket in self.tickets.values())

    def join(self, ticket: Ticket) -> None:
        (id_,) = self.running.join(ticket.batch, ticket.policy, keeps_log_probs=ticket.keeps_log_probs)
        ticket.joined = time.monotonic()
        self.tickets[id_] = ticket

    def leave(self, tickets: Sequence[Ticket]) -> None:
        ids = [id_ for id_, ticket in self.tickets.items() if ticket in tickets]
        self.running.leave(ids)
        for id_ in ids:
            del self.tickets[id_]

    def step(self) -> None:
        """Run a step, show it to those who watch, and tell of the rows that have ended."""
        self.running.advance()
        for ticket in self.tickets.values():
            ticket.steps += 1
        watched = [id_ for id_, ticket in self.tickets.items() if ticket.listener.watches and not ticket.cancelled]
        if watched:
            for id_, view in zip(watched, self.running.view(watched), strict=True):
                self.tickets[id_].listener.on_view(view)
        for row in self.running.collect():
            self._tell(self.tickets.pop(row.id), row)

    def give_up(self, kind: str, error: BaseException | None) -> None:
        """End all rows as they are."""
        self.running.close()
        tickets, self.tickets = list(self.tickets.values()), {}
        for ticket in tickets:
            ticket.tell(End.of(ticket, kind, tokens=ticket.final, error=error))

    def _tell(self, ticket: Ticket, row: FinishedRow) -> None:
        error = row.error or ticket.fault
        kind = FINISHED if error is None else FAILED
        log_probs = None if row.log_probs is None else row.log_probs.tolist()
        end = End.of(ticket, kind, tokens=row.tokens.tolist(), forwards=row.forwards, error=error)
        ticket.tell(end._replace(log_probs=log_probs))

    def _on_final(self, id_: int, tokens: list[int]) -> bool:
        ticket = self.tickets[id_]
        ticket.final = tokens
        try:
            return ticket.listener.on_final(tokens)
        except Exception as error:  # its own fault: the row ends, others go on
            ticket.fault = error
            return True
