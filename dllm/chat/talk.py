"""What is said: a conversation of several turns, or single texts to be continued. Nothing here reads or prints."""

from __future__ import annotations

import contextlib
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from dllm.chat.film import Film
from dllm.chat.trim import sample_trim
from dllm.core.samplers import BaseSampler, BaseSamplerConfig
from dllm.fast import Step
from dllm.fast.model import position_limit
from dllm.fast.sampling.stats import Stats

Message = Mapping[str, str]


class TooLong(ValueError):
    """What was said does not fit the model's positions, together with an answer; nothing of it is lost."""


class Prompt(NamedTuple):
    """What the model is given.

    tokens: ids; a conversation's have no mask token.
    film: records the steps of what is generated.
    """

    tokens: list[int]
    film: Film


class Reply(NamedTuple):
    """What the model said, and what it cost."""

    text: str
    stats: Stats


@dataclass
class Talk(ABC):
    """A sampler, its settings, and what was said so far.

    sampler: of :mod:`dllm.core.samplers`, whose tokenizer knows a mask token.
    config: its settings; the class's defaults when None.
    seed: of the noise of every answer; None draws another one each time.
    """

    sampler: BaseSampler
    config: BaseSamplerConfig | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.config is None:
            self.config = self.sampler.config_class()

    @property
    def tokenizer(self) -> Any:
        """The sampler's."""
        return self.sampler.tokenizer

    def setting(self, name: str) -> Any:
        """The value of one of the sampler's settings.

        Raises:
            ValueError: the sampler has no such setting.
        """
        if name not in {known.name for known in dataclasses.fields(self.config)}:
            raise ValueError(f"{type(self.sampler).__name__} has no setting {name}")
        return getattr(self.config, name)

    def set(self, **settings: Any) -> None:
        """Change settings of the sampler; either all of them, or none and an error.

        Raises:
            TypeError, ValueError: the sampler has no such setting, or the value breaks a rule.
        """
        for name in settings:
            self.setting(name)
        config = dataclasses.replace(self.config, **settings)
        config.check()
        self.config = config

    @abstractmethod
    def prompt(self, text: str) -> Prompt:
        """What the model is given for `text`.

        Raises:
            ValueError: nothing to answer.
            TooLong: it does not fit.
        """

    @abstractmethod
    def answer(self, text: str, prompt: Prompt, on_step: Callable[[Step], object] | None = None) -> Reply:
        """Let the model answer; only a finished answer becomes part of what was said."""

    def reset(self) -> None:
        """Forget what was said.

        Raises:
            ValueError: nothing is remembered.
        """
        raise ValueError("there is nothing to forget: each text is continued for itself")

    @property
    def messages(self) -> list[Message]:
        """What later answers see."""
        return []

    @contextlib.contextmanager
    def last_turn_aside(self) -> Iterator[None]:
        """Without the last turn; it comes back if what is done meanwhile fails."""
        yield

    def _room(self, tokens: int, context: int) -> int:
        """How many tokens are generated after `tokens`, of which `context` are from earlier turns."""
        new, limit = self.config.max_new_tokens, position_limit(self.sampler.model)[0]
        if new is None:
            new, limit = self.config.max_length - tokens, min(filter(None, (limit, self.config.max_length)))
        if new >= 1 and (limit is None or tokens + new <= limit):
            return new
        earlier = f", {context} of them from earlier turns," if context else ""
        raise TooLong(
            f"this makes a prompt of {tokens} tokens{earlier} and the answer takes {max(new, 1)} more: "
            f"the model has room for {limit}"
        )


