"""A conversation of several turns, or independent texts to continue; without any input or output."""

from __future__ import annotations

import contextlib
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from dllm.chat.film import Film, first_frame
from dllm.chat.tokens import NO_TOKEN
from dllm.chat.trim import sample_trim
from dllm.core.samplers import BaseSampler, BaseSamplerConfig
from dllm.fast import Step
from dllm.fast.model import position_limit
from dllm.fast.sampling.inputs import row_seeds
from dllm.fast.sampling.stats import Stats
from dllm.values import check_unicode

Message = Mapping[str, str]


class TooLong(ValueError):
    """The prompt and an answer exceed the model's positions; the conversation is unchanged."""


class Prompt(NamedTuple):
    """The input of one answer.

    tokens: token ids; in a conversation without mask tokens.
    film: records the steps of the tokens to generate.
    """

    tokens: list[int]
    film: Film


class Reply(NamedTuple):
    """The text of an answer, and what it cost."""

    text: str
    stats: Stats


@dataclass
class Talk(ABC):
    """A sampler, its settings, and the conversation so far.

    sampler: of :mod:`dllm.core.samplers`; its tokenizer has a mask token, if its model has one.
    config: its settings; the class's defaults when None.
    seed: seed of the noise of every answer; None draws a new one for each.
    """

    sampler: BaseSampler
    config: BaseSamplerConfig | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.config is None:
            self.config = self.sampler.config_class()

    @property
    def tokenizer(self) -> Any:
        """The sampler's tokenizer."""
        return self.sampler.tokenizer

    def setting(self, name: str) -> Any:
        """The value of a setting of the sampler.

        Raises:
            ValueError: the sampler has no such setting.
        """
        name = self._own_name(name)
        if name not in {known.name for known in dataclasses.fields(self.config)}:
            raise ValueError(f"{type(self.sampler).__name__} has no setting {name}")
        return getattr(self.config, name)

    def set(self, **settings: Any) -> None:
        """Change settings of the sampler; on an error none is changed.

        Raises:
            TypeError, ValueError: the sampler has no such setting, or the value breaks a rule.
        """
        for name in settings:
            self.setting(name)
        config = dataclasses.replace(self.config, **{self._own_name(name): value for name, value in settings.items()})
        config.check()
        self.config = config

    def check(self) -> None:
        """Check that a short question can be answered with these settings, without running the model.

        Raises:
            TypeError, ValueError, RuntimeError: it cannot.
        """
        row_seeds(self.seed, 1, torch.device("cpu"))
        tokens = self.prompt("a").tokens
        if not self._edits:
            self.sampler.check([tokens], self.config)

    def _own_name(self, setting: str) -> str:
        """The name of a setting in the sampler's settings."""
        return getattr(self.config, "other_names", {}).get(setting, setting)

    @abstractmethod
    def prompt(self, text: str) -> Prompt:
        """The input for `text`.

        Raises:
            ValueError: there is nothing to answer.
            TooLong: the prompt and an answer exceed the model's positions.
        """

    @abstractmethod
    def answer(self, text: str, prompt: Prompt, on_step: Callable[[Step], object] | None = None) -> Reply:
        """Generate the answer; only a finished one becomes part of the conversation."""

    def reset(self) -> None:
        """Forget the conversation.

        Raises:
            ValueError: texts are independent, there is no conversation.
        """
        raise ValueError("there is nothing to forget: each text is continued for itself")

    @property
    def messages(self) -> list[Message]:
        """The conversation that later answers see."""
        return []

    @contextlib.contextmanager
    def without_last_turn(self) -> Iterator[None]:
        """A context without the last turn; the turn is restored if the body raises."""
        yield

    @property
    def _edits(self) -> bool:
        """Whether texts grow and shrink while they are sampled."""
        return getattr(self.sampler, "edits", False)

    @property
    def _mask_id(self) -> int:
        """The mask token; NO_TOKEN of models that have none."""
        return self.tokenizer.mask_token_id if getattr(self.sampler, "masks", True) else NO_TOKEN

    def _film(self, tokens: int, new: int) -> Film:
        """The film of an answer that begins as `new` masks behind a prompt of `tokens`."""
        mask = self._mask_id
        if not self._edits:
            return Film(mask, [slice(tokens, tokens + new)])
        film = Film(mask, [slice(tokens, None)], padding=())
        film.rows = [[first_frame([mask] * new, mask)]]
        return film

    def _answer_length(self, tokens: int, context: int) -> int:
        """Tokens to generate after a prompt of `tokens`, of which `context` are from earlier turns."""
        new, limit = self.config.max_new_tokens, position_limit(self.sampler.model)[0]
        if new is None:
            new, limit = self.config.max_length - tokens, min(filter(None, (limit, self.config.max_length)))
        if new >= (not self._edits) and (limit is None or tokens + new <= limit):
            return new
        earlier = f", {context} of them from earlier turns," if context else ""
        raise TooLong(
            f"this makes a prompt of {tokens} tokens{earlier} and the answer takes {max(new, 1)} more: "
            f"the model has room for {limit}"
        )


