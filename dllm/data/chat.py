"""Conversations as token ids, with labels where a model is to learn."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

IGNORE = -100


def default_sft_map_fn(row: Mapping[str, Any], *, tokenizer: Any, mask_prompt_loss: bool = True) -> dict[str, Any]:
    """A conversation as token ids: what the tokenizer's chat template makes of it, to be mapped over a data set.

    The last message is the answer that is learnt. All before it, with the beginning of the answer that the template
    writes, is the prompt: its labels are -100, so that it is never masked.

    Args:
        row: has `messages`, each {"role": "system", "user" or "assistant", "content": text}, as tulu-3 and smoltalk
            have them; the last is the assistant's.
        tokenizer: with a chat template.
        mask_prompt_loss: False to learn the prompt, too.

    Returns:
        `input_ids`, `labels`, and, if the prompt is not learnt, `prompt_len`.

    Raises:
        ValueError: no messages, a message without role or content, an unknown role, a last message of someone else.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
        >>> sample = default_sft_map_fn({"messages": messages}, tokenizer=load_shipped()[1])
        >>> len(sample["input_ids"]) == len(sample["labels"]), sample["prompt_len"]
        (True, 4)
    """
    messages = check_messages(row.get("messages"))
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"the last message must be the assistant's, got the role {messages[-1]['role']!r}")
    template = dict(tokenize=True, return_dict=False)
    tokens = list(tokenizer.apply_chat_template(messages, add_generation_prompt=False, **template))
    if not mask_prompt_loss:
        return {"input_ids": tokens, "labels": list(tokens)}
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, **template)
    # a tokenizer may merge the end of the prompt with the beginning of the answer: such a token is the answer's
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(prompt, tokens, strict=False))
    length = sum(1 for _ in same)
    return {"input_ids": tokens, "labels": [IGNORE] * length + tokens[length:], "prompt_len": length}


def check_messages(messages: Any) -> Sequence[Mapping[str, str]]:
    """The messages as they are.

    Raises:
        ValueError: see :func:`default_sft_map_fn`.
    """
    if not messages or isinstance(messages, str):
        raise ValueError(f"a row must have a list of messages with at least one in it, got {messages!r}")
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise ValueError(f"a message must have a role and a content, got {message!r}")
        if message["role"] not in ("system", "user", "assistant"):
            raise ValueError(f"a message's role must be system, user or assistant, got {message['role']!r}")
        if not isinstance(message["content"], str):
            raise ValueError(f"a message's content must be text, got {message['content']!r}")
    return messages