@dataclass
class Conversation(Talk):
    """Questions and answers; every answer sees all turns before it.

    system: a system message that stands before the first question.

    Raises:
        ValueError: the tokenizer has no chat template.

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
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError("a conversation needs a tokenizer with a chat template, got one without")

    @property
    def messages(self) -> list[Message]:
        """All that was said, the system message first."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.turns]

    def prompt(self, text: str) -> Prompt:
        """See :meth:`Talk.prompt`."""
        if not text.strip():
            raise ValueError("expected a question, got an empty text")
        text.encode()  # UnicodeEncodeError, a ValueError, for what is no text
        question = [{"role": "user", "content": text}]
        tokens = build_chat_inputs(self.tokenizer, [*self.messages, *question], add_generation_prompt=True)
        if (mask := self.tokenizer.mask_token_id) in tokens:
            raise ValueError(f"a question must not hold the mask token {self.tokenizer.decode([mask])!r}, got it")
        context = len(tokens) - len(build_chat_inputs(self.tokenizer, question, add_generation_prompt=True))
        new = self._room(len(tokens), context)
        return Prompt(tokens, Film(mask, [slice(len(tokens), len(tokens) + new)]))

    def answer(self, text: str, prompt: Prompt, on_step: Callable[[Step], object] | None = None) -> Reply:
        """See :meth:`Talk.answer`."""
        output = self.sampler.sample([prompt.tokens], self.config, seed=self.seed, on_step=on_step, return_dict=True)
        (said,) = sample_trim(self.tokenizer, output.sequences, [prompt.tokens])
        self.turns += [{"role": "user", "content": text}, {"role": "assistant", "content": said.strip()}]
        return Reply(said.strip(), output.stats)

    def reset(self) -> None:
        """Forget all turns; the system message stays."""
        self.turns.clear()

    @contextlib.contextmanager
    def last_turn_aside(self) -> Iterator[None]:
        """See :meth:`Talk.last_turn_aside`."""
        before = list(self.turns)
        del self.turns[-2:]
        try:
            yield
        except BaseException:
            self.turns = before
            raise


@dataclass
class Continuation(Talk):
    """Texts, each continued for itself, without a chat template; mask tokens inside a text are filled instead."""

    def prompt(self, text: str) -> Prompt:
        """See :meth:`Talk.prompt`."""
        text.encode()  # UnicodeEncodeError, a ValueError, for what is no text
        tokens = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if not tokens:
            raise ValueError("expected a text to continue, got an empty one")
        mask = self.tokenizer.mask_token_id
        if mask in tokens:
            limit, _ = position_limit(self.sampler.model)
            if limit is not None and len(tokens) > limit:
                raise TooLong(f"this is {len(tokens)} tokens long, but there is room for {limit}")
            return Prompt(tokens, Film(mask, [slice(0, len(tokens))], torch.tensor([tokens])))
        new = self._room(len(tokens), 0)
        return Prompt(tokens, Film(mask, [slice(len(tokens), len(tokens) + new)]))

    def answer(self, text: str, prompt: Prompt, on_step: Callable[[Step], object] | None = None) -> Reply:
        """See :meth:`Talk.answer`."""
        if self.tokenizer.mask_token_id in prompt.tokens:
            output = self.sampler.infill(
                [prompt.tokens], self.config, seed=self.seed, on_step=on_step, return_dict=True, stop_at_eos=False
            )
            return Reply(self.tokenizer.decode(output.sequences[0].tolist()).strip(), output.stats)
        output = self.sampler.sample([prompt.tokens], self.config, seed=self.seed, on_step=on_step, return_dict=True)
        (said,) = sample_trim(self.tokenizer, output.sequences, [prompt.tokens])
        return Reply(said.strip("\n"), output.stats)


def build_chat_inputs(
    tokenizer: Any, messages: Sequence[Message] | Sequence[Sequence[Message]], add_generation_prompt: bool
) -> list[int] | list[list[int]]:
    """The token ids of a conversation, or of each of several, as the tokenizer's chat template writes them.

    Args:
        tokenizer: one with a chat template.
        messages: {"role": ..., "content": ...} of one conversation, or a list of conversations.
        add_generation_prompt: end with the beginning of an answer.
    """
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=False
    )
