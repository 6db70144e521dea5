"""Token ids of messages and texts. What users write never becomes a special token in a conversation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from dllm.chat.talk import build_chat_inputs
from dllm.serve.errors import ApiError

_PLACE = "\ue000{}\ue001"  # stands for the text of a message; private use, so no template changes it


def chat_tokens(tokenizer: Any, messages: Sequence[tuple[str, str]]) -> list[int]:
    """The token ids of a conversation up to where the answer begins.

    Special tokens that a message spells out are encoded as text.

    Args:
        tokenizer: one with a chat template.
        messages: role and text of each.

    Raises:
        ApiError: there is no chat template, it refuses the messages, or it does not take their texts as they are.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> tokenizer = load_shipped()[1]
        >>> tokens = chat_tokens(tokenizer, [("user", "What is [MASK]?")])
        >>> tokenizer.mask_token_id in tokens, "[MASK]?" in tokenizer.decode(tokens).replace(" ", "")
        (False, True)
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ApiError(400, "this model has no chat template: use /v1/completions", param="messages")
    specials = _specials(tokenizer)
    texts = [text for _, text in messages]
    conversation = [{"role": role, "content": text} for role, text in messages]
    if not any(special in text for special in specials for text in texts):
        return list(_by_template(tokenizer, conversation, tokenize=True))
    parts = _around_texts(tokenizer, conversation)
    return _encoded(tokenizer, parts, specials)


def text_tokens(tokenizer: Any, text: str, param: str = "prompt") -> list[int]:
    """The token ids of a text, in which special tokens other than the mask may be spelled out.

    Raises:
        ApiError: it holds the mask token.
    """
    tokens = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if tokenizer.mask_token_id in tokens:
        raise ApiError(400, f"{param} must not spell the mask token: to fill masks, send token ids", param=param)
    return tokens


def _specials(tokenizer: Any) -> dict[str, int]:
    """The special tokens and other added ones, which a tokenizer finds in any text."""
    return {str(token): id_ for id_, token in tokenizer.added_tokens_decoder.items()}


def _by_template(tokenizer: Any, conversation: list[dict[str, str]], *, tokenize: bool) -> Any:
    import jinja2

    try:
        if tokenize:
            return build_chat_inputs(tokenizer, conversation, add_generation_prompt=True)
        return tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    except jinja2.TemplateError as error:
        raise ApiError(400, f"the chat template refuses the messages: {error}", param="messages") from None


def _around_texts(tokenizer: Any, conversation: list[dict[str, str]]) -> list[tuple[str, bool]]:
    """The conversation as the template writes it, in parts: a text, and whether a user wrote it."""
    places = [_PLACE.format(number) for number in range(len(conversation))]
    empty = [message | {"content": place} for message, place in zip(conversation, places, strict=True)]
    frame = _by_template(tokenizer, empty, tokenize=False)
    if all(frame.count(place) == 1 for place in places):
        whole = _by_template(tokenizer, conversation, tokenize=False)
        for taken in (str, str.strip):
            texts = {place: taken(message["content"]) for place, message in zip(places, conversation, strict=True)}
            parts = [(texts.get(part, part), part in texts) for part in re.split("(\ue000\\d+\ue001)", frame)]
            if "".join(part for part, _ in parts) == whole:
                return parts
    raise ApiError(
        400, "a message spells a special token, and the chat template does not take texts as they are", param="messages"
    )


def _encoded(tokenizer: Any, parts: list[tuple[str, bool]], specials: dict[str, int]) -> list[int]:
    """Token ids of parts, in which only the template's own special tokens are some. As in any text, these take white
    space beside them with them where they are set to."""
    longest_first = sorted(map(re.escape, specials), key=len, reverse=True)
    known, tokens, text, strips = tokenizer.added_tokens_decoder, [], "", False
    for part, is_users in parts:
        pieces = [part] if is_users or not specials else re.split(f"({'|'.join(longest_first)})", part)
        for piece in pieces:
            if is_users or piece not in specials:
                text += piece
                continue
            special = known[specials[piece]]
            text = text.lstrip() if strips else text
            tokens += [*_as_text(tokenizer, text.rstrip() if special.lstrip else text), specials[piece]]
            text, strips = "", special.rstrip
    return tokens + _as_text(tokenizer, text.lstrip() if strips else text)


def _as_text(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]) if text else []
