"""A conversation rendered by a chat template: its text, the span of each answer, and the parts that are left out."""

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
# private-use characters that mark the tags {% generation %} and {% endgeneration %} in a rendered text
_OPEN, _CLOSE = "\ue0f0", "\ue0f1"


class LeftOut(NamedTuple):
    """A part of the conversation that the template does not render. `message` is its index, None for a tool."""

    message: int | None
    part: str

    @property
    def is_reasoning(self) -> bool:
        """Whether the part is reasoning, which many templates render for the last answer only."""
        return self.part in (*REASONING, THOUGHT)


@dataclass(frozen=True)
class Rendering:
    """A conversation and its rendering by the tokenizer's chat template.

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
        """Create a rendering whose None contents suit the template: they become empty texts if the template fails on
        None or writes it as a word."""
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
        """The text of the whole conversation."""
        return self._render(self.messages)

    def span(self, index: int) -> tuple[int, int]:
        """The span [start, stop) of the assistant's message `index` in the text, including the end of its turn.

        Start: the length of the prompt, which is the rendering of the messages before it with the generation prompt, if
        the text begins with it. Otherwise the {% generation %} tags of the template, if there are any. Otherwise the
        first character that depends on the content, if the text before it is part of the prompt.
        Stop: the end of the text for the last message; for an earlier one, where the rendering that ends with it ends.

        Raises:
            ValueError: none of these rules applies, so the learnt text could differ from what the prompt asks for.
        """
        head = self._render(self.messages[:index], add_generation_prompt=True) if index else None
        if head is not None and self.text.startswith(head):
            start = len(head)
        elif tagged := self._tagged_span(index):
            return tagged
        else:
            start = self._start(index, head)
        if index == len(self.messages) - 1:
            return start, len(self.text)
        return start, self._stop(index)

    def left_out(self) -> list[LeftOut]:
        """The contents, reasoning, tool calls and tools that the template does not render.

        Each part is replaced by a unique word, which must then occur in the rendered text.
        """
        messages, tools, marks = _with_placeholders(self.messages, self.tools)
        try:
            text = self._render(messages, tools=tools)
        except ValueError:  # the template depends on the values: look for the original parts
            return [part for original, part in marks.values() if original.strip() not in self.text]
        return [part for mark, (_, part) in marks.items() if mark not in text]

    def _start(self, index: int, head: str | None) -> int:
        before, _ = self._around_content(self.messages, index)
        if before is None or not self.text.startswith(before) or not (head is None or head.startswith(before)):
            raise ValueError(
                f"the chat template writes the messages before message {index} otherwise than in the prompt for that "
                "answer, so prompt and answer cannot be separated; add the tags {% generation %} and "
                "{% endgeneration %} around answers to the template"
            )
        return len(before)

    def _stop(self, index: int) -> int:
        alone = self._render(self.messages[: index + 1])
        if self.text.startswith(alone):
            return len(alone)
        if tagged := self._tagged_span(index):
            return tagged[1]
        (_, after), (_, end) = (
            self._around_content(part, index) for part in (self.messages, self.messages[: index + 1])
        )
        if after is None or end is None or not self.text.endswith(after) or not after.startswith(end):
            raise ValueError(
                f"the chat template ends message {index} otherwise than a last answer, so its end cannot be located; "
                "add the tags {% generation %} and {% endgeneration %} around answers to the template"
            )
        return len(self.text) - len(after) + len(end)

    def _around_content(self, messages: Sequence[Message], index: int) -> tuple[str | None, str | None]:
        """The text before and after the content of a message."""
        answer = {name: value for name, value in messages[index].items() if name not in REASONING}
        mark = _placeholder(0)
        text = self._render([*messages[:index], answer | {"content": mark}, *messages[index + 1 :]])
        before, found, after = text.partition(mark)
        return (before, after) if found and mark not in after else (None, None)

    def _tagged_span(self, index: int) -> tuple[int, int] | None:
        """The span that {% generation %} and {% endgeneration %} mark for the message, if it has these tags."""
        template = self.tokenizer.get_chat_template(tools=self.tools)
        if not _GENERATION.search(template):
            return None
        text = self._render(self.messages, chat_template=_GENERATION.sub(_marker_for, template))
        spans = list(_marked_spans(text))
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


def _marker_for(tag: re.Match[str]) -> str:
    """The replacement of a tag: a marker between tags with the same control of whitespace."""
    left, closes, right = tag.groups()
    block, mark = ("endif", _CLOSE) if closes else ("if true", _OPEN)
    return f"{{%{left} {block} %}}{mark}{{% {block} {right}%}}"


def _marked_spans(text: str) -> Iterator[tuple[int, int]]:
    """The spans between markers, as positions in the text without markers."""
    marks = 0
    for found in re.finditer(f"{_OPEN}([^{_CLOSE}]*){_CLOSE}", text):
        start = found.start() - marks
        yield start, start + len(found[1])
        marks += 2


def _placeholder(number: int) -> str:
    return f"mark{number}mark"


def _with_placeholders(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None
) -> tuple[list[Message], list[Any] | None, dict[str, tuple[str, LeftOut]]]:
    """Messages and tools in which each part is replaced by a unique word, and the part that each word stands for."""
    messages, tools, marks = copy.deepcopy(list(messages)), copy.deepcopy(list(tools or ())), {}

    def mark(text: str, message: int | None, part: str) -> str:
        word = _placeholder(len(marks) + 1)
        marks[word] = (text, LeftOut(message, part))
        return word

    for number, message in enumerate(messages):
        for name in REASONING:
            if isinstance(message.get(name), str) and message[name].strip():
                message[name] = mark(message[name], number, name)
        if message["content"] is not None:
            thought, rest = _split_reasoning(message["content"])
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


def _split_reasoning(content: str) -> tuple[str, str]:
    """Split a content into the reasoning in <think> at its beginning and the rest."""
    found = _THOUGHT.fullmatch(content)
    return (found["thought"], found["rest"]) if found else ("", content)