@dataclass
class Conversation(Talk):
    """A conversation: every answer sees all turns before it.

    system: a system message before the first question.

    Raises:
        ValueError: the tokenizer has no chat template, or the system message is no Unicode.

    Example:
        >>> from dllm.core.samplers import MDLMSampler, MDLMSamplerConfig
        >>> from dllm.demo.shipped import load_shipped
        >>> config = MDLMSamplerConfig(steps=16, max_new_tokens=16, block_size=16)
        >>> talk = Conversation(MDLMSampler(*load_shipped()), config)
        >>> talk.answer("What is 12 * 4?", talk.prompt("What is 12 * 4?")).text
        '12 * 4 = 48.'
        >>> [message["role"] for message in talk.messages]
        ['user', 'assistant']
    """

    system: str | None = None
    turns: list[Message] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_unicode(self.system or "")
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(
                "a conversation needs a tokenizer with a chat template, got one without, as base models have: they "
                "continue texts (--raw, dllm.chat.Continuation)"
            )

    @property
    def messages(self) -> list[Message]:
        """All messages, the system message first."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.turns]

    def prompt(self, text: str) -> Prompt:
        """See :meth:`Talk.prompt`."""
        if not text.strip():
            raise ValueError("expected a question, got an empty text")
        check_unicode(text)
        question = [{"role": "user", "content": text}]
        tokens = build_chat_inputs(self.tokenizer, [*self.messages, *question], add_generation_prompt=True)
        if (mask := self._mask_id) in tokens:
            raise ValueError(f"a question must not hold the mask token {self.tokenizer.decode([mask])!r}, got it")
        context = len(tokens) - len(build_chat_inputs(self.tokenizer, question, add_generation_prompt=True))
        return Prompt(tokens, self._film(len(tokens), self._answer_length(len(tokens), context)))

    def answer(self, text: str, prompt: Prompt, on_step: Callable[[Step], object] | None = None) -> Reply:
        """See :meth:`Talk.answer`."""
        output = self.sampler.sample([prompt.tokens], self.config, seed=self.seed, on_step=on_step, return_dict=True)
        reply = sample_trim(self.tokenizer, output.sequences, [prompt.tokens])[0].strip()
        self.turns += [{"role": "user", "content": text}, {"role": "assistant", "content": reply}]
        return Reply(reply, output.stats)

    def reset(self) -> None:
        """Forget all turns; the system message stays."""
        self.turns.clear()

    @contextlib.contextmanager
    def without_last_turn(self) -> Iterator[None]:
        """See :meth:`Talk.without_last_turn`."""
        before = list(self.turns)
        del self.turns[-2:]
        try:
            yield
        except BaseException:
            self.turns = before
            raise


@dataclass
class Continuation(Talk):
    """Independent texts, each continued without a chat template; mask tokens in a text are filled instead."""

    def prompt(self, text: str) -> Prompt:
        """See :meth:`Talk.prompt`."""
        check_unicode(text)
        tokens = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if not tokens:
            raise ValueError("expected a text to continue, got an empty one")
        mask = self._mask_id
        if mask in tokens:
            limit, _ = position_limit(self.sampler.model)
            if limit is not None and len(tokens) > limit:
                raise TooLong(f"this is {len(tokens)} tokens long, but there is room for {limit}")
            if self._edits:
                film = Film(mask, [slice(0, None)], padding=())
                film.rows = [[first_frame(tokens, mask)]]
                return Prompt(tokens, film)
            return Prompt(tokens, Film(mask, [slice(0, len(tokens))], torch.tensor([tokens])))
        return Prompt(tokens, self._film(len(tokens), self._answer_length(len(tokens), 0)))

    def answer(self, text: str, prompt: Prompt, on_step: Callable[[Step], object] | None = None) -> Reply:
        """See :meth:`Talk.answer`."""
        if self._mask_id in prompt.tokens:
            whole = {} if self._edits else {"stop_at_eos": False}
            output = self.sampler.infill(
                [prompt.tokens], self.config, seed=self.seed, on_step=on_step, return_dict=True, **whole
            )
            return Reply(self.tokenizer.decode(output.sequences[0].tolist()).strip(), output.stats)
        output = self.sampler.sample([prompt.tokens], self.config, seed=self.seed, on_step=on_step, return_dict=True)
        (reply,) = sample_trim(self.tokenizer, output.sequences, [prompt.tokens])
        return Reply(reply.strip("\n"), output.stats)


def build_chat_inputs(
    tokenizer: Any, messages: Sequence[Message] | Sequence[Sequence[Message]], add_generation_prompt: bool
) -> list[int] | list[list[int]]:
    """The token ids of one conversation, or of each of several, by the tokenizer's chat template.

    Args:
        tokenizer: one with a chat template.
        messages: the {"role": ..., "content": ...} of one conversation, or a list of conversations.
        add_generation_prompt: end with the tokens that begin an answer.
    """
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=False
    )
