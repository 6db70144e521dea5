"""Forwards over rows of many targets: batches by a budget of tokens, the body once, the head on what is read.

Rows come in any number, longest first, and are padded on the right. Where a model sees padding or other rows, they run
as :mod:`dllm.fast.sampling.unpadded` has it. Positions count from column 0 in every row. The head meets the masked
positions alone, some rows of logits at a time, so logits [B, L, V] never exist. Several tokens may be read at one
place: choices of one question that differ there share the row.

A row's numbers do not depend on the other rows but for rounding: a library may add in another order for another number
of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dllm.core.likelihood.blocks import BlockBody
from dllm.core.likelihood.config import LikelihoodConfig
from dllm.core.likelihood.rows import Row
from dllm.fast import visibility
from dllm.fast.compiled import decision
from dllm.fast.head.split import SplitModel, guide
from dllm.fast.model import block_size_of, input_embedding, right_shift_of
from dllm.fast.sampling import unpadded
from dllm_kernels import gumbel_argmax, masked_cross_entropy

# Tokens of a forward: on a CPU more brings nothing; on a GPU so many fill it and take little memory beside a model.
TOKENS = {"cpu": 2048, "cuda": 32768}
# Rows of logits at a time.
HEAD_ROWS = {"cpu": 64, "cuda": 1024}
_EXAMPLE = 16  # tokens of the forward in which a head is traced


@dataclass(eq=False)
class Job:
    """A row, the tokens that are read at its masked columns, and what was found.

    tokens: for each masked column, the tokens whose cross-entropy is wanted.
    losses: for each masked column, cross-entropy by token, in nats.
    surest: the masked column of the most probable proposal, as a number among `row.columns`, and its token.

    Example:
        >>> Job(Row(tokens=(5, 3), given=1, block=0, columns=(1,)), tokens=[[7, 8]]).losses
        []
    """

    row: Row
    tokens: list[list[int]]
    losses: list[dict[int, float]] = field(default_factory=list)
    surest: tuple[int, int] | None = None


class Found(NamedTuple):
    """What the head says of places [N].

    losses: float32 [K, N], of the k-th token of each.
    token, log_prob: [N], the most probable token and its log-probability; None where not asked for.
    """

    losses: Tensor
    token: Tensor | None
    log_prob: Tensor | None


class Forwards:
    """Runs jobs through a model.

    Args:
        model: a masked language model, in evaluation mode.
        config: of the likelihood.
        mask_id: its mask token.
        longest: columns of the longest row.
        proposals: find each job's `surest`, too.
        tokens: of all rows that will run, at most; by them it is decided whether the body is compiled.

    Raises:
        ValueError: the model sees tokens on one side only, or has no head.
        RuntimeError: `compile_body` is True, and the model's body cannot be compiled.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> size = dict(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> forwards = Forwards(BertForMaskedLM(BertConfig(**size)).eval(), LikelihoodConfig(), mask_id=3, longest=2)
        >>> job = Job(Row(tokens=(5, 3), given=1, block=0, columns=(1,)), tokens=[[7, 8]])
        >>> with torch.no_grad():
        ...     (done,) = forwards.run([job])
        >>> [sorted(losses) for losses in done.losses]
        [[7, 8]]
    """

    def __init__(
        self,
        model: nn.Module,
        config: LikelihoodConfig,
        mask_id: int,
        *,
        longest: int,
        proposals: bool = False,
        tokens: int = 0,
    ):
        self.config, self.mask_id, self.proposals = config, mask_id, proposals
        self.device = input_embedding(model).device
        self.right_shift = right_shift_of(model) if config.right_shift_logits is None else config.right_shift_logits
        self.split = SplitModel(model, torch.full((1, min(longest, _EXAMPLE)), mask_id, device=self.device))
        self.blocks: BlockBody | None = None
        self._unequal: tuple[bool, unpadded.RowGroups | None] | None = None
        if (size := block_size_of(model)) is not None:
            how = dict(right_shift=bool(self.right_shift), cache=config.cache, longest=longest, device=self.device)
            self.blocks = BlockBody(self.split, size, **how)
            if self.blocks.one_by_one and self.canvases > 1:
                raise ValueError(
                    "under guidance two rows run together where blocks see no later one, and rows of a batch see "
                    f"each other in {type(model).__name__}"
                )
        else:
            visibility.check_bidirectional(model, self.device)
        self.budget = config.tokens_per_forward or TOKENS.get(self.device.type, TOKENS["cuda"])
        work = tokens * self.canvases
        how = dict(forwards=-(-work // self.budget), tokens=min(work, self.budget), device=self.device)
        self.compiling = decision.decide(model, config.compile_body, **how)
        self.split.body_context = self.compiling.context

    @property
    def canvases(self) -> int:
        """Rows of the model for a job: two under guidance."""
        return 1 if self.config.cfg_scale == 0 else 2

    def run(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """The jobs, in order, with what was found; a batch of them at a time is ahead."""
        for batch in self._batches(jobs):
            self._run_batch(batch)
            yield from batch

    def _batches(self, jobs: Iterable[Job]) -> Iterator[list[Job]]:
        batch, width = [], 0
        for job in jobs:
            columns = len(job.row.tokens) if self.blocks is None else self.blocks.width(job.row)
            alone = self.blocks is not None and self.blocks.one_by_one
            if batch and (alone or (len(batch) + 1) * self.canvases * max(width, columns) > self.budget):
                yield batch
                batch, width = [], 0
            batch.append(job)
            width = max(width, columns)
        if batch:
            yield batch

    def _run_batch(self, batch: list[Job]) -> None:
        rows = [job.row for job in batch]
        if self.canvases == 2:
            rows += [_without_context(row, self.mask_id) for row in rows]
        shift = int(bool(self.right_shift))
        places = [(b, max(c - shift, 0)) for b, job in enumerate(batch) for c in job.row.columns]
        places = [(b + canvas * len(batch), column) for canvas in range(self.canvases) for b, column in places]
        row, column = torch.tensor(places, dtype=torch.int64, device=self.device).view(-1, 2).unbind(1)
        if self.blocks is None:
            hidden = self._body(rows, row, column)
        else:
            hidden, first = self.blocks.run(rows)
            column = column - torch.tensor(first, device=self.device)[row]
        self._read(batch, list(hidden[row, column].chunk(self.canvases)))

    def _body(self, rows: Sequence[Row], row: Tensor, column: Tensor) -> Tensor:
        """Hidden states [n B, W, H] of rows that see all of themselves, of which those at `row`, `column` are read."""
        lengths = [len(row.tokens) for row in rows][: len(rows) // self.canvases]
        longest = max(lengths)
        # a mask token is padding: no model counts positions without it
        tokens = [row.tokens + (self.mask_id,) * (longest - len(row.tokens)) for row in rows]
        tokens = torch.tensor(tokens, dtype=torch.int64, device=self.device)
        mask = None
        if min(lengths) < longest:
            length = torch.tensor(lengths, device=self.device)
            mask = (torch.arange(longest, device=self.device) < length[:, None]).long()
        packed, groups = self._layout(lengths)
        cells = unpadded.cells_of(tokens[: len(lengths)], mask) if packed else None
        return unpadded.run(self.split, tokens, mask, cells, groups, row * longest + column)

    def _layout(self, lengths: list[int]) -> tuple[bool, unpadded.RowGroups | None]:
        """Whether rows of these lengths run packed, or else in which groups; None where they run with their padding."""
        if len(lengths) * self.canvases == 1:
            return False, None
        if self._unequal is None:  # what the model sees is found out once, with any two lengths
            self._unequal = unpadded.row_layout(self.split, [1, 2], self.canvases, self.device)[:2]
        packed, groups = self._unequal
        ragged = len(set(lengths)) > 1
        if groups is not None and (ragged or groups.one_by_one):
            return False, unpadded.RowGroups(tuple(lengths), groups.one_by_one)
        return packed and ragged, None

    def _read(self, batch: list[Job], states: list[Tensor]) -> None:
        """Fill in what was found at the masked columns of all jobs, whose hidden states are [N, H]."""
        wanted = [tokens for job in batch for tokens in job.tokens]
        parts = []
        chunk = HEAD_ROWS.get(self.device.type, HEAD_ROWS["cuda"])
        for begin in range(0, len(wanted), chunk):
            part = slice(begin, begin + chunk)
            found = self._head([hidden[part] for hidden in states], wanted[part])
            losses = found.losses.T.tolist()
            tops = [(0, 0.0)] * len(losses)
            if self.proposals:
                tops = list(zip(found.token.tolist(), found.log_prob.tolist(), strict=True))
            parts += zip(losses, tops, strict=True)
        place = iter(parts)
        for job in batch:
            tops = []
            for tokens in job.tokens:
                losses, top = next(place)
                job.losses.append(dict(zip(tokens, losses, strict=False)))
                tops.append(top)
            if self.proposals:
                best = max(range(len(tops)), key=lambda i: tops[i][1])  # the first of equals
                job.surest = best, tops[best][0]

    def _head(self, states: list[Tensor], wanted: list[list[int]]) -> Found:
        """What the head says of some places with hidden states [C, H]."""
        logits = self._logits(states)
        logits = logits.float() if logits.dtype == torch.float64 else logits
        losses = [logits.new_zeros(0, len(logits), dtype=torch.float32)]
        for k in range(max(map(len, wanted))):
            targets = torch.tensor([tokens[k] if k < len(tokens) else -1 for tokens in wanted], device=self.device)
            weight = (targets >= 0).float()
            losses.append(masked_cross_entropy(logits, targets, weight, impl=self.config.impl).nll[None])
        if not self.proposals:
            return Found(torch.cat(losses), None, None)
        best = gumbel_argmax(logits, impl=self.config.impl)
        return Found(torch.cat(losses), best.token, best.log_prob)

    def _logits(self, states: list[Tensor]) -> Tensor:
        """Logits [C, V]; guidance is combined before a linear head, in float32."""
        if len(states) == 1:
            return self.split.logits(states[0])
        if self.split.kind not in ("linear", "int8"):
            return guide(*map(self.split.logits, states), self.config.cfg_scale)
        return self.split.logits(guide(*states, self.config.cfg_scale).to(states[0].dtype))


def _without_context(row: Row, mask_id: int) -> Row:
    """The row with its context masked."""
    return row._replace(tokens=(mask_id,) * row.given + row.tokens[row.given :])
