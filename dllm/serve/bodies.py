"""Bodies of requests: each field is honoured, or refused by its name."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from dllm.core.samplers.schedules import MAX_STEPS
from dllm.serve.errors import ApiError
from dllm.serve.json_objects import MAX_NAME, kind_of, read_object

MAX_MESSAGES = 1024
MAX_STOPS = 4
MAX_CHOICES = 8
INT64 = 2**63

# Fields of OpenAI's API that are not offered, and the values with which they ask for nothing. null is one everywhere.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True,),
    "prediction": (),
    "presence_penalty": (0,),
    "prompt_cache_key": (),
    "prompt_cache_retention": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_k": (0, -1),
    "top_logprobs": (0,),
    "top_p": (1,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
WHY_NOT = {
    "logit_bias": "logits of the whole vocabulary never exist",
    "top_logprobs": "logits of the whole vocabulary never exist",
    "top_k": "it is a setting of the server",
    "top_p": "it is a setting of the server",
}
# Rules whose words in Pydantic are about Python.
RULES = {"model_type": "be an object", "list_type": "be an array"}
# What OpenAI's client has in the messages that it received, and sends back with them.
_ECHOED = ("annotations", "audio", "function_call", "name", "refusal", "tool_calls")

Stop = Annotated[str, Field(min_length=1, max_length=1024)]
# A list may be long, and each element wrong: the first fault is told, and costs no more than one.
Texts = Annotated[list[str], Field(fail_fast=True)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(fail_fast=True)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(_Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(_Body):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1, max_length=MAX_MESSAGES)]

    @property
    def text(self) -> str:
        """Its text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(_Body):
    """What a stream tells besides the text."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class _Generation(_Body):
    """The fields that chat and completions share."""

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    block_length: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    denoise: bool | None = None

    @property
    def stops(self) -> list[str]:
        """The texts that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def canvas(self) -> int | None:
        """Tokens to generate; None: the server's default."""
        return self.max_tokens

    def check(self) -> None:
        """Check what fields mean together.

        Raises:
            ApiError: they exclude each other.
        """
        if not self.stream:
            if self.denoise:
                raise ApiError(400, "denoise needs stream: true, got no stream", param="denoise")
            if self.stream_options is not None:
                raise ApiError(400, "stream_options needs stream: true, got no stream", param="stream_options")


class ChatBody(_Generation):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool | None = None

    @property
    def canvas(self) -> int | None:
        """See :class:`_Generation`."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def wants_logprobs(self) -> bool:
        """Whether each token's log-probability is asked for."""
        return bool(self.logprobs)

    def check(self) -> None:
        """See :class:`_Generation`."""
        super().check()
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            got = f"{self.max_tokens} and {self.max_completion_tokens}"
            raise ApiError(400, f"max_tokens and max_completion_tokens must agree, got {got}", param="max_tokens")
        if self.messages[-1].role == "assistant":
            raise ApiError(400, "the last message must not be the assistant's, got one to continue", param="messages")


class CompletionBody(_Generation):
    """The body of /v1/completions."""

    prompt: str | Texts | TokenIds | Annotated[list[TokenIds], Field(fail_fast=True)]
    suffix: str | None = None
    logprobs: Annotated[int, Field(ge=0, le=0)] | None = None

    @property
    def wants_logprobs(self) -> bool:
        """Whether each token's log-probability is asked for."""
        return self.logprobs is not None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one for each text."""
        prompt = self.prompt
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            return [prompt]
        return list(prompt)

    def check(self) -> None:
        """See :class:`_Generation`."""
        super().check()
        if not self.prompts or not all(self.prompts):
            raise ApiError(400, "a prompt must have at least one token, got an empty one", param="prompt")


class TokenizeBody(_Body):
    """The body of /v1/tokenize: a text, or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None

    def check(self) -> None:
        """Check that there is one of both."""
        if (self.prompt is None) == (self.messages is None):
            raise ApiError(400, "expected prompt or messages, got both or none", param="prompt")


Body = TypeVar("Body", ChatBody, CompletionBody, TokenizeBody)


def parse(kind: type[Body], raw: bytes) -> Body:
    """A body, checked.

    Raises:
        ApiError: it is no JSON, or a field breaks a rule.

    Example:
        >>> parse(ChatBody, b'{"messages": [{"role": "user", "content": "2 + 2?"}], "top_k": 5}')
        Traceback (most recent call last):
        dllm.serve.errors.ApiError: top_k is not supported: it is a setting of the server
    """
    fields = _without_neutral(read_object(raw), kind)
    try:
        body = kind.model_validate(fields)
    except ValidationError as error:
        raise _first_error(error) from None
    body.check()
    return body


def _without_neutral(fields: dict[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    """The fields that mean something; those that are not offered must be neutral."""
    kept = {}
    for name, value in fields.items():
        if name in kind.model_fields or name not in NEUTRAL or kind is TokenizeBody:
            kept[name] = value
        elif value is not None and not any(_same(value, neutral) for neutral in NEUTRAL[name]):
            why = f": {WHY_NOT[name]}" if name in WHY_NOT else ""
            raise ApiError(400, f"{name} is not supported{why}", param=name, code="unsupported_parameter")
    if isinstance(messages := kept.get("messages"), list):
        kept["messages"] = [_without_echo(message) for message in messages]
    return kept


def _same(value: Any, neutral: Any) -> bool:
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _without_echo(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    return {name: value for name, value in message.items() if name not in _ECHOED or value not in (None, [])}


def _first_error(error: ValidationError) -> ApiError:
    """The first thing that is wrong with a body; of a field of several types, with the type that fits best."""
    errors = error.errors(include_url=False, include_context=False)
    same = [found for found in errors if found["loc"][:1] == errors[0]["loc"][:1]]
    found = max(same, key=_fit)
    # neither a field's own name nor that of an unknown one is that of a branch, however it reads
    *inner, last = map(str, found["loc"][1:]) if len(found["loc"]) > 1 else [""]
    kept = [part for part in inner if not _is_branch(part)]
    if last and (found["type"] == "extra_forbidden" or not _is_branch(last)):
        kept.append(last)
    place = [part[:MAX_NAME] for part in (*map(str, found["loc"][:1]), *kept)]
    name = place[0] if place else None
    where = ".".join(place) or "the body"
    if found["type"] == "extra_forbidden":
        return ApiError(400, f"{where} is not a known field", param=name, code="unknown_parameter")
    if found["type"] == "missing":
        return ApiError(400, f"{where} is required", param=name, code="missing_required_parameter")
    rule = RULES.get(found["type"]) or found["msg"].partition(" should ")[2].partition(" after validation")[0]
    return ApiError(400, f"{where} should {rule}, got {_shown(found.get('input'))}", param=name, code="invalid_value")


def _fit(found: ErrorDetails) -> tuple[int, bool]:
    """How well the type fits that an error is about: how deep it got, and whether it failed for more than its type."""
    return len(found["loc"]), not found["type"].endswith("_type")


def _is_branch(part: str) -> bool:
    """Whether a part of a place names one of several allowed types rather than a field."""
    return part in ("str", "constrained-str") or "[" in part


def _shown(value: Any) -> str:
    """A value in a message: numbers and words as they are, no texts of users."""
    if value is None or isinstance(value, (bool, int, float)):
        return json.dumps(value)[:32]
    return kind_of(value)
