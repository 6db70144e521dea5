"""What a token is while an answer takes form, and how it reads in running text."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

GIVEN = "given"  # stood there before
MASKED = "masked"  # nothing is known yet
TENTATIVE = "tentative"  # this step's proposal, not kept
NEW = "new"  # kept for good in this step
COMMITTED = "committed"  # kept for good earlier
STATES = (GIVEN, MASKED, TENTATIVE, NEW, COMMITTED)

MASK_MARK, END_MARK = " ·", "∎"
UNFINISHED = "\ufffd"  # how the first bytes of a character are decoded
WINDOW = 16  # tokens that are decoded together: what a token adds to a text depends on those right before it


def state(now: int, proposed: int, mask_id: int, earlier: tuple[int, str]) -> str:
    """What a token is after a step.

    Args:
        now: the token id in the canvas.
        proposed: the same, or what the step proposed in place of a mask.
        mask_id: of the mask token.
        earlier: the token id and the state before the step.

    Example:
        >>> state(7, 7, 0, (0, MASKED)), state(0, 7, 0, (0, MASKED)), state(7, 7, 0, (7, NEW))
        ('new', 'tentative', 'committed')
    """
    token, before = earlier
    if before == GIVEN:
        return GIVEN
    if now == mask_id:
        return MASKED if proposed == mask_id else TENTATIVE
    return COMMITTED if before in (NEW, COMMITTED) and token == now else NEW


def pieces(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """Each token as it stands in running text; masks are dots, ends of text are squares.

    A token's text is what it adds to the text before it: only so does any tokenizer say where its spaces are. A
    character of several tokens appears with the last of them.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> tokenizer = load_shipped()[1]
        >>> pieces(tokenizer, [*tokenizer("6 * 7").input_ids, tokenizer.mask_token_id, tokenizer.eos_token_id])
        [' 6', ' *', ' 7', ' ·', '∎']
    """
    marks = {tokenizer.eos_token_id: END_MARK, tokenizer.mask_token_id: MASK_MARK}
    found, window, before, begun = [], [], "", False
    for token in tokens:
        if token in marks:
            found.append(marks[token])
            continue
        window.append(token)
        text = tokenizer.decode(window, clean_up_tokenization_spaces=False)
        whole = text.rstrip(UNFINISHED)
        piece = whole[len(before) :]
        found.append(piece if begun or not piece or piece.startswith(" ") else f" {piece}")
        begun, before = begun or bool(piece), whole
        if len(window) > WINDOW and text == whole:
            window = window[-WINDOW // 2 :]
            before = tokenizer.decode(window, clean_up_tokenization_spaces=False)
    return found


def runs(texts: Sequence[str], states: Sequence[str]) -> list[tuple[str, str]]:
    """Neighbors of the same state joined, as (state, text); ends of text in a row become one with a count.

    Example:
        >>> runs([" 4", "8", END_MARK, END_MARK, END_MARK], [NEW, NEW, NEW, COMMITTED, COMMITTED])
        [('new', ' 48'), ('new', '∎'), ('committed', '∎×2')]
    """
    found = []
    tokens = zip(states, texts, strict=True)
    for (kind, ends), run in itertools.groupby(tokens, key=lambda token: (token[0], token[1] == END_MARK)):
        parts = [text for _, text in run]
        found.append((kind, f"{END_MARK}×{len(parts)}" if ends and len(parts) > 1 else "".join(parts)))
    return found
