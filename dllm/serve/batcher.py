"""The queue of rows, the groups of rows that run, and the one thread that runs the model."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from dllm.fast.sampling.state import Policy
from dllm.serve.groups import Group
from dllm.serve.tickets import ABORTED, FAILED, End, Listener, Ticket, Work
from dllm.serve.waiting import FairQueue

IDLE_SECONDS = 1.0  # how long the thread sleeps, at most, where there is nothing to do

_log = logging.getLogger("dllm.serve")


class QueueFull(Exception):
    """So many rows wait that no more are taken now."""


class Closing(Exception):
    """The server ends, or its engine has failed: no more rows are taken."""


class StepReport(NamedTuple):
    """What one step of a group was.

    seconds: wall time.
    rows: how many ran.
    columns, padding: of all rows together, and how many of these were no token of theirs.
    """

    seconds: float
    rows: int
    columns: int
    padding: int


class Batcher:
    """Denoises rows that come at any time, in one thread of its own.

    Rows of one policy form a group, and groups step in turn. Rows join between steps, first come, first served within
    a key, and keys in turn. A row that is cancelled leaves before the next step. An exception in a step fails the rows
    of its group; the thread goes on.

    Args:
        model: as :class:`dllm.fast.sampling.running.Running` takes it, as well as `width_multiple` and `compile_body`.
            Where attention does not go to whole rows, `width_multiple` is not used.
        rows: how many run together, at most.
        max_queue: how many wait, at most.
        on_step: called after each step of a group, in the thread.

    Example:
        >>> from dllm.core.samplers import MDLMSampler
        >>> from dllm.demo.shipped import load_shipped
        >>> sampler, ended = MDLMSampler(*load_shipped()), threading.Event()
        >>> class Told(Listener):
        ...     def on_end(self, end):
        ...         self.end = end
        ...         ended.set()
        >>> plan, told = sampler.plan([[5, 6, 7]], seed=0, steps=4, max_new_tokens=4), Told()
        >>> batcher = Batcher(sampler.model)
        >>> batcher.start()
        >>> tickets = batcher.submit(Work.of(plan), [told])
        >>> ended.wait(60) and (told.end.kind, len(told.end.tokens), told.end.forwards)
        ('finished', 7, 4)
        >>> batcher.close()
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        rows: int = 16,
        max_queue: int = 64,
        width_multiple: int | None = 8,
        compile_body: bool | None = False,
        on_step: Callable[[StepReport], object] | None = None,
    ):
        self.model, self.rows, self.max_queue = model, rows, max_queue
        self.width_multiple, self.compile_body, self.on_step = width_multiple, compile_body, on_step
        self.draining = False
        self._changed = threading.Condition()
        self._queue: FairQueue[Ticket] = FairQueue()
        self._groups: dict[Policy, Group] = {}
        self._leaving: list[Ticket] = []
        self._abort_at = float("inf")
        self._closing = self._dead = False
        self._beat = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="dllm-engine", daemon=True)

    @property
    def queued(self) -> int:
        """How many rows wait."""
        with self._changed:
            return len(self._queue)

    @property
    def running(self) -> int:
        """How many rows run."""
        return sum(len(group.tickets) for group in list(self._groups.values()))

    @property
    def silent_seconds(self) -> float:
        """How long ago the thread began its last step, or looked for work; infinite if it has died."""
        return float("inf") if self._dead else time.monotonic() - self._beat

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, work: Work, listeners: Sequence[Listener], key: str = "") -> list[Ticket]:
        """Let the rows of a work wait for their turn, all or none.

        Args:
            work: rows that were planned, by any thread.
            listeners: one for each row; called in the engine's thread.
            key: of the client.

        Raises:
            QueueFull, Closing: they are not taken.
        """
        tickets = [
            Ticket(work.batch.rows([number]), work.policy, work.eos_id, listener, key)
            for number, listener in enumerate(listeners)
        ]
        self.submit_all(tickets)
        return tickets

    def submit_all(self, tickets: Sequence[Ticket]) -> None:
        """As :meth:`submit`, of rows that may belong to several works."""
        with self._changed:
            if self.draining or self._closing or self._dead:
                raise Closing("no more rows are taken")
            if len(self._queue) + len(tickets) > self.max_queue:
                raise QueueFull(f"{len(self._queue)} rows wait, and there is room for {self.max_queue}")
            for ticket in tickets:
                ticket.submitted = time.monotonic()
                self._queue.put(ticket.key, ticket)
            self._changed.notify()

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Give rows up; those that have ended already are passed over. Their listeners hear no more of them."""
        with self._changed:
            for ticket in tickets:
                ticket.cancelled = True
                if not self._queue.remove(ticket.key, ticket):
                    self._leaving.append(ticket)

    def drain(self, grace: float) -> None:
        """Take no more rows; those that are there may go on for `grace` seconds and are aborted then."""
        with self._changed:
            self.draining = True
            self._abort_at = min(self._abort_at, time.monotonic() + grace)
            self._changed.notify()

    def close(self) -> None:
        """Abort all rows and end the thread."""
        with self._changed:
            self._closing = self.draining = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    # what follows runs in the thread

    @torch.inference_mode()  # the same bits as under no_grad, with less to do in each operation
    def _run(self) -> None:
        try:
            while self._wait():
                self._leave()
                self._join()
                for policy, group in list(self._groups.items()):
                    self._beat = time.monotonic()
                    self._step(policy, group)
            self._abort()
        except BaseException as error:
            self._dead = True
            _log.exception("the engine's thread has died")
            self._abort(error)
            raise

    def _wait(self) -> bool:
        """Sleep until there is work; returns whether to go on."""
        with self._changed:
            while not (self._closing or self._queue or self._groups):
                self._beat = time.monotonic()
                self._leaving.clear()
                self._changed.wait(IDLE_SECONDS)
        if time.monotonic() >= self._abort_at:
            self._abort()
        return not self._closing

    def _leave(self) -> None:
        """Take out the rows that were cancelled."""
        with self._changed:
            leaving, self._leaving = self._leaving, []
        for policy, group in list(self._groups.items()):
            group.leave([ticket for ticket in leaving if ticket in group.tickets.values()])
            self._drop_if_empty(policy, group)

    def _join(self) -> None:
        """Let rows that wait take the places that are free."""
        while (ticket := self._next()) is not None:
            policy = _group_of(ticket.policy)
            group = self._groups.get(policy) or self._new_group(ticket)
            try:
                group.join(ticket)
            except Exception as error:
                _log.exception("a row could not join")
                ticket.tell(End.of(ticket, FAILED, error=error))
            else:
                self._groups[policy] = group

    def _next(self) -> Ticket | None:
        free = self.rows - self.running
        with self._changed:
            return self._queue.take(self._fits) if free > 0 else None

    def _fits(self, ticket: Ticket) -> bool:
        group = self._groups.get(_group_of(ticket.policy))
        return group is None or group.running.takes_more

    def _new_group(self, ticket: Ticket) -> Group:
        multiple = None if ticket.policy.keeps_to_blocks else self.width_multiple
        return Group(self.model, ticket, width_multiple=multiple, compile_body=self.compile_body)

    def _step(self, policy: Policy, group: Group) -> None:
        began, rows = time.monotonic(), len(group.tickets)
        columns, tokens = group.columns, group.tokens
        try:
            group.step()
        except Exception as error:
            _log.exception("a step of %d rows failed", rows)
            group.give_up(FAILED, error)
        if self.on_step is not None:
            self.on_step(StepReport(time.monotonic() - began, rows, columns, columns - tokens))
        self._drop_if_empty(policy, group)

    def _drop_if_empty(self, policy: Policy, group: Group) -> None:
        if not group.tickets:
            self._groups.pop(policy).running.close()

    def _abort(self, error: BaseException | None = None) -> None:
        """End all rows."""
        kind = ABORTED if error is None else FAILED
        with self._changed:
            waiting = list(iter(self._queue.take, None))
        for ticket in waiting:
            ticket.tell(End.of(ticket, kind, error=error))
        for group in self._groups.values():
            group.give_up(kind, error)
        self._groups.clear()


def _group_of(policy: Policy) -> Policy:
    """What rows that run together have in common."""
    return replace(policy, window=1, block_length=1, temperature=0.0)
