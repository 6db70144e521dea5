"""Policies over the engine itself: one request at a time, fixed batches, or rows that join and leave.

Time is virtual: it grows by what planning, joining and stepping take, and jumps to the next arrival where nothing runs.
So a run needs no more time than its work, and processor time may stand for the clock on a machine that others use too.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

from benchmarks.traffic.outcome import Outcome
from benchmarks.traffic.requests import Request
from dllm.core.samplers import MDLMSampler, Plan, ThresholdSampler
from dllm.demo.shipped import load_shipped
from dllm.fast.sampling.rows import FinishedRow
from dllm.fast.sampling.running import Running
from dllm.serve.engine import GRID

SAMPLERS = ("one a step", "threshold 0.9")
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


class Policy(NamedTuple):
    """How requests share batches.

    rows: at once, at most.
    refills: places are taken as soon as they are free; else a batch is complete before the next one starts, and so
        long its answers wait, as those of one call of `sample` do.
    width_multiple: as :class:`~dllm.fast.sampling.running.Running` takes it.
    """

    rows: int
    refills: bool
    width_multiple: int | None = None


def policies(rows: int) -> dict[str, Policy]:
    """The policies to compare."""
    return {
        "one at a time": Policy(1, refills=False),
        f"static {rows}": Policy(rows, refills=False),
        f"continuous {rows}": Policy(rows, refills=True, width_multiple=GRID),
    }


class Steps(NamedTuple):
    """What the steps of a run were made of: how many, their rows, and columns that ran and that were no padding."""

    count: int = 0
    rows: int = 0
    columns: int = 0
    real_columns: int = 0

    def __add__(self, other: Steps) -> Steps:
        return Steps(*(own + more for own, more in zip(self, other, strict=True)))

    def row(self) -> dict[str, float]:
        """Rows per step, and the share of columns that were padding.

        Example:
            >>> Steps(2, 6, 100, 90).row()
            {'steps': 2, 'rows_per_step': 3.0, 'padding': 0.1}
        """
        padding = 1 - self.real_columns / max(self.columns, 1)
        return {
            "steps": self.count,
            "rows_per_step": round(self.rows / max(self.count, 1), 2),
            "padding": round(padding, 4),
        }


class Engine:
    """The shipped model under one sampler.

    Args:
        sampler: of :data:`SAMPLERS`.
        temperature: T of the proposals.
        clock: of :data:`CLOCKS`.

    Raises:
        ValueError: no such sampler or clock.
    """

    def __init__(self, sampler: str, temperature: float, clock: str):
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler must be among {', '.join(SAMPLERS)}, got {sampler}")
        if clock not in CLOCKS:
            raise ValueError(f"clock must be among {', '.join(CLOCKS)}, got {clock}")
        self.model, self.tokenizer = load_shipped()
        kind = MDLMSampler if sampler == "one a step" else ThresholdSampler
        self.sampler: MDLMSampler | ThresholdSampler = kind(self.model, self.tokenizer)
        self.by_steps, self.temperature, self.clock = sampler == "one a step", temperature, CLOCKS[clock]

    def plan(self, request: Request) -> Plan:
        """A request, laid out by itself."""
        turn = [{"role": "user", "content": request.text}]
        text = self.tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        prompt = self.tokenizer(text, add_special_tokens=False).input_ids
        own = dict(steps=request.new_tokens) if self.by_steps else {}
        shared = dict(block_size=None, temperature=self.temperature, stop_at_eos=True)
        return self.sampler.plan([prompt], seed=[request.seed], max_new_tokens=request.new_tokens, **shared, **own)

    def run(
        self, requests: Sequence[Request], arrivals: Iterable[float], policy: Policy
    ) -> tuple[list[Outcome], list[list[int]], Steps]:
        """Answer all requests.

        Args:
            requests: in order of arrival.
            arrivals: when each comes, s.
            policy: how they share batches.

        Returns:
            What came of each, its tokens, and what the steps were made of.
        """
        outcomes = [
            Outcome(request.kind, request.new_tokens, arrival)
            for request, arrival in zip(requests, arrivals, strict=True)
        ]
        return _Run(self, requests, outcomes, policy).to_its_end()


class _Run:
    """One run of :meth:`Engine.run`."""

    def __init__(self, engine: Engine, requests: Sequence[Request], outcomes: list[Outcome], policy: Policy):
        self.engine, self.requests, self.outcomes, self.policy = engine, requests, outcomes, policy
        self.waiting = deque(range(len(requests)))
        self.number: dict[int, int] = {}  # of each row's request, by the row's id
        self.tokens: list[list[int]] = [[] for _ in requests]
        self.running: Running | None = None
        self.steps = Steps()
        self.now = 0.0

    def to_its_end(self) -> tuple[list[Outcome], list[list[int]], Steps]:
        """Answer all."""
        batch: list[int] = []  # finished, and held back until the others of their batch are
        while self.waiting or self.running:
            if not self.running and self.outcomes[self.waiting[0]].arrival > self.now:
                self.now = self.outcomes[self.waiting[0]].arrival
            coming = self._coming()
            began = self.engine.clock()
            self._join(coming)
            self.running.advance()
            stepped = self.engine.clock()
            self.now += stepped - began
            self._look()
            began = self.engine.clock()
            finished = self.running.collect()
            self.now += self.engine.clock() - began
            batch += [self._note(row) for row in finished]
            if self.policy.refills or not self.running:
                for number in batch:
                    self._end(number)
                batch.clear()
        return self.outcomes, self.tokens, self.steps

    def _coming(self) -> list[int]:
        """The requests that take part from now on."""
        rows = 0 if self.running is None else len(self.running)
        if rows and not self.policy.refills:
            return []
        coming: list[int] = []
        while self.waiting and rows + len(coming) < self.policy.rows:
            if self.outcomes[self.waiting[0]].arrival > self.now:
                break
            coming.append(self.waiting.popleft())
        return coming

    def _join(self, coming: Sequence[int]) -> None:
        for number in coming:
            plan = self.engine.plan(self.requests[number])
            if self.running is None:
                multiple = self.policy.width_multiple
                self.running = Running(self.engine.model, plan.policy, width_multiple=multiple)
            (id_,) = self.running.join(plan.batch, plan.policy)
            self.number[id_] = number

    def _look(self) -> None:
        """Note what the step was made of, and which rows have their first text now; no part of the measured time."""
        state = self.running.state
        real, columns = int(state.length.sum()), state.tokens.numel()
        if state.cells is not None:
            columns = len(state.cells)
        elif state.row_groups is not None:
            columns = sum(state.row_groups.widths)
        self.steps += Steps(1, len(self.running), columns, real)
        if self.policy.refills or self.policy.rows == 1:
            begun = state.tokens.gather(1, state.first[:, None])[:, 0] != self.running.policy.mask_id
            self._begin(begun)

    def _begin(self, begun: Tensor) -> None:
        for id_, has_begun in zip(self.running.ids, begun.tolist(), strict=True):
            outcome = self.outcomes[self.number[id_]]
            if has_begun and outcome.first is None:
                outcome.first = self.now

    def _note(self, row: FinishedRow) -> int:
        """Keep the tokens of a row; returns the number of its request."""
        if row.error is not None:
            raise row.error
        number = self.number[row.id]
        self.tokens[number] = row.tokens.tolist()
        answer, eos_id = self.tokens[number][-self.outcomes[number].new_tokens :], self.engine.tokenizer.eos_token_id
        self.outcomes[number].text_tokens = answer.index(eos_id) if eos_id in answer else len(answer)
        return number

    def _end(self, number: int) -> None:
        outcome = self.outcomes[number]
        outcome.end = self.now
        if outcome.first is None:
            outcome.first = self.now


def capacity(engine: Engine, requests: Sequence[Request]) -> float:
    """Requests per second that can be answered one at a time, all waiting at the start."""
    outcomes, _, _ = engine.run(requests, [0.0] * len(requests), Policy(1, refills=False))
    return len(requests) / max(outcome.end for outcome in outcomes)
