"""From targets to the rows of a model: checked, cut to the model's length, and split into blocks if it attends so."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import nn

from dllm.core.likelihood.config import LikelihoodConfig, Target
from dllm.fast.model import input_embedding, position_limit
from dllm_kernels import philox

_log = logging.getLogger("dllm.core.likelihood")

Tokens = tuple[int, ...]

_STRIDE = 0x9E3779B97F4A7C15  # between the seeds of a target's blocks: 2^64 by the golden ratio, as Philox's Weyl steps


class Piece(NamedTuple):
    """A part of a target that is masked together: all of it, or what of it lies in one block.

    owner: number of the target.
    context: tokens before it, visible in all masks.
    target: its tokens.
    after: tokens behind it that are visible too.
    fixed: leading tokens of `target` that are never masked.
    seed: of the masks.
    given: columns that guidance masks: the target's own context, without its earlier blocks.
    block: the first column of the block; 0 where the model attends to whole rows.
    """

    owner: int
    context: Tokens
    target: Tokens
    after: Tokens
    fixed: int
    seed: int
    given: int
    block: int = 0

    @property
    def maskable(self) -> int:
        """How many tokens may be masked."""
        return len(self.target) - self.fixed

    @property
    def length(self) -> int:
        """Of the row."""
        return len(self.context) + len(self.target) + len(self.after)


class Row(NamedTuple):
    """A row to be run: what it holds, and where the model's answer is read.

    tokens: of all columns, masked.
    given: the first columns, so many, that guidance masks.
    block: as in :class:`Piece`.
    columns: those that are read, all of them masked, in order.
    """

    tokens: Tokens
    given: int
    block: int
    columns: Tokens


def row_of(piece: Piece, mask: Sequence[int], mask_id: int, read: Sequence[int] | None = None) -> Row:
    """The row of a piece of which `mask`, positions after the fixed ones, is masked; `read` of them is read, or all.

    Example:
        >>> row_of(Piece(0, (5,), (6, 7), (2,), fixed=0, seed=0, given=1), (1,), mask_id=3)
        Row(tokens=(5, 6, 3, 2), given=1, block=0, columns=(2,))
    """
    tokens, first = list(piece.context + piece.target + piece.after), len(piece.context) + piece.fixed
    for i in mask:
        tokens[first + i] = mask_id
    columns = tuple(first + i for i in (mask if read is None else read))
    return Row(tuple(tokens), piece.given, piece.block, columns)


def check_targets(
    model: nn.Module, targets: Sequence[Target], config: LikelihoodConfig, mask_id: int
) -> tuple[list[Target], list[int]]:
    """The targets as tuples of integers, contexts cut on the left where a row is too long, and how much was cut.

    Raises:
        TypeError: something is no :class:`Target` of integers.
        ValueError: a target is empty or too long for the model, has nothing that may be masked, or holds the mask token
            or one outside of the vocabulary.
    """
    vocabulary, limit = len(input_embedding(model)), _length_limit(model, config)
    if not 0 <= mask_id < vocabulary:
        raise ValueError(f"the mask token must lie in the vocabulary of {vocabulary} tokens, got {mask_id}")
    checked, cuts = [], []
    for number, target in enumerate(targets):
        target = _plain(target, number)
        _check_tokens(target, number, vocabulary, mask_id)
        cut = 0
        if limit is not None:
            needed = len(target.target) + len(target.after)
            if needed > limit:
                raise ValueError(
                    f"a target must fit into {limit} tokens, with what comes after it; target {number} has {needed}"
                )
            cut = max(len(target.context) + needed - limit, 0)
        checked.append(target._replace(context=target.context[cut:]))
        cuts.append(cut)
        if _fixed(checked[-1], config) == len(target.target):
            raise ValueError(
                f"the first token of a row is never masked in the form of Dream; target {number} has no context and "
                "one token, so there is nothing to be masked"
            )
    if shortened := sum(cut > 0 for cut in cuts):
        _log.warning("%d of %d contexts were cut on the left to rows of %d tokens", shortened, len(cuts), limit)
    return checked, cuts


def pieces_of(owner: int, target: Target, config: LikelihoodConfig, block_size: int | None) -> Iterator[Piece]:
    """The pieces of a target, one for each block that holds a part of it.

    Example:
        >>> [piece.target for piece in pieces_of(0, Target((5, 6), (7, 8, 9)), LikelihoodConfig(), block_size=4)]
        [(7, 8), (9,)]
    """
    context, tokens, after = target.context, target.target, target.after
    fixed, start, stop = _fixed(target, config), len(context), len(context) + len(tokens)
    if block_size is None:
        yield Piece(owner, context, tokens, after, fixed, target.seed, given=start)
        return
    row = context + tokens + after
    origin = start // block_size * block_size if config.blocks_from == "row" else start
    for number, begin in enumerate(range(origin, stop, block_size)):
        first, last = max(begin, start), min(begin + block_size, stop)
        piece = Piece(
            owner=owner,
            context=row[:first],
            target=row[first:last],
            after=row[last : begin + block_size],
            fixed=max(fixed - (first - start), 0),
            seed=philox.as_int64((target.seed + number * _STRIDE) % 2**64),
            given=start,
            block=begin,
        )
        if piece.maskable > 0:
            yield piece


def _fixed(target: Target, config: LikelihoodConfig) -> int:
    """Leading tokens of a target that are never masked."""
    return int(config.form == "dream" and not target.context)


def _plain(target: object, number: int) -> Target:
    """A target whose parts are tuples of integers."""
    if not isinstance(target, tuple) or len(target) != len(Target._fields):
        raise TypeError(f"targets must be of the class Target, got {type(target).__name__} as target {number}")
    parts, seed = {}, philox.as_int64(target[2])
    for name, given in zip(("context", "target", "after"), (target[0], target[1], target[3]), strict=True):
        tokens = given.tolist() if hasattr(given, "tolist") else given
        if isinstance(tokens, (str, bytes)) or not hasattr(tokens, "__iter__"):
            raise TypeError(f"{name} must hold token ids, got {type(given).__name__} in target {number}")
        parts[name] = tuple(tokens)
        if wrong := [token for token in parts[name] if type(token) is not int]:
            raise TypeError(f"{name} must hold integers, got {type(wrong[0]).__name__} in target {number}")
    return Target(seed=seed, **parts)


def _check_tokens(target: Target, number: int, vocabulary: int, mask_id: int) -> None:
    if not target.target:
        raise ValueError(f"a target must have at least one token, got none in target {number}")
    for name in ("context", "target", "after"):
        tokens = getattr(target, name)
        if tokens and not (0 <= min(tokens) and max(tokens) < vocabulary):
            wrong = min(tokens) if min(tokens) < 0 else max(tokens)
            raise ValueError(f"tokens must lie in [0, {vocabulary}), got {wrong} in the {name} of target {number}")
        if mask_id in tokens:
            raise ValueError(f"{name} must not contain the mask token {mask_id}, got one in target {number}")


def _length_limit(model: nn.Module, config: LikelihoodConfig) -> int | None:
    """Tokens of a row, at most; None where neither the settings nor the model say.

    Raises:
        ValueError: the settings say more than the model's table of positions has.
    """
    positions, ends = position_limit(model)
    if config.max_length is None:
        return positions
    if ends and positions < config.max_length:
        raise ValueError(f"max_length must be at most the model's {positions} positions, got {config.max_length}")
    return config.max_length
