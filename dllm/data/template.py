"""What a chat template makes of a conversation: its text, where each answer stands in it, and what it leaves out."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jinja2

from dllm.data.messages import CALLS, REASONING, Message

THOUGHT = "reasoning in <think>"
_THOUGHT = re.compile(r"\s*<think>(?P<thought>.*?)</think>(?P<rest>.*)", re.DOTALL)
_GENERATION = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")
# characters for private use, which stand for the tags {% generation %} and {% endgeneration %} in a text
_OPEN, _CLOSE = "\ue0f0", "\ue0f1"


class LeftOut(NamedTuple):
    """A part of a message that the template does not write; `message` is None for a tool of the row."""

    message: int | None
    part: str

    @property
    def is_reasoning(self) -> bool:
        """Whether it is what an assistant thought, which many templates write of the last answer only."""
        return self.part in (*REASONING, THOUGHT)


@dataclass(frozen=True)
class Rendering:
    """A conversation as its chat template writes it.

    Args:
        tokenizer: with a chat template.
        messages: of :func:`dllm.data.messages.check_messages`.
        tools: JSON schemas for the template, or None.

    Raises:
        ValueError: the template refuses the conversation.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
        >>> found = Rendering(load_shipped()[1], messages)
        >>> start, stop = found.span(1)
        >>> found.text[start:stop]
        'Hi\\n[/Answer]\\n\\n'
    """

    tokenizer: Any
    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None

    @classmethod
    def of(cls, tokenizer: Any, messages: Sequence[Message], tools: Any = None) -> Rendering:
        """With contents that are None as the template can take them: as they are, or, where it cannot read None or
        writes that word, as empty texts."""
        given = cls(tokenizer, messages, tools)
        if all(message["content"] is not None for message in messages):
            return given
        empty = cls(tokenizer, [message | {"content": message["content"] or ""} for message in messages], tools)
        try:
            none_is_a_word = given.text.count("None") > empty.text.count("None")
        except ValueError:
            return empty
        return empty if none_is_a_word else given

    @functools.cached_property
    def text(self) -> str:
        """All of it."""
        return self._render(self.messages)

    def span(self, index: int) -> tuple[int, int]:
        """Where the assistant's message `index` stands in the text, with the end of its turn: [start, stop).

        Its prompt is what the template writes of the messages before it, with the beginning of an answer. Where the
        text does not begin with that, the template's own {% generation %} tags count; without those the answer begins
        where the text depends on its content, if all before it is a part of the prompt. The last answer goes to the end
        of the text; an earlier one as far as the template writes it where it is the last.

        Raises:
            ValueError: none of this holds: what would be learnt is not what the model is asked to write.
        """
        head = self._render(self.messages[:index], add_generation_prompt=True) if index else None
        if head is not None and self.text.startswith(head):
            start = len(head)
        elif tagged := self._tagged(index):
            return tagged
        else:
            start = self._start(index, head)
        if index == len(self.messages) - 1:
            return start, len(self.text)
        return start, self._stop(index)

    def left_out(self) -> list[LeftOut]:
        """What the template does not write: contents, reasoning, tool calls, tools.

        Each of them is replaced by a word of its own, which must be in the text that the template makes of it.
        """
        messages, tools, marks = _marked(self.messages, self.tools)
        try:
            text = self._render(messages, tools=tools)
        except ValueError:  # the template reads what it is given; look for the parts as they are
            return [part for original, part in marks.values() if original.strip() not in self.text]
        return [part for mark, (_, part) in marks.items() if mark not in text]

    def _start(self, index: int, head: str | None) -> int:
        before, _ = self._around(self.messages, index)
        if before is None or not self.text.startswith(before) or not (head is None or head.startswith(before)):
            raise ValueError(
                f"the chat template writes the messages before message {index} otherwise than it writes them to ask "
                "for that answer, so that the prompt cannot be told from the answer. Its tags {% generation %} and "
                "{% endgeneration %} around an answer would tell"
            )
        return len(before)

    def _stop(self, index: int) -> int:
        alone = self._render(self.messages[: index + 1])
        if self.text.startswith(alone):
            return len(alone)
        if tagged := self._tagged(index):
            return tagged[1]
        (_, after), (_, end) = (self._around(part, index) for part in (self.messages, self.messages[: index + 1]))
        if after is None or end is None or not self.text.endswith(after) or not after.startswith(end):
            raise ValueError(
                f"the chat template ends message {index} otherwise than a last answer, so that the end of it cannot be "
                "told. Its tags {% generation %} and {% endgeneration %} around an answer would tell"
            )
        return len(self.text) - len(after) + len(end)

    def _around(self, messages: Sequence[Message], index: int) -> tuple[str | None, str | None]:
        """The text before and behind the content of a message."""
        answer = {name: value for name, value in messages[index].items() if name not in REASONING}
        mark = _mark(0)
        text = self._render([*messages[:index], answer | {"content": mark}, *messages[index + 1 :]])
        before, found, after = text.partition(mark)
        return (before, after) if found and mark not in after else (None, None)

    def _tagged(self, index: int) -> tuple[int, int] | None:
        """Where {% generation %} and {% endgeneration %} put the message, if the template has them."""
        template = self.tokenizer.get_chat_template(tools=self.tools)
        if not _GENERATION.search(template):
            return None
        text = self._render(self.messages, chat_template=_GENERATION.sub(_as_mark, template))
        spans = list(_spans(text))
        answers = [number for number, message in enumerate(self.messages) if message["role"] == "assistant"]
        if text.replace(_OPEN, "").replace(_CLOSE, "") != self.text or len(spans) != len(answers):
            return None
        return spans[answers.index(index)]

    def _render(self, messages: Sequence[Message], tools: Any = None, **options: Any) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                list(messages), tools=tools or self.tools, tokenize=False, **options
            )
        except (jinja2.TemplateError, TypeError, AttributeError, LookupError) as error:
            raise ValueError(f"the chat template refuses the conversation: {error}") from error


def _as_mark(tag: re.Match[str]) -> str:
    """In place of a tag: a mark, between tags that take away the same whitespace."""
    left, closes, right = tag.groups()
    block, mark = ("endif", _CLOSE) if closes else ("if true", _OPEN)
    return f"{{%{left} {block} %}}{mark}{{% {block} {right}%}}"


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Where the marks stand, in the text without them."""
    marks = 0
    for found in re.finditer(f"{_OPEN}([^{_CLOSE}]*){_CLOSE}", text):
        start = found.start() - marks
        yield start, start + len(found[1])
        marks += 2


