"""OpenAI's objects, with what this server adds to them under the name "dllm"."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from dllm.serve.errors import ApiError
from dllm.serve.orders import Choice, Order
from dllm.serve.spelling import token_bytes
from dllm.serve.text import AnswerText
from dllm.serve.tickets import ABORTED, FAILED, FINISHED


class Outcome(NamedTuple):
    """How a choice came out.

    text: of the answer. reason: why it ends there. tokens: those of the text. count: how many were generated, up to the
    end. log_probs: of `tokens`, where they are known.
    """

    text: str
    reason: str
    tokens: list[int]
    count: int
    log_probs: list[float] | None


def outcome_of(choice: Choice) -> Outcome:
    """The outcome of a choice that has ended. Decodes, so it is no work for the event loop.

    Raises:
        ApiError: its row failed.
    """
    end, answer = choice.answer.end, choice.answer
    tokens = answer.tokens()
    if end.kind == FAILED:
        raise ApiError(500, "the model failed on this request", code="engine_error")
    if end.kind == ABORTED:
        text = answer.text.committed(tokens)
        cut = answer.text.cut(tokens)
        return Outcome(text, "abort", tokens[: cut.tokens], choice.prompt.generated(cut.tokens), None)
    cut = answer.text.cut(tokens)
    log_probs = None if end.log_probs is None else end.log_probs[choice.prompt.span][: cut.tokens]
    reason = "stop" if cut.ended or choice.prompt.new is None else "length"
    return Outcome(cut.text, reason, tokens[: cut.tokens], choice.prompt.generated(cut.tokens), log_probs)


def info(choice: Choice) -> dict[str, Any]:
    """What an answer cost, and how to get it again."""
    end = choice.answer.end
    return {
        "seed": choice.seed,
        "forwards": end.forwards,
        "canvas": choice.prompt.canvas,
        "queued_seconds": round(end.queued_seconds, 6),
        "computed_seconds": round(end.computed_seconds, 6),
    }


def usage(order: Order, outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Tokens of a request."""
    completion = sum(outcome.count for outcome in outcomes)
    return {
        "prompt_tokens": order.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": order.prompt_tokens + completion,
    }


def response(order: Order, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The response that is no stream."""
    choices = []
    for choice, outcome in zip(order.choices, outcomes, strict=True):
        log_probs = _log_probs(order, choice, outcome) if order.body.wants_logprobs else None
        common = {"index": choice.index, "finish_reason": outcome.reason, "logprobs": log_probs, "dllm": info(choice)}
        own = {"message": {"role": "assistant", "content": outcome.text, "refusal": None}}
        choices.append(common | (own if order.chat else {"text": outcome.text}))
    kind = "chat.completion" if order.chat else "text_completion"
    return head(order, kind) | {"choices": choices, "usage": usage(order, outcomes)}


def head(order: Order, kind: str) -> dict[str, Any]:
    """What all objects of a response begin with."""
    return {"id": order.id, "object": kind, "created": order.created, "model": order.model}


def log_prob_entries(
    order: Order, text: AnswerText, tokens: Sequence[int], log_probs: Sequence[float], since: int = 0
) -> dict[str, Any]:
    """Log-probabilities of tokens with their texts, as a chat or a completion tells them.

    A token's text is that of its own bytes; where these are part of a character only, U+FFFD stands for it, and the
    bytes of the tokens together make the text.

    Args:
        order: of the tokens.
        text: decodes them.
        tokens: the first ones of an answer.
        log_probs: of them.
        since: the first token that is told of.
    """
    added = text.texts(tokens)
    values = [None if math.isnan(value) else max(value, -9999.0) for value in log_probs]  # JSON has no infinity
    spelled = token_bytes(text.tokenizer, tokens, added)
    names = [each.decode("utf-8", "replace") for each in spelled]
    if order.chat:
        content = [
            {"token": name, "logprob": value, "bytes": list(each), "top_logprobs": []}
            for name, value, each in zip(names, values, spelled, strict=True)
        ]
        return {"content": content[since:], "refusal": None}
    offsets = list(itertools.accumulate(map(len, added), initial=0))[:-1]
    return {
        "tokens": names[since:],
        "token_logprobs": values[since:],
        "top_logprobs": None,
        "text_offset": offsets[since:],
    }


def _log_probs(order: Order, choice: Choice, outcome: Outcome) -> dict[str, Any] | None:
    if choice.answer.end.kind != FINISHED or outcome.log_probs is None:
        return None
    return log_prob_entries(order, choice.answer.text, outcome.tokens, outcome.log_probs)
