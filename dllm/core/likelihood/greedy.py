"""Greedy decoding of a target, to see whether it gives the target: the surest masked token is set, one at a time.

All tokens of a target are masked at first, block by block where the model attends so. In each step the most probable
token of every masked position is proposed and the proposal with the highest probability is set; ties go to the lowest
token id and to the lowest position. As long as what was set equals the target, the row is the target with the other
positions masked, and the first token that differs decides.

Source: the greedy flag of LLaDA's evaluation (arXiv:2502.09992).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from dllm.core.likelihood.forwards import Forwards, Job
from dllm.core.likelihood.masks import Mask
from dllm.core.likelihood.rows import Piece, row_of


def walk(piece: Piece, surest: Mapping[Mask, tuple[int, int]]) -> bool | None:
    """Whether greedy decoding gives the piece; None where `surest` does not know a mask that comes up.

    Args:
        piece: a part of a target that is masked together.
        surest: for masks, the position whose proposal is surest, counted after the fixed tokens, and the token.

    Example:
        >>> piece = Piece(0, (), (7, 8), (), fixed=0, seed=0, given=0)
        >>> walk(piece, {(0, 1): (1, 8), (0,): (0, 7)})
        True
        >>> walk(piece, {(0, 1): (1, 8), (0,): (0, 5)})
        False
    """
    mask = tuple(range(piece.maskable))
    while mask:
        if mask not in surest:
            return None
        position, token = surest[mask]
        if token != piece.target[piece.fixed + position]:
            return False
        mask = tuple(i for i in mask if i != position)
    return True


def decode(forwards: Forwards, pieces: Mapping[int, Sequence[Piece]], mask_id: int) -> Iterator[tuple[int, bool]]:
    """Decode the pieces of each target, all targets together, a token in each step; (target, whether it was given).

    The pieces of a target are decoded one after the other. A target leaves at the first token that differs.
    """
    left = {owner: list(parts) for owner, parts in pieces.items()}
    masks = {owner: tuple(range(parts[0].maskable)) for owner, parts in left.items()}
    while left:
        jobs = {Job(row_of(left[owner][0], masks[owner], mask_id), [[]] * len(masks[owner])): owner for owner in left}
        for job in forwards.run(sorted(jobs, key=lambda job: -len(job.row.tokens))):
            owner, (number, token) = jobs[job], job.surest
            piece, position = left[owner][0], masks[owner][number]
            masks[owner] = tuple(i for i in masks[owner] if i != position)
            if token != piece.target[piece.fixed + position]:
                del left[owner]
                yield owner, False
            elif not masks[owner]:
                left[owner].pop(0)
                if left[owner]:
                    masks[owner] = tuple(range(left[owner][0].maskable))
                else:
                    del left[owner]
                    yield owner, True