def _mark(number: int) -> str:
    return f"mark{number}mark"


def _marked(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None
) -> tuple[list[Message], list[Any] | None, dict[str, tuple[str, LeftOut]]]:
    """Messages and tools with a word of its own in place of each part; and what each word stands for."""
    messages, tools, marks = copy.deepcopy(list(messages)), copy.deepcopy(list(tools or ())), {}

    def mark(text: str, message: int | None, part: str) -> str:
        word = _mark(len(marks) + 1)
        marks[word] = (text, LeftOut(message, part))
        return word

    for number, message in enumerate(messages):
        for name in REASONING:
            if isinstance(message.get(name), str) and message[name].strip():
                message[name] = mark(message[name], number, name)
        if message["content"] is not None:
            thought, rest = _parted(message["content"])
            thought = mark(thought, number, THOUGHT) if thought.strip() else ""
            rest = mark(rest, number, "content") if rest.strip() else rest
            message["content"] = f"<think>\n{thought}\n</think>\n\n{rest}" if thought else rest
        for call in [*message.get("tool_calls", ()), *filter(None, [message.get("function_call")])]:
            function = call.get("function", call)
            if isinstance(function.get("name"), str):
                function["name"] = mark(function["name"], number, CALLS["tool_calls" not in message])
    for tool in tools:
        function = tool.get("function", tool)
        if isinstance(function.get("name"), str):
            function["name"] = mark(function["name"], None, f"tool {function['name']!r}")
    return messages, tools or None, marks


def _parted(content: str) -> tuple[str, str]:
    """The reasoning in <think> that a content begins with, and the rest."""
    found = _THOUGHT.fullmatch(content)
    return (found["thought"], found["rest"]) if found else ("", content)
