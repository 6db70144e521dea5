"""A request that is checked: its rows, and what is to be told of them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from dllm.serve.answers import Answer
from dllm.serve.bodies import INT64, ChatBody, CompletionBody
from dllm.serve.engine import Engine
from dllm.serve.errors import ApiError
from dllm.serve.prompts import chat_tokens, text_tokens
from dllm.serve.text import AnswerText
from dllm.serve.tickets import Ticket, Work

DRAWN_BITS = 53  # of a seed that is drawn: every JSON reader keeps such an integer


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """What an answer is generated for.

    tokens: of its row; with masks where these are to be filled.
    new: masks to put behind it; None: those that it has are filled.
    span: columns of the answer.
    given: how many tokens the client gave.
    mask: the mask token.
    """

    tokens: list[int]
    new: int | None
    span: slice
    given: int
    mask: int

    def generated(self, columns: int) -> int:
        """How many of the answer's first columns are generated. The others are given tokens between those filled."""
        return columns if self.new is not None else self.tokens[self.span][:columns].count(self.mask)

    @property
    def canvas(self) -> int:
        """Columns that are generated or shown."""
        return self.span.stop - self.span.start


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """One answer of a request.

    index: its place in the response. prompt: its own. seed: of its noise. answer: the news of its row.
    ticket: its row. steps: how many steps that takes, at most. confidence: what ranks its tokens.
    """

    index: int
    prompt: Prompt
    seed: int
    answer: Answer
    ticket: Ticket
    steps: int
    confidence: str


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """A request with its rows.

    id, created: of the response. model: the served name. body: of the request. choices: in order.
    prompt_tokens: of all prompts.
    """

    id: str
    created: int
    model: str
    body: ChatBody | CompletionBody
    choices: list[Choice]
    prompt_tokens: int

    @property
    def chat(self) -> bool:
        """Whether it is one of a conversation."""
        return isinstance(self.body, ChatBody)

    @property
    def tickets(self) -> list[Ticket]:
        """Its rows."""
        return [choice.ticket for choice in self.choices]


def order_of(
    engine: Engine,
    body: ChatBody | CompletionBody,
    *,
    wake: Callable[[], None],
    key: str = "",
    most_rows: int,
    on_drop: Callable[[], object] = lambda: None,
) -> Order:
    """Check all that a body asks for, and lay out its rows.

    Args:
        engine: what is served.
        body: parsed.
        wake, on_drop: see :class:`dllm.serve.answers.Answer`.
        key: of the client.
        most_rows: that a request may have.

    Raises:
        ApiError: something breaks a rule.
    """
    check_model(engine, body.model)
    if body.wants_logprobs and (why := engine.why_no_logprobs):
        raise ApiError(400, f"logprobs is not supported: {why}", param="logprobs", code="unsupported_parameter")
    count = body.n or 1
    seed = secrets.randbits(DRAWN_BITS) if body.seed is None else body.seed
    if seed + count > INT64:
        raise ApiError(400, f"seed + n must be at most {INT64}, got {seed + count}", param="seed")
    given = 1 if isinstance(body, ChatBody) else len(body.prompts)
    if given * count > most_rows:  # before they are made tokens, which takes longest
        message = f"a request may have {most_rows} rows, got {given} prompts times n = {count}"
        raise ApiError(400, message, param="n" if given == 1 else "prompt")
    prompts = [_chat_prompt(engine, body)] if isinstance(body, ChatBody) else _prompts(engine, body)
    choices = []
    for prompt in prompts:
        seeds = list(range(seed, seed + count))
        choices += _choices(engine, body, prompt, seeds, len(choices), wake=wake, key=key, on_drop=on_drop)
    kind = "chatcmpl" if isinstance(body, ChatBody) else "cmpl"
    tokens = sum(prompt.given for prompt in prompts)
    return Order(f"{kind}-{secrets.token_hex(12)}", int(time.time()), engine.name, body, choices, tokens)


def check_model(engine: Engine, name: str | None) -> None:
    """Check that a model is the one that is served; None: whatever is.

    Raises:
        ApiError: it is not.
    """
    if name is not None and name != engine.name:
        raise ApiError(404, f"the model served here is {engine.name}", param="model", code="model_not_found")


def _chat_prompt(engine: Engine, body: ChatBody) -> Prompt:
    roles = {"developer": "system"}  # the newer name of the same thing
    messages = [(roles.get(message.role, message.role), message.text) for message in body.messages]
    return _continued(engine, chat_tokens(engine.tokenizer, messages), body.canvas, "messages")


def _prompts(engine: Engine, body: CompletionBody) -> list[Prompt]:
    found = []
    for given in body.prompts:
        tokens = text_tokens(engine.tokenizer, given) if isinstance(given, str) else list(given)
        if engine.mask_id in tokens:
            found.append(_filled(engine, tokens, body))
        elif body.suffix:
            suffix = text_tokens(engine.tokenizer, body.suffix, "suffix")
            new = engine.new_tokens(len(tokens) + len(suffix), body.max_tokens)
            span = slice(len(tokens), len(tokens) + new)
            row = [*tokens, *[engine.mask_id] * new, *suffix]
            found.append(Prompt(row, None, span, len(tokens) + len(suffix), engine.mask_id))
        else:
            found.append(_continued(engine, tokens, body.max_tokens, "prompt"))
    return found


def _continued(engine: Engine, tokens: list[int], asked: int | None, param: str) -> Prompt:
    if engine.mask_id in tokens:
        raise ApiError(400, f"{param} must not hold the mask token, got it", param=param)
    new = engine.new_tokens(len(tokens), asked)
    return Prompt(tokens, new, slice(len(tokens), len(tokens) + new), len(tokens), engine.mask_id)


def _filled(engine: Engine, tokens: list[int], body: CompletionBody) -> Prompt:
    for name in ("suffix", "max_tokens"):
        if getattr(body, name) is not None:
            raise ApiError(400, f"{name} must not be given where a prompt has masks to fill", param=name)
    if engine.positions is not None and len(tokens) > engine.positions:
        message = f"this model has room for {engine.positions} tokens, got {len(tokens)}"
        raise ApiError(400, message, param="prompt", code="context_length_exceeded")
    masks = tokens.count(engine.mask_id)
    return Prompt(tokens, None, slice(0, len(tokens)), len(tokens) - masks, engine.mask_id)


def _choices(
    engine: Engine,
    body: ChatBody | CompletionBody,
    prompt: Prompt,
    seeds: list[int],
    first_index: int,
    *,
    wake: Callable[[], None],
    key: str,
    on_drop: Callable[[], object],
) -> list[Choice]:
    plan = engine.plan(
        prompt.tokens,
        seeds,
        new=prompt.new,
        temperature=body.temperature,
        steps=body.steps,
        block_length=body.block_length,
    )
    work, steps = Work.of(plan), int(plan.batch.schedule.steps[0].sum())
    text = AnswerText(engine.tokenizer, body.stops, strip=isinstance(body, ChatBody), fills=prompt.new is None)
    first, choices = int(plan.batch.first[0]), []
    watches = bool(body.denoise or (body.stream and body.wants_logprobs))
    for place, seed in enumerate(seeds):
        answer = Answer(text, prompt.span, first, wake, streams=bool(body.stream), watches=watches, on_drop=on_drop)
        ticket = Ticket(work.batch.rows([place]), work.policy, work.eos_id, answer, key, bool(body.wants_logprobs))
        choices.append(Choice(first_index + place, prompt, seed, answer, ticket, steps, plan.policy.confidence))
    return choices
