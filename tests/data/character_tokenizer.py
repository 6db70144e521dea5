"""A tokenizer of one token a character, and chat templates in the manner of published ones."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models

MASK, END = "<mask>", "<end>"
# The prompt and the answer of every turn are in their places, whatever comes later.
PLAIN = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)
# Qwen3: reasoning of the last answer alone is written, and an answer without any has an empty place for it; tools.
THINKING = """\
{%- if tools %}{% for tool in tools %}t:{{ tool.function.name }}<end>{% endfor %}{% endif %}
{%- for m in messages %}
{%- set content = m.content %}
{%- set thought = m.reasoning_content or '' %}
{%- if '</think>' in content %}
{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip() %}
{%- set content = content.split('</think>')[-1].lstrip() %}
{%- endif %}
{{- m.role[0] }}:{% if m.role == 'assistant' and loop.last %}<think>{{ thought }}</think>{% endif %}{{ content }}
{%- for call in m.tool_calls or [] %}[{{ call.function.name }} {{ call.function.arguments | tojson }}]{% endfor %}
{{- '<end>' }}
{%- endfor %}
{%- if add_generation_prompt %}a:{% endif %}"""
# DeepSeek-R1: a new answer begins with a tag that no answer in a conversation has.
OPENED = PLAIN.replace("a:{% endif", "a:<think>{% endif")
# Where messages stand depends on what comes after them.
COUNTING = "{{ messages | length }} messages:" + PLAIN
TAGGED = (
    "{{ messages | length }} messages:{% for m in messages %}{{ m.role[0] }}:"
    "{% if m.role == 'assistant' %}{%- generation -%} {{ m.content }}<end>{%- endgeneration -%}\n"
    "{% else %}{{ m.content }}<end>{% endif %}{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)
# The end of a conversation has a token of its own.
ENDING = PLAIN.replace("<end>{% endfor", "{% if loop.last and m.role[0] == 'a' %}<end>{% endif %}{% endfor")


def letters(template: str = PLAIN, merges: Sequence[tuple[str, str]] = ()) -> transformers.PreTrainedTokenizerFast:
    """A fast tokenizer: a token for each printable character, and for each pair in `merges`."""
    words = [*string.printable, *("".join(pair) for pair in merges)]
    backend = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=list(merges)))
    backend.decoder = decoders.Fuse()
    special = dict(mask_token=MASK, eos_token=END, pad_token=END)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=template, clean_up_tokenization_spaces=False, **special
    )


class SlowLetters(transformers.PreTrainedTokenizer):
    """A slow tokenizer, which does not tell which characters a token stands for; "ab" is one token."""

    def __init__(self, **options: Any):
        self.words = [*string.printable, "ab"]
        super().__init__(**options)

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    def get_vocab(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)} | self.added_tokens_encoder

    def _tokenize(self, text: str, **options: Any) -> list[str]:
        return list(text.replace("ab", "\0")) and [c if c != "\0" else "ab" for c in text.replace("ab", "\0")]

    def _convert_token_to_id(self, token: str) -> int:
        return self.words.index(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.words[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)


def slow_letters(template: str = PLAIN) -> SlowLetters:
    """The same, slow."""
    return SlowLetters(chat_template=template, mask_token=MASK, eos_token=END, pad_token=END)


def user(text: str, **more: Any) -> dict[str, Any]:
    """A message."""
    return {"role": "user", "content": text, **more}


def assistant(text: Any, **more: Any) -> dict[str, Any]:
    """An answer."""
    return {"role": "assistant", "content": text, **more}


def learnt(sample: Mapping[str, Any], tokenizer: Any) -> list[str]:
    """The texts of a sample that have labels, one for each stretch of them."""
    texts, stretch = [], []
    for token, label in [*zip(sample["input_ids"], sample["labels"], strict=True), (None, -100)]:
        if label != -100:
            assert label == token
            stretch.append(token)
        elif stretch:
            texts.append(tokenizer.decode(stretch))
            stretch = []
    return texts
