"""Conversations as token ids, with labels for the answers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from dllm.data.encoding import Encoded
from dllm.data.messages import Message, check_messages, row_label, tools_of
from dllm.data.template import Rendering

__all__ = ["ANSWERS", "IGNORE", "check_answers", "check_messages", "default_sft_map_fn"]

_log = logging.getLogger("dllm")

IGNORE = -100
ANSWERS = ("last", "all")
_said: set[str] = set()  # warnings that this process has logged


def default_sft_map_fn(
    row: Mapping[str, Any], *, tokenizer: Any, mask_prompt_loss: bool = True, answers: str = "last"
) -> dict[str, Any]:
    """Tokenize a conversation by the tokenizer's chat template. To be mapped over a data set.

    The last message is the answer to be learnt. Everything before it is the prompt, including the generation prompt of
    the template. Labels of the prompt are -100, so it is never masked. :meth:`dllm.data.template.Rendering.span` says
    how the answer is found.

    The rendered text must contain every content, reasoning, tool call and tool. Text that spells the mask token is
    encoded as ordinary text (:mod:`dllm.data.encoding`).

    Args:
        row: has `messages`, each {"role": "system", "user", "assistant" or "tool", "content": text}, as in tulu-3 and
            smoltalk, optionally with `reasoning_content` and `tool_calls`. The last message is the assistant's. An
            answer with `weight` 0 is not learnt. `tools`, if present, are passed to the template.
        tokenizer: with a chat template.
        mask_prompt_loss: False to learn the prompt, too.
        answers: "last" to learn the last answer, "all" to learn every message of the assistant.

    Returns:
        `input_ids`, `labels`, and, if `mask_prompt_loss`, `prompt_len`: the number of tokens before the first label.

    Raises:
        ValueError: no messages, a message without role or content, an unknown role, a last message that is not the
            assistant's; a template that refuses the conversation, leaves out a part of it, or renders the prompt so
            that the answer cannot be located. A template may leave out the reasoning of answers that are not learnt;
            this is logged once.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
        >>> sample = default_sft_map_fn({"messages": messages}, tokenizer=load_shipped()[1])
        >>> len(sample["input_ids"]) == len(sample["labels"]), sample["prompt_len"]
        (True, 4)
    """
    check_answers(answers, mask_prompt_loss)
    try:
        return _sample(row, tokenizer, mask_prompt_loss, answers)
    except ValueError as error:
        raise ValueError(f"{error} (in {row_label(row)})") from error


def check_answers(answers: str, mask_prompt_loss: bool) -> None:
    """Check the options of :func:`default_sft_map_fn`.

    Raises:
        ValueError: `answers` is neither "last" nor "all", or "all" although mask_prompt_loss=False learns everything.
    """
    if answers not in ANSWERS:
        raise ValueError(f"answers must be one of {', '.join(ANSWERS)}, got {answers!r}")
    if answers == "all" and not mask_prompt_loss:
        raise ValueError("mask_prompt_loss=False learns all messages, so answers must be 'last', got 'all'")


def _sample(row: Mapping[str, Any], tokenizer: Any, mask_prompt_loss: bool, answers: str) -> dict[str, Any]:
    messages = check_messages(row.get("messages"))
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"the last message must be the assistant's, got the role {messages[-1]['role']!r}")
    plain = [{name: value for name, value in message.items() if name != "weight"} for message in messages]
    rendering = Rendering.of(tokenizer, plain, tools_of(row))
    learnt = _trained_answers(messages, "all" if not mask_prompt_loss else answers)
    _check_nothing_left_out(row, rendering, learnt)
    _warn_of_early_ends(row, tokenizer, [messages[number] for number in learnt])
    encoded = Encoded(rendering.text, tokenizer)
    if not mask_prompt_loss:
        unlearnt = [number for number, message in enumerate(messages) if not message.get("weight", 1)]
        return {
            "input_ids": encoded.ids,
            "labels": _with_ignored(encoded.ids, _token_spans(encoded, rendering, unlearnt)),
        }
    labels = [IGNORE] * len(encoded.ids)
    for start, stop in _token_spans(encoded, rendering, learnt):
        labels[start:stop] = encoded.ids[start:stop]
    length = next((n for n, label in enumerate(labels) if label != IGNORE), len(labels))
    return {"input_ids": encoded.ids, "labels": labels, "prompt_len": length}


def _trained_answers(messages: Sequence[Message], answers: str) -> list[int]:
    """The indices of the messages that are learnt."""
    answered = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    chosen = answered if answers == "all" else answered[-1:]
    return [number for number in chosen if messages[number].get("weight", 1)]


def _with_ignored(labels: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[int]:
    labels = list(labels)
    for start, stop in spans:
        labels[start:stop] = [IGNORE] * (stop - start)
    return labels


def _token_spans(encoded: Encoded, rendering: Rendering, numbers: Sequence[int]) -> list[tuple[int, int]]:
    return [tuple(encoded.tokens_before(end) for end in rendering.span(number)) for number in numbers]


def _check_nothing_left_out(row: Mapping[str, Any], rendering: Rendering, learnt: Sequence[int]) -> None:
    """Check that the rendered text has all of the conversation, except reasoning of answers that are not learnt."""
    for lost in rendering.left_out():
        if lost.message is None:
            raise ValueError(f"the chat template leaves out the {lost.part}")
        role = rendering.messages[lost.message]["role"]
        if lost.message in learnt or role != "assistant" or not lost.is_reasoning:
            raise ValueError(f"the chat template leaves out the {lost.part} of message {lost.message} ({role})")
        _warn_once(f"the chat template leaves out the {lost.part} of answers that are not learnt", row)


def _warn_of_early_ends(row: Mapping[str, Any], tokenizer: Any, answers: Sequence[Message]) -> None:
    """Warn if an answer contains the text of an end token: a model that learns it stops there."""
    ends = {end for name in ("eos_token", "eot_token") if (end := getattr(tokenizer, name, None))}
    for end in sorted(ends):
        if any(end in (answer["content"] or "").strip().removesuffix(end) for answer in answers):
            _warn_once(f"an answer has {end!r} in it, at which a model that learns it ends its own answers", row)


def _warn_once(what: str, row: Mapping[str, Any]) -> None:
    if what not in _said:
        _said.add(what)
        _log.warning("%s; the first is in %s", what, row_label(row))
