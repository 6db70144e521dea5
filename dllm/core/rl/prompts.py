"""The prompts of reinforcement learning: as token ids, repeated for the completions of a group, and as batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from dllm.data.messages import check_messages

_log = logging.getLogger("dllm")


class Prompt(NamedTuple):
    """A row of the data, ready to be answered.

    tokens: token ids.
    columns: the row itself, whose columns the rewards are given.
    """

    tokens: tuple[int, ...]
    columns: Mapping[str, Any]

    @property
    def is_conversation(self) -> bool:
        """Whether the prompt is a list of messages, so that a completion is a message, too."""
        return not isinstance(self.columns["prompt"], str)


class Prompts(torch.utils.data.Dataset):
    """The rows of a data set as prompts.

    A row's `prompt` is a text, or messages, which the tokenizer's chat template renders up to the answer. `tools`, if
    the row has them, are given to the template.

    Args:
        rows: a data set with a length, or a list of rows.
        tokenizer: with a chat template where prompts are messages.
        longest: prompts of more tokens are left out, which is logged; None: none are.

    Raises:
        TypeError: the data set has no length.
        ValueError: a row has no `prompt`, an empty one, or messages that are none; or no prompt is left.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> rows = [{"prompt": [{"role": "user", "content": "Hello"}], "answer": "Hi"}]
        >>> prompts = Prompts(rows, load_shipped()[1])
        >>> len(prompts), prompts[0].columns["answer"]
        (1, 'Hi')
    """

    def __init__(self, rows: Any, tokenizer: Any, longest: int | None = None):
        if not hasattr(rows, "__len__"):
            raise TypeError(f"the prompts must be a data set with a length, got {type(rows).__name__}")
        encoded = [Prompt(_tokens(row, number, tokenizer), row) for number, row in enumerate(rows)]
        self.prompts = [one for one in encoded if longest is None or len(one.tokens) <= longest]
        if not self.prompts:
            raise ValueError(f"no prompt of {len(encoded)} has at most max_prompt_length {longest} tokens")
        if left_out := len(encoded) - len(self.prompts):
            _log.warning("%d of %d prompts have more than %d tokens and are left out", left_out, len(encoded), longest)

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, number: int) -> Prompt:
        return self.prompts[number]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(one.tokens) for one in self.prompts)


def _tokens(row: Mapping[str, Any], number: int, tokenizer: Any) -> tuple[int, ...]:
    prompt = row.get("prompt")
    try:
        if isinstance(prompt, str):
            text = prompt
        else:
            messages = [dict(message) for message in check_messages(prompt)]
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, tools=row.get("tools") or None
            )
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        if not tokens:
            raise ValueError("a prompt must have a token, got an empty text")
    except ValueError as error:
        raise ValueError(f"prompt {number} of the data: {error}") from error
    return tuple(tokens)


@dataclass
class RepeatedPrompts(torch.utils.data.Sampler):
    """The order of prompts in an epoch, seeded by `generator`: each prompt as often as its group has completions.

    The prompts of an optimizer step come together, and again for each further step on the same completions. Prompts
    that do not fill a step are left out; the next epoch has another order.

    Args:
        count: number of prompts.
        per_step: prompts of an optimizer step.
        group_size: completions of a prompt.
        iterations: optimizer steps on the same completions.
        generator: of the order.

    Raises:
        ValueError: there are fewer prompts than a step takes.

    Example:
        >>> list(RepeatedPrompts(3, per_step=1, group_size=2, generator=torch.Generator().manual_seed(0)))
        [2, 2, 0, 0, 1, 1]
    """

    count: int
    per_step: int
    group_size: int
    iterations: int = 1
    generator: torch.Generator | None = None

    def __post_init__(self):
        if self.count < self.per_step:
            raise ValueError(f"an optimizer step takes {self.per_step} prompts, got {self.count} in all")

    def __len__(self) -> int:
        return self.count // self.per_step * self.per_step * self.group_size * self.iterations

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.count, generator=self.generator).tolist()
        for first in range(0, self.count - self.per_step + 1, self.per_step):
            for _ in range(self.iterations):
                for number in order[first : first + self.per_step]:
                    yield from [number] * self.group_size


@dataclass
class PromptCollator:
    """A batch of prompts, as they are: completions and masks are drawn in the training process.

    It stands where other objectives have a collator that corrupts samples.

    Example:
        >>> PromptCollator()([1, 2])
        {'prompts': [1, 2]}
    """

    epoch: int = 0
    endless: bool = False

    def __call__(self, samples: Sequence[Prompt]) -> dict[str, list[Prompt]]:
        return {"prompts": list(samples)}

    clean = __call__
