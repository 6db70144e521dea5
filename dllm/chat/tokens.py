"""The state of each token during denoising, and the text of each token."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

GIVEN = "given"  # part of the input
MASKED = "masked"  # a mask without a proposal
TENTATIVE = "tentative"  # a mask, shown as this step's proposal
NEW = "new"  # committed in this step
COMMITTED = "committed"  # committed in an earlier step
STATES = (GIVEN, MASKED, TENTATIVE, NEW, COMMITTED)

NO_TOKEN = -1  # in place of a token where none has been proposed and the model has no masks
MASK_MARK, END_MARK = " ·", "∎"
UNFINISHED = "\ufffd"  # what an incomplete UTF-8 sequence is decoded to
WINDOW = 16  # tokens that are decoded together: the text that a token adds depends on the tokens right before it


def state(now: int, proposed: int, mask_id: int, earlier: tuple[int, str]) -> str:
    """The state of a token after a step.

    Args:
        now: its id in the canvas.
        proposed: the same id, or the step's proposal in place of a mask.
        mask_id: id of the mask token.
        earlier: its id and state before the step.

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
    """The text of each token; masks are shown as dots, end-of-text and padding tokens as squares.

    The text of a token is what it adds to the decoded text before it, spaces included: this works with every tokenizer.
    A character that takes several tokens appears with the last of them.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> tokenizer = load_shipped()[1]
        >>> pieces(tokenizer, [*tokenizer("6 * 7").input_ids, tokenizer.mask_token_id, tokenizer.eos_token_id])
        [' 6', ' *', ' 7', ' ·', '∎']
    """
    ends, masks = ("eos_token_id", "pad_token_id"), (tokenizer.mask_token_id, NO_TOKEN)
    marks = {getattr(tokenizer, name, None): END_MARK for name in ends} | dict.fromkeys(masks, MASK_MARK)
    texts = iter(added_texts(tokenizer, [token for token in tokens if token not in marks]))
    found, begun = [], False
    for token in tokens:
        if token in marks:
            found.append(marks[token])
            continue
        piece = next(texts)
        found.append(piece if begun or not piece or piece.startswith(" ") else f" {piece}")
        begun = begun or bool(piece)
    return found


def added_texts(tokenizer: Any, tokens: Sequence[int], *, skip_special_tokens: bool = False) -> list[str]:
    """What each token adds to the decoded text of those before it.

    A character that takes several tokens appears with the last of them.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> tokenizer = load_shipped()[1]
        >>> added_texts(tokenizer, tokenizer("6 * 7").input_ids)
        [' 6', ' *', ' 7']
    """
    how = dict(clean_up_tokenization_spaces=False) | (dict(skip_special_tokens=True) if skip_special_tokens else {})
    found, window, before = [], [], ""
    for token in tokens:
        window.append(token)
        text = tokenizer.decode(window, **how)
        whole = text.rstrip(UNFINISHED)
        found.append(whole[len(before) :])
        before = whole
        if len(window) > WINDOW and text == whole:
            window = window[-WINDOW // 2 :]
            before = tokenizer.decode(window, **how)
    return found


def runs(texts: Sequence[str], states: Sequence[str]) -> list[tuple[str, str]]:
    """Join neighbors of the same state into (state, text); consecutive ends of text become one with a count.

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
