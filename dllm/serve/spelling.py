"""The bytes of tokens: a character may take several of them, and none of these is a text by itself."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # how tokenizers with a byte fallback name a token of one byte


def token_bytes(tokenizer: Any, tokens: Sequence[int], texts: Sequence[str]) -> list[bytes]:
    """The bytes of tokens: those that the tokenizer has for them, where its tokens are made of bytes.

    Args:
        tokenizer: of the model.
        tokens: their ids.
        texts: what each of them adds to the text before it; of a character that takes several, with the last of them.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> tokenizer = load_shipped()[1]
        >>> token_bytes(tokenizer, tokenizer("é").input_ids, [" ", "", "é"])
        [b' ', b'\\xc3', b'\\xa9']
    """
    added, of_bytes = tokenizer.added_tokens_decoder, _has_byte_pieces(tokenizer)
    names = tokenizer.convert_ids_to_tokens(list(tokens))
    return [
        text.encode() if token in added else _named(name, of_bytes, text)
        for token, name, text in zip(tokens, names, texts, strict=True)
    ]


def _named(name: str, of_bytes: bool, text: str) -> bytes:
    """The bytes of a token by its name."""
    if found := _BYTE.fullmatch(name):
        return bytes([int(found[1], 16)])
    if of_bytes and all(letter in _alphabet() for letter in name):
        return bytes(_alphabet()[letter] for letter in name)
    return text.encode()


def _has_byte_pieces(tokenizer: Any) -> bool:
    """Whether each letter of a token's name stands for a byte, as in GPT-2's tokenizer and all that follow it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return hasattr(tokenizer, "byte_decoder") or "ByteLevel" in repr(getattr(backend, "decoder", None))


@functools.cache
def _alphabet() -> dict[str, int]:
    """The byte of each letter: printable ones of Latin-1 stand for themselves, others follow each other from 256 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}
