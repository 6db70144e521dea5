"""Tokenizing text without mask tokens: text that spells the mask token is encoded as ordinary text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Encoded:
    """The token ids of a text, and the mapping from character positions to tokens.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> found = Encoded("What is 12 * 4?", load_shipped()[1])
        >>> len(found.ids), found.tokens_before(len("What is"))
        (6, 2)
    """

    def __init__(self, text: str, tokenizer: Any):
        self.text, self.tokenizer = text, tokenizer
        self.ends: list[int] | None = [] if getattr(tokenizer, "is_fast", False) else None
        self.ids = self._encode()

    def tokens_before(self, end: int) -> int:
        """The number of tokens that lie in text[:end]. A token that extends beyond `end` is not counted.

        Raises:
            ValueError: a "slow" tokenizer, which gives no character offsets, tokenizes text[:end] alone differently.
        """
        if self.ends is not None:
            return sum(1 for stop in self.ends if stop <= end)
        before = Encoded(self.text[:end], self.tokenizer).ids
        same = next((n for n, (a, b) in enumerate(zip(before, self.ids, strict=False)) if a != b), len(before))
        if same == len(before) or self._extends_beyond(same, end):
            return same
        raise ValueError(
            f"{type(self.tokenizer).__name__} gives no character offsets of tokens, and the tokens of "
            f"{self.text[max(0, end - 20) : end]!r} depend on the text after it"
        )

    def _extends_beyond(self, token: int, end: int) -> bool:
        """Whether the token at this index covers text on both sides of `end`, according to its decoded text."""
        before, until = (
            self.tokenizer.decode(self.ids[:n], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            for n in (token, token + 1)
        )
        return self.text.startswith(until) and len(before) < end < len(until)

    def _encode(self) -> list[int]:
        ids = self._add(self.text, 0)
        mask = getattr(self.tokenizer, "mask_token_id", None)
        if mask is None or mask not in ids:
            return ids
        ids = self._encode_mask_as_text_slow(ids) if self.ends is None else self._encode_mask_as_text()
        if mask in ids:
            raise ValueError(
                f"a text that is learnt must not hold the mask token, and {type(self.tokenizer).__name__} cannot "
                f"encode {self.tokenizer.mask_token!r} as ordinary text"
            )
        return ids

    def _encode_mask_as_text(self) -> list[int]:
        """Re-encode stretches between special tokens that contain a mask token, with special tokens split into text."""
        found = self.tokenizer(self.text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
        mask, special = self.tokenizer.mask_token_id, _special_ids(self.tokenizer)
        ids, self.ends, begin = [], [], 0
        stretch: list[tuple[int, int]] = []
        for token, (start, end) in [*zip(found["input_ids"], found["offset_mapping"], strict=True), (None, (-1, -1))]:
            if token is not None and token not in special:
                stretch.append((token, end))
                continue
            if any(inner == mask for inner, _ in stretch):
                until = start if token is not None else len(self.text)
                ids += self._add(self.text[begin:until], begin, split_special_tokens=True)
            else:
                ids += [inner for inner, _ in stretch]
                self.ends += [stop for _, stop in stretch]
            if token is not None:
                ids.append(token)
                self.ends.append(end)
            stretch, begin = [], end
        return ids

    def _encode_mask_as_text_slow(self, ids: list[int]) -> list[int]:
        """Encode each mask token as text, and the text between mask tokens normally. For "slow" tokenizers."""
        spelled, ids = self.tokenizer.mask_token, []
        for number, part in enumerate(self.text.split(spelled)):
            if number:
                ids += self._add(spelled, 0, split_special_tokens=True)
            ids += self._add(part, 0)
        return ids

    def _add(self, text: str, start: int, **options: Any) -> list[int]:
        if not text:
            return []
        # not verbose: no warning if the text exceeds the model's length; it is cut later
        options |= dict(add_special_tokens=False, verbose=False)
        if self.ends is None:
            return list(self.tokenizer(text, **options)["input_ids"])
        found = self.tokenizer(text, return_offsets_mapping=True, **options)
        self.ends += [start + end for _, end in found["offset_mapping"]]
        return list(found["input_ids"])


def encode_texts(texts: Sequence[str], tokenizer: Any, add_special_tokens: bool = False) -> list[list[int]]:
    """The token ids of each text. Text that spells the mask token is encoded as ordinary text: a mask token in the data
    could not be learnt.

    Args:
        texts: any number of texts.
        tokenizer: of transformers.
        add_special_tokens: add the tokenizer's special tokens around each text.

    Raises:
        ValueError: the tokenizer cannot encode its mask token as ordinary text.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> tokenizer = load_shipped()[1]
        >>> [ids] = encode_texts(["the [MASK] token"], tokenizer)
        >>> tokenizer.mask_token_id in ids, tokenizer.decode(ids).strip()
        (False, 'the [MASK] token')
    """
    if not texts:
        return []
    mask = getattr(tokenizer, "mask_token_id", None)
    rows = tokenizer(list(texts), add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
    if mask is None:
        return rows
    for number, row in enumerate(rows):
        if mask in row:
            plain = Encoded(texts[number], tokenizer).ids
            rows[number] = _add_special_tokens(plain, tokenizer) if add_special_tokens else plain
    return rows


def _special_ids(tokenizer: Any) -> set[int]:
    """The ids of all special tokens except the mask token."""
    known = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return (known | set(tokenizer.all_special_ids)) - {tokenizer.mask_token_id}


def _add_special_tokens(ids: list[int], tokenizer: Any) -> list[int]:
    """The ids with the special tokens that the tokenizer adds around a text."""
    around, alone = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    first = next(n for n in range(len(around)) if around[n : n + len(alone)] == alone)
    return [*around[:first], *ids, *around[first + len(alone) :]]
