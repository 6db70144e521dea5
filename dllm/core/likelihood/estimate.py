"""log_likelihoods: the log-likelihood of many targets, their rows batched together and shared where they are equal."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from dllm.core.likelihood import greedy
from dllm.core.likelihood.config import ORDERS, Estimate, LikelihoodConfig, Target
from dllm.core.likelihood.design import Design, conclude, design, is_exact
from dllm.core.likelihood.forwards import Forwards, Job
from dllm.core.likelihood.masks import Mask
from dllm.core.likelihood.rows import Piece, Row, check_targets, pieces_of, row_of
from dllm.fast.compiled.decision import check_compile_body
from dllm.fast.head.split import output_head
from dllm.fast.model import block_size_of, evaluation_mode, find_mask_id, input_embedding
from dllm_kernels import _checks, _impl


def log_likelihoods(
    model: nn.Module,
    targets: Sequence[Target],
    config: LikelihoodConfig | None = None,
    *,
    tokenizer: object | None = None,
    mask_id: int | None = None,
    on_estimate: Callable[[int, Estimate], object] | None = None,
) -> list[Estimate]:
    r"""The log-likelihood of each target after its context, under a masked diffusion model.

    .. math::
        L = -\sum_S w(|S|) \sum_{i \in S} CE_i(S)

    over the masks S of the target's tokens (:mod:`dllm.core.likelihood.weights`). Up to `exact_up_to` tokens all masks
    are run: one row for one token, 2^n - 1 for n. For longer targets `mc_num` masks stand for all
    (:mod:`dllm.core.likelihood.allocation`, :mod:`dllm.core.likelihood.masks`); the estimate is unbiased. A model that
    attends block by block gives the sum over its blocks, each after the true text before it. With `likelihood` "ar_ftb"
    or "ar_btf" it is the sum of n terms, the tokens one after the other.

    Rows of all targets run together, longest first. Equal rows of targets that share their context are run once, so
    choices of one token cost one row for all of them. An estimate does not depend on what else is asked for, but for
    the rounding of matrix products at another number of rows.

    Args:
        model: a masked language model, as :func:`dllm.fast.generate` takes it. It runs in evaluation mode, without
            gradients.
        targets: see :class:`Target`. Contexts that do not fit lose their beginning, which is logged.
        config: settings; :class:`LikelihoodConfig` with its defaults if None.
        tokenizer, mask_id: where the mask token is found; if both are None, the model's configuration tells.
        on_estimate: called with a target's number and its estimate as soon as that is known, in any order.

    Returns:
        :class:`Estimate` for each target.

    Raises:
        TypeError: `targets` holds something else, or `on_estimate` cannot be called.
        ValueError: a target is empty or too long, a part holds the mask token or a token outside of the vocabulary, or
            the model is causal. No target has run then.
        RuntimeError: logits were NaN, or the implementation or the compiler asked for is not available.

    Source: LLaDA (arXiv:2502.09992) and Dream (arXiv:2508.15487) for the sums.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> size = dict(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> model = BertForMaskedLM(BertConfig(**size))
        >>> choices = [Target(context=[5, 6], target=[token]) for token in (7, 8)]
        >>> first, second = log_likelihoods(model, choices, mask_id=3)
        >>> first.stderr, first.rows
        (0.0, 1)
    """
    config = LikelihoodConfig() if config is None else config
    if not isinstance(config, LikelihoodConfig):
        raise TypeError(f"config must be a LikelihoodConfig, got {type(config).__name__}")
    if on_estimate is not None and not callable(on_estimate):
        raise TypeError(f"on_estimate must be callable, got {type(on_estimate).__name__}")
    output_head(model)
    mask_id = find_mask_id(model, mask_id, tokenizer)
    checked, cuts = check_targets(model, targets, config, mask_id)
    device = input_embedding(model).device
    _impl.choose(config.impl, device)
    check_compile_body(config.compile_body, device)
    if not checked:
        return []
    size = block_size_of(model)
    states = [_TargetState(list(pieces_of(i, target, config, size)), cuts[i]) for i, target in enumerate(checked)]
    pieces = [piece for state in states for piece in state.pieces]
    longest = max(piece.length for piece in pieces)
    tokens = sum(count_rows(max(piece.maskable, 1), config) * piece.length for piece in pieces)
    estimates: list[Estimate | None] = [None] * len(states)

    def finish(owner: int) -> None:
        estimates[owner] = states[owner].estimate(owner)
        if on_estimate is not None:
            on_estimate(owner, estimates[owner])

    with evaluation_mode(model), torch.no_grad():
        forwards = Forwards(model, config, mask_id, longest=longest, proposals=config.check_greedy, tokens=tokens)
        for owner in _run(forwards, states, config, mask_id):
            if not config.check_greedy or states[owner].decide_greedy():
                finish(owner)
        undecided = [owner for owner, state in enumerate(states) if estimates[owner] is None]
        for owner, verdict in greedy.decode(forwards, {i: states[i].pieces for i in undecided}, mask_id):
            states[owner].greedy = verdict
            finish(owner)
    return estimates


def count_rows(n_target_tokens: int, config: LikelihoodConfig) -> int:
    """Rows that a target of so many maskable tokens costs, at most, without what it shares; guidance runs each twice.

    With `check_greedy` a target that is not summed exactly costs up to one row more for each token.

    Example:
        >>> [count_rows(n, LikelihoodConfig()) for n in (1, 3, 6, 7, 50)]
        [1, 7, 63, 64, 64]
    """
    if _checks.int64("n_target_tokens", n_target_tokens) < 1:
        raise ValueError(f"n_target_tokens must be at least 1, got {n_target_tokens}")
    if config.likelihood in ORDERS:
        return n_target_tokens
    if is_exact(n_target_tokens, config):
        return 2**n_target_tokens - 1
    if config.likelihood == "as-published":
        return min(config.masks, 2**n_target_tokens - 1)
    return config.masks


@dataclass(eq=False)
class _PieceState:
    """What is known of a piece: the losses of each of its different masks, and what greedy decoding would do there."""

    piece: Piece
    plan: Design
    losses: dict[Mask, list[float]] = field(default_factory=dict)
    surest: dict[Mask, tuple[int, int]] = field(default_factory=dict)

    @functools.cached_property
    def masks(self) -> dict[Mask, Mask]:
        """The different masks that need a row, and what is read of each."""
        return {mask: read for mask, read in zip(self.plan.masks, self.plan.reads, strict=True) if mask}

    def take(self, mask: Mask, job: Job) -> None:
        read = self.masks[mask]
        tokens = [self.piece.target[self.piece.fixed + i] for i in read]
        self.losses[mask] = [found[token] for found, token in zip(job.losses, tokens, strict=True)]
        if job.surest is not None:
            number, token = job.surest
            self.surest[mask] = read[number], token

    def conclude(self) -> tuple[float, float]:
        return conclude(self.plan, [self.losses.get(mask, []) for mask in self.plan.masks])


@dataclass(eq=False)
class _TargetState:
    """What is known of a target."""

    pieces: list[Piece]
    cut: int
    missing: int = 0
    rows: int = 0
    log_likelihood: float = 0.0
    variance: float = 0.0
    greedy: bool | None = None
    walks: list[bool | None] = field(default_factory=list)

    def add(self, state: _PieceState) -> None:
        """Add a finished piece, whose losses are not needed afterwards."""
        value, stderr = state.conclude()
        self.log_likelihood += value
        self.variance += stderr**2
        self.rows += len(state.losses)
        reads_all = state.plan.exact and state.plan.reads == state.plan.masks
        self.walks.append(greedy.walk(state.piece, state.surest) if reads_all else None)

    def decide_greedy(self) -> bool:
        """Set `greedy` from the rows that were run anyway, if they tell."""
        if False in self.walks:
            self.greedy = False
        elif None not in self.walks:
            self.greedy = True
        return self.greedy is not None

    def estimate(self, owner: int) -> Estimate:
        if math.isnan(self.log_likelihood):
            raise RuntimeError(f"logits must be numbers, got NaN for target {owner}")
        return Estimate(self.log_likelihood, math.sqrt(self.variance), self.rows, self.greedy, self.cut)


def _run(forwards: Forwards, states: Sequence[_TargetState], config: LikelihoodConfig, mask_id: int) -> Iterator[int]:
    """Run all rows of all targets; the numbers of targets as they are finished."""
    readers: dict[Job, list[tuple[_PieceState, Mask]]] = {}
    waiting: dict[_PieceState, int] = {}
    complete: list[_PieceState] = []
    for state in states:
        state.missing = len(state.pieces)

    def jobs() -> Iterator[Job]:
        for group in _groups(states):
            pieces = [_PieceState(piece, design(piece.maskable, config, piece.seed)) for piece in group]
            shared = _shared_jobs(pieces, mask_id)
            for piece in pieces:
                waiting[piece] = len(piece.masks)
                if not piece.masks:  # a draw as published may mask nothing
                    complete.append(piece)
            readers.update(shared)
            yield from sorted(shared, key=lambda job: -len(job.row.tokens))

    def finished() -> Iterator[int]:
        while complete:
            piece = complete.pop()
            target = states[piece.piece.owner]
            target.add(piece)
            target.missing -= 1
            if target.missing == 0:
                yield piece.piece.owner

    for job in forwards.run(jobs()):
        for piece, mask in readers.pop(job):
            piece.take(mask, job)
            waiting[piece] -= 1
            if waiting[piece] == 0:
                del waiting[piece]
                complete.append(piece)
        yield from finished()
    yield from finished()


def _groups(states: Sequence[_TargetState]) -> Iterable[list[Piece]]:
    """Pieces that may share rows, those with the longest rows first."""
    groups: dict[tuple, list[Piece]] = {}
    for state in states:
        for piece in state.pieces:
            groups.setdefault((piece.context, piece.given, piece.block), []).append(piece)
    return sorted(groups.values(), key=lambda group: -max(piece.length for piece in group))


def _shared_jobs(pieces: Sequence[_PieceState], mask_id: int) -> dict[Job, list[tuple[_PieceState, Mask]]]:
    """The different rows of some pieces, and the pieces and masks that read each."""
    jobs: dict[Row, Job] = {}
    readers: dict[Job, list[tuple[_PieceState, Mask]]] = {}
    for state in pieces:
        for mask, read in state.masks.items():
            row = row_of(state.piece, mask, mask_id, read)
            job = jobs.get(row)
            if job is None:
                job = jobs[row] = Job(row, [[] for _ in read])
                readers[job] = []
            for wanted, i in zip(job.tokens, read, strict=True):
                token = state.piece.target[state.piece.fixed + i]
                if token not in wanted:
                    wanted.append(token)
            readers[job].append((state, mask))
    return readers
