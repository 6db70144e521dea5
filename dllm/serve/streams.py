"""A streamed response: text as it becomes final, frames where they are asked for, and how each answer ends."""

from __future__ import annotations

import json
import math
from typing import Any

from dllm.serve.errors import ApiError
from dllm.serve.frames import Frames
from dllm.serve.orders import Choice, Order
from dllm.serve.shapes import Outcome, head, info, log_prob_entries, outcome_of, usage

PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"


class Stream:
    """The events of an order. Its methods decode, so they are no work for the event loop.

    Args:
        order: with rows that are queued.
        tokenizer: of the model.
    """

    def __init__(self, order: Order, tokenizer: Any):
        self._order = order
        self._parts = [_Part(order, choice, tokenizer) for choice in order.choices]
        self._error: ApiError | None = None

    @property
    def over(self) -> bool:
        """Whether all answers have ended, and been told of."""
        return all(part.over for part in self._parts)

    @property
    def has_text(self) -> bool:
        """Whether some text was sent."""
        return any(part.text for part in self._parts)

    @property
    def outcomes(self) -> list[Outcome]:
        """Those of the answers that did not fail."""
        return [part.outcome for part in self._parts if part.outcome is not None]

    def begin(self) -> bytes:
        """The first events."""
        if not self._order.chat:
            return b""
        first = {"role": "assistant", "content": ""}
        return b"".join(self._event(part.chunk(delta=first)) for part in self._parts)

    def news(self) -> bytes:
        """Events of what has happened since the last call."""
        return b"".join(self._event(chunk) for part in self._parts if not part.over for chunk in part.news())

    def end(self) -> bytes:
        """The last events."""
        errors = [part.error for part in self._parts if part.error is not None]
        if errors:
            return failed(errors[0])
        if not self._wants_usage:
            return DONE
        kind = "chat.completion.chunk" if self._order.chat else "text_completion"
        total = head(self._order, kind) | {"choices": [], "usage": usage(self._order, self.outcomes)}
        return _event(total) + DONE

    @property
    def _wants_usage(self) -> bool:
        options = self._order.body.stream_options
        return bool(options and options.include_usage)

    def _event(self, chunk: dict[str, Any]) -> bytes:
        return _event(chunk | {"usage": None} if self._wants_usage else chunk)


class _Part:
    """The chunks of one choice."""

    def __init__(self, order: Order, choice: Choice, tokenizer: Any):
        self._order, self._choice, self._answer = order, choice, choice.answer
        self._frames = Frames(tokenizer, choice) if order.body.denoise else None
        self._mask = tokenizer.mask_token_id
        self._log_probs: list[float] = []
        self._told = 0  # tokens whose log-probabilities were sent
        self.text, self.over = "", False
        self.outcome: Outcome | None = None
        self.error: ApiError | None = None

    def chunk(
        self,
        *,
        delta: dict[str, Any] | None = None,
        text: str = "",
        reason: str | None = None,
        log_probs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """One chunk, with a delta or a text."""
        choice: dict[str, Any] = {"index": self._choice.index}
        if self._order.chat:
            choice["delta"] = ({"content": text} if text else {}) if delta is None else delta
        else:
            choice["text"] = text
        choice |= {"finish_reason": reason, "logprobs": log_probs}
        kind = "chat.completion.chunk" if self._order.chat else "text_completion"
        return head(self._order, kind) | {"choices": [choice]}

    def news(self) -> list[dict[str, Any]]:
        """Chunks of what has happened since the last call: frames, then text, then the end."""
        end = self._answer.end  # before all else: what came before it is there then
        chunks = self._views()
        if end is None:
            final = self._answer.final
            if self._order.body.wants_logprobs:  # text comes with them
                final = final[: self._known()]
            return chunks + self._more(self._answer.text.committed(final), final)
        self.over = True
        try:
            self.outcome = outcome_of(self._choice)
        except ApiError as error:
            self.error = error
            return [*chunks, self.chunk(reason="error") | {"dllm": info(self._choice)}]
        self._log_probs = self.outcome.log_probs or self._log_probs
        chunks += self._more(self.outcome.text, self.outcome.tokens)
        return [*chunks, self.chunk(reason=self.outcome.reason) | {"dllm": info(self._choice)}]

    def _known(self) -> int:
        """Before which column of the answer all log-probabilities are known."""
        given, mask = self._choice.prompt.tokens[self._choice.prompt.span], self._mask
        for column, value in enumerate(self._log_probs):
            if math.isnan(value) and (column >= len(given) or given[column] == mask):
                return column
        return len(self._log_probs)

    def _views(self) -> list[dict[str, Any]]:
        """The frames of the views that wait."""
        chunks, views = [], self._answer.views
        while views:
            view = views.popleft()
            if view.log_probs is not None and self._order.body.wants_logprobs:
                self._log_probs = view.log_probs[self._choice.prompt.span].tolist()
            if self._frames is not None:
                chunks.append(self.chunk() | self._frames.of(view))
        return chunks

    def _more(self, text: str, tokens: list[int]) -> list[dict[str, Any]]:
        """The chunk of what has been added to the text that was sent."""
        if not text.startswith(self.text):
            raise RuntimeError("the tokenizer's decoder has changed text that was final")
        added, self.text = text[len(self.text) :], text
        log_probs = self._more_log_probs(tokens) if self._order.body.wants_logprobs else None
        return [self.chunk(text=added, log_probs=log_probs)] if added or log_probs else []

    def _more_log_probs(self, tokens: list[int]) -> dict[str, Any] | None:
        """The entries of tokens whose text is final and that were not told of."""
        text = self._answer.text
        known = len(tokens) if self.over else text.released(tokens, text.texts(tokens))
        known = min(known, len(self._log_probs))
        if known <= self._told:
            return None
        since, self._told = self._told, known
        return log_prob_entries(self._order, text, tokens[:known], self._log_probs[:known], since)


def failed(error: ApiError) -> bytes:
    """The last events of a stream that ends with an error."""
    return _event(error.body()) + DONE


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n\n"
