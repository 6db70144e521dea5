"""Rows that denoise together: they join and leave between steps, and each gets the tokens that it gets alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from dllm.fast.compiled import decision
from dllm.fast.compiled.recorded import RecordedBody
from dllm.fast.head.split import SplitModel
from dllm.fast.model import position_limit
from dllm.fast.sampling import live, merge
from dllm.fast.sampling.batch import DenoisingBatch
from dllm.fast.sampling.cache import SPARE, KeyValueCache
from dllm.fast.sampling.cache_layout import find_layout
from dllm.fast.sampling.clock import Clock
from dllm.fast.sampling.ends import EarlyEnds, ended
from dllm.fast.sampling.plan import Planner
from dllm.fast.sampling.replay import Replays
from dllm.fast.sampling.row_layout import lay_out, warn_of_dropout
from dllm.fast.sampling.rows import (
    FinishedRow,
    Row,
    check_company,
    common_policy,
    rows_of,
    sizes_of,
    with_log_probs,
    with_temperatures,
)
from dllm.fast.sampling.state import Policy, State
from dllm.fast.sampling.step import denoise_step
from dllm.fast.sampling.unpadded import has_own_bits
from dllm_kernels import _checks

# To ask a GPU whether rows are finished means to wait for it: do so every so many steps only.
POLL_EVERY = {"cpu": 1, "cuda": 8}


class Running:
    """Rows in flight, under one policy. Finished rows leave the batch and cost nothing more.

    A row's steps and blocks are counted from its own first step, and a row whose logits have no finite number leaves
    with an error of its own. Between steps rows may :meth:`join` and :meth:`leave`. The state then grows to the widest
    row, or shrinks to it, but not beside a KV cache, where rows join only while none runs.

    What a row is computed with depends on its canvas' width in its last bits: about 1e-5 in float32, enough to choose
    another token where two are as good as equal. So there are two modes:

    width_multiple=None  all rows run in one forward, as wide as the widest. A row has its own tokens up to such bits.
    width_multiple=n     a row runs n, 2n, ... columns wide, as its length needs, and rows of another width in another
                         forward of the same step. On a CPU in float32 it then has the same bits in any company.

    Under "packed_sdpa" (:func:`dllm.models.with_packed_attention`) both run all rows in one forward, each as wide as it
    is, and a row has the same bits in any company.

    Args:
        model: as :func:`dllm.fast.generate` takes it.
        policy: the settings.
        width_multiple: see above. It needs attention to whole rows.
        cuda_graph: as :func:`dllm.fast.generate` takes it. Captured steps keep their shape: rows then leave when all
            are finished, and once a row joins or is made to leave, steps run eagerly.
        compile_body: as :func:`dllm.fast.generate` takes it; decided when the first rows join.
        record_body: a body that does not run compiled runs from a recording of its operations, where it can, with the
            same bits (:mod:`dllm.fast.compiled.recorded`).
        timed: whether the parts of each step are timed.
        early_ends: asked, where the host looks for finished rows, which others end; it is given the rows' ids.
        watched: somebody looks at the rows after each step, so no graph runs several steps at once.

    Attributes:
        forwards: how often the model ran, causal passes included.
        clock: seconds of the parts of a step, with `timed`.
        replays: the captured steps, and why there are none.
        compiling: whether the body runs compiled, and why.
        rows_note: how rows of unequal length run.
        cache_bytes: what the KV cache takes.
        overflow: masked positions that had to wait for the head, on a GPU.

    Raises:
        ValueError: width_multiple is below 1, or attention goes block by block.

    Example:
        >>> from dllm.core.samplers import MDLMSampler
        >>> from dllm.demo.shipped import load_shipped
        >>> sampler = MDLMSampler(*load_shipped())
        >>> plan = sampler.plan([[5, 6, 7], [8, 9]], seed=0, steps=4, max_new_tokens=4)
        >>> running = Running(sampler.model, plan.policy)
        >>> running.join(plan.batch)
        [0, 1]
        >>> running.leave([0])
        >>> while running:
        ...     finished = running.step()
        >>> [(row.id, len(row.tokens), row.forwards, row.error) for row in finished]
        [(1, 6, 4, None)]
    """

    def __init__(
        self,
        model: nn.Module,
        policy: Policy,
        *,
        width_multiple: int | None = None,
        cuda_graph: bool | None = False,
        compile_body: bool | None = False,
        record_body: bool = False,
        timed: bool = False,
        early_ends: EarlyEnds | None = None,
        watched: bool = False,
    ):
        if width_multiple is not None and _checks.int64("width_multiple", width_multiple) < 1:
            raise ValueError(f"width_multiple must be at least 1, got {width_multiple}")
        if width_multiple is not None and policy.keeps_to_blocks:
            raise ValueError("width_multiple needs attention to whole rows, got a cache or block-causal attention")
        self.model, self.policy, self.width_multiple = model, policy, width_multiple
        self.cuda_graph, self.compile_body, self.compiling = cuda_graph, compile_body, decision.EAGER
        self.record_body = record_body
        self.timed, self.early_ends, self.watched = timed, early_ends, watched
        self.forwards, self.cache_bytes, self.overflow, self.rows_note = 0, 0, 0, ""
        self.clock: Clock | None = None
        self.replays: Replays | None = None
        self._rows: list[Row] = []
        self._next_id = 0
        self._state: State | None = None
        self._split: SplitModel | None = None
        self._planner: Planner | None = None
        self._cache: KeyValueCache | None = None
        self._taken = 0  # steps since there were no rows
        self._looks = False

    def __len__(self) -> int:
        """How many rows run."""
        return len(self._rows)

    @property
    def ids(self) -> list[int]:
        """The rows that run, in order."""
        return [row.id for row in self._rows]

    @property
    def widths(self) -> list[int]:
        """How many columns of each row run, with padding."""
        widths = [row.width for row in self._rows]
        apart = self.width_multiple is not None or (self._state is not None and self._state.cells is not None)
        return widths if apart else [max(widths, default=0)] * len(widths)

    @torch.no_grad()
    def join(self, batch: DenoisingBatch, policy: Policy | None = None, *, keeps_log_probs: bool = False) -> list[int]:
        """Let rows take part from the next step on.

        Args:
            batch: the rows.
            policy: under which they were planned, which may differ from the others' in `window`, `block_length` and
                `temperature`; None: the same as theirs.
            keeps_log_probs: whether these rows, finished or seen, have the log-probabilities of their tokens.

        Returns:
            Their ids, which go on from 0.

        Raises:
            ValueError: another policy, device or `suppress` than that of the running rows; a cache beside running rows;
                the model is causal, does not follow a block-causal mask, or attends by blocks and the policy does not.
                Nothing has joined then.
            RuntimeError: cuda_graph=True and the step cannot be captured, or compile_body=True and the body cannot be
                compiled.
        """
        own = self.policy if policy is None else policy
        policy = self.policy if policy is None else common_policy(self.policy, policy)
        if self._rows:
            check_company(self._state, policy, batch)
        if len(batch.tokens) == 0:
            return []
        split, device = self._split, batch.tokens.device
        if not self._rows:
            self.replays = Replays(self.cuda_graph, device, watched=self.watched)
            split = SplitModel(self.model, batch.tokens[:1, : min(16, batch.tokens.shape[1])])
            warn_of_dropout(self.model)
        else:
            self._leave_graphs("rows have joined a batch that runs")
        new = self._described(split, batch, own, keeps_log_probs)
        rows = self._rows + new
        sizes = sizes_of(rows, policy)
        states = [] if self._state is None else [self._state]
        states = [merge.resized(state, sizes, policy.mask_id) for state in (*states, batch.state(policy))]
        states = [with_log_probs(state, rows) for state in states]
        state, policy = with_temperatures(merge.joined(states), policy, rows)
        sized = [(row.length, row.width) for row in rows]
        by_width = self.width_multiple is not None
        state.cells, state.row_groups, note = lay_out(split, policy, sized, device, by_width=by_width)
        planner = Planner(policy, state, batch.schedule) if self._planner is None else self._planner
        self.policy, self._split, self._planner, self._rows, self._state = policy, split, planner, rows, state
        self.rows_note, self._next_id = note, self._next_id + len(new)
        if len(rows) == len(new):
            self._begin(device)
        return [row.id for row in new]

    @torch.no_grad()
    def leave(self, ids: Sequence[int]) -> None:
        """Remove rows before they are finished; they are not reported.

        Raises:
            ValueError: no such row runs; none has left.
        """
        if unknown := set(ids) - set(self.ids):
            raise ValueError(f"no such rows run: {sorted(unknown)}; those that do: {self.ids}")
        if leaving := set(ids):
            self._leave_graphs("rows were given up")
            self._keep([place for place, row in enumerate(self._rows) if row.id not in leaving])

    def step(self) -> list[FinishedRow]:
        """Run one step of all rows, and return those that are finished now, or have an error.

        To look for them a GPU must be waited for: that happens every few steps, and only where rows may be finished
        apart. After an exception, which the model may raise, the rows are no longer whole: :meth:`close` gives them up.
        """
        self.advance()
        return self.collect()

    @torch.no_grad()
    def view(self, ids: Sequence[int]) -> list[live.RowView]:
        """How rows look now.

        Raises:
            ValueError: no such row runs.
        """
        places = {row.id: place for place, row in enumerate(self._rows)}
        if unknown := set(ids) - set(places):
            raise ValueError(f"no such rows run: {sorted(unknown)}; those that do: {self.ids}")
        views = live.view(self._state, self.policy, [places[id_] for id_ in ids])
        kept = [self._rows[places[id_]].keeps_log_probs for id_ in ids]
        return [view if keeps else view._replace(log_probs=None) for view, keeps in zip(views, kept, strict=True)]

    @torch.no_grad()
    def advance(self) -> None:
        """Run one step, or one replay of several; rows that are finished stay for :meth:`collect`."""
        most, before = max((row.left for row in self._rows), default=0), self._taken
        self._looks = False
        if most <= 0:
            return
        ends_apart = self._ends_apart
        exact = self._device.type == "cpu" and self.replays.captured is None
        passes = self._planner.passes(self._state, before, exact=exact)
        common = self._split, self.policy, self._cache
        count = self.replays.run(*common, self._planner, passes, before, before + most)
        if count == 0:
            denoise_step(self._split, self._state, self.policy, self.clock, self._cache, passes)
            count = 1
        self.forwards, self._taken = self.forwards + count + passes[0].causal, before + count
        for row in self._rows:
            row.left -= count
        every = POLL_EVERY.get(self._device.type, 1)
        self._looks = ends_apart and self._taken // every > before // every and count < most
        if self._looks and self.early_ends is not None:
            self.early_ends.end_rows(self._state, self.ids)

    @torch.no_grad()
    def collect(self) -> list[FinishedRow]:
        """Take the finished rows out."""
        if all(row.left <= 0 for row in self._rows):
            return self._retire(list(range(len(self._rows))))
        return self._retire(self._finished()) if self._looks else []

    def close(self) -> None:
        """Give up all rows, and let others have the graphs and the cache."""
        if self.replays is not None:
            self.replays.give_back()
        if self._cache is not None:
            SPARE.give_back(self._cache)
        self._rows, self._state, self._split, self._planner, self._cache = [], None, None, None, None

    @property
    def takes_more(self) -> bool:
        """Whether rows may join: beside a cache, and while steps are captured, only where none runs."""
        return not self._rows or (self.policy.cache is None and not self.graphed)

    @property
    def state(self) -> State:
        """The tensors of the rows that run."""
        return self._state

    @property
    def graphed(self) -> bool:
        """Whether steps are, or were, replays of captured ones."""
        return self.replays is not None and self.replays.captured is not None

    @property
    def note(self) -> str:
        """Why steps are no replays, and how rows of unequal length run."""
        return "; ".join(filter(None, ("" if self.replays is None else self.replays.note, self.rows_note)))

    @property
    def _device(self) -> torch.device:
        return self._state.tokens.device

    @property
    def _ends_apart(self) -> bool:
        """Whether some rows may be finished before the others, so that it is worth looking."""
        as_scheduled = self.policy.follows_schedule and self.early_ends is None
        return not as_scheduled or self._device.type == "cpu" or len({row.left for row in self._rows}) > 1

    def _described(self, split: SplitModel, batch: DenoisingBatch, policy: Policy, keeps_log_probs: bool) -> list[Row]:
        """What the host must know of new rows; waits for the device."""
        multiple = limit = None
        if self.width_multiple is not None and not has_own_bits(split):
            multiple, (positions, is_hard) = self.width_multiple, position_limit(self.model)
            limit = positions if is_hard else None
        rows = rows_of(batch, policy, self._next_id, multiple=multiple, limit=limit)
        return [replace(row, keeps_log_probs=keeps_log_probs) for row in rows]

    def _begin(self, device: torch.device) -> None:
        """Take the cache and the captured steps of rows that are the first."""
        self._taken = 0
        try:
            if self.clock is None:
                self.clock = Clock(device, on=self.timed)
            if self.policy.cache is not None:
                self._take_cache()
            most_steps = max(row.left for row in self._rows)
            self._decide_to_compile(most_steps)
            self._state = self.replays.enter(
                self._split, self._state, self.policy, self._cache, self._planner, most_steps
            )
        except BaseException:
            self.close()
            raise

    def _decide_to_compile(self, most_steps: int) -> None:
        """Let the body run compiled where that is asked for, or pays; after all that is found out on a few tokens."""
        rows, columns = self._state.tokens.shape
        tokens = self.policy.canvases * rows * (columns if self._cache is None else self.policy.window)
        how = dict(forwards=most_steps, tokens=tokens, device=self._device)
        self.compiling = decision.decide(self.model, self.compile_body, **how)
        self._split.body_context = self.compiling.context
        if self.record_body and self.compiling.body is None:
            self._split.body_context = RecordedBody.of(self.model).in_place

    def _take_cache(self) -> None:
        """Take a KV cache for all rows, of both canvases under guidance."""
        rows, columns = self._state.tokens.shape
        layout, hidden = find_layout(self._split)
        self._cache = SPARE.take(
            layout,
            rows=self.policy.canvases * rows,
            columns=columns,
            device=self._device,
            shift_column=hidden if self.policy.keeps_shift_column else None,
        )
        self.cache_bytes = self._cache.bytes

    def _finished(self) -> list[int]:
        """Places of the rows that are finished: of a captured batch, which keeps its shape, all or none. Waits for the
        device."""
        done = (self._state.block >= self._state.blocks) | (self._state.failed >= 0)
        places = done.numpy(force=True).nonzero()[0].tolist()
        return places if len(places) == len(self._rows) or not self.graphed else []

    def _retire(self, places: Sequence[int]) -> list[FinishedRow]:
        """Take rows out of the batch."""
        if not places:
            return []
        state, rows = self._state, [self._rows[place] for place in places]
        index = torch.tensor(places, device=self._device)
        failed, forwards = torch.stack([state.failed[index], state.row_steps[index]]).tolist()
        tokens = ended(state, self.policy, state.tokens)[index]
        log_probs = [None] * len(places) if state.log_probs is None else state.log_probs[index]
        leaving = set(places)
        self._keep([place for place in range(len(self._rows)) if place not in leaving])
        return [FinishedRow.of(*each) for each in zip(rows, tokens, failed, forwards, log_probs, strict=True)]

    def _keep(self, places: list[int]) -> None:
        """Go on with the rows at `places` (ascending), which need no more room than they need."""
        if not places:
            self.overflow += int(self._state.overflow)
            self.close()
            return
        if self._cache is not None:
            before = len(self._rows)
            self._cache.keep([place + i * before for i in range(self.policy.canvases) for place in places])
        self._planner.keep(places)
        self._rows = [self._rows[place] for place in places]
        state = self._state.rows(torch.tensor(places, device=self._device))
        if self.policy.cache is None:  # a cache keeps its columns
            state = merge.narrowed(state, sizes_of(self._rows, self.policy), self.policy.mask_id)
        if state.temperature is not None:
            state, self.policy = with_temperatures(state, self.policy, self._rows)
        self._state = with_log_probs(state, self._rows)

    def _leave_graphs(self, why: str) -> None:
        """Go on eagerly, in memory of its own."""
        if self.graphed:
            self._state = self._state.copy()
            self.replays.leave(why)
