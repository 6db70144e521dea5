"""From the texts of requests to token ids: special tokens around them, the border of context and target, lengths.

A target's tokens are those of context and target together, without as many as the context alone has. White space at the
end of the context belongs to the target. Both are the rules of lm-evaluation-harness.

Which special tokens stand around a text:

========================  ==========================================
LLaDA, A2D, RND1          context target
Dream                     context target EOS; EOS is seen, never masked
BERT                      [CLS] context target [SEP]; [CLS] prompt
Llama's tokenizer         BOS context target
========================  ==========================================

A context that a chat template has written has its special tokens already, so none but Dream's EOS are added. An encoder
that was tuned on chats has seen them without [CLS] and [SEP].

dLLM 0.1 framed BERT's texts wrongly: the context was encoded with its own [SEP], and context and target together were
cut after as many tokens as that. So the target lost its first token, a target of one token was [SEP] for every choice,
and the context ended in [SEP]. Its published MMLU, C-Eval and CMMLU of BERT-chat, 25 to 30 %, come from that.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2

_log = logging.getLogger("dllm.eval")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Pair(NamedTuple):
    """Context, target, and what stands behind the target, as token ids."""

    context: list[int]
    target: list[int]
    after: list[int]


class Framing:
    """Encodes the texts of requests for one model.

    Args:
        tokenizer: of the model.
        mask_id: no text may have this token; None of models without masks.
        limit: tokens of a row, at most.
        ends_with_eos: EOS stands behind targets, as in Dream's likelihood.
        add_bos_token, add_special_tokens, too_long: as in :class:`dllm.core.eval.config.EvalConfig`.
        needs_first: the first token of a row cannot be predicted, as under a right shift; an empty context is then BOS.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> tokenizer = load_shipped()[1]
        >>> framing = Framing(tokenizer, tokenizer.mask_token_id, 64)
        >>> context, target, after = framing.pair("6 * 7 = ", "42")
        >>> tokenizer.decode(target).strip()
        '42'
    """

    def __init__(
        self,
        tokenizer: Any,
        mask_id: int | None,
        limit: int,
        *,
        ends_with_eos: bool = False,
        add_bos_token: bool = False,
        add_special_tokens: bool | None = None,
        too_long: str = "error",
        needs_first: bool = False,
    ):
        self.tokenizer, self.mask_id, self.limit = tokenizer, mask_id, limit
        self.add_special_tokens, self.too_long = add_special_tokens, too_long
        self.before, self.behind = _special_tokens(tokenizer)
        self.after = [tokenizer.eos_token_id] if ends_with_eos else []
        self.bos = [tokenizer.bos_token_id] if add_bos_token else []
        self.first = [tokenizer.bos_token_id] if needs_first and not self.before else []
        self.openings = _openings(tokenizer)
        self.cut = 0

    def pair(self, context: str, target: str) -> Pair:
        """The tokens of a context and of a target.

        Raises:
            ValueError: the target has no token; a text holds the mask token; all is longer than the limit, unless the
                context may be cut.
        """
        if not target:
            raise ValueError("a target must have at least one token, got an empty text")
        text = context.rstrip()
        whole = self._tokens(context + target)
        head = min(len(self._tokens(text)), len(whole) - 1)
        if head < 0:
            raise ValueError(f"a target must have at least one token, got {target!r}")
        before, behind = self._frame(context)
        after = self.after or behind
        tokens = whole[:head]
        if not before and not tokens:
            before = self.first
        kept = self._shortened(tokens, len(before) + len(whole) - head + len(after), "context and target")
        return Pair([*before, *kept], whole[head:], after)

    def prompt(self, text: str, new_tokens: int) -> list[int]:
        """The tokens of a prompt that leaves room for an answer.

        Raises:
            ValueError: the prompt holds the mask token, or prompt and answer are longer than the limit, unless the
                prompt may be cut.
        """
        before, _ = self._frame(text)
        return [*before, *self._shortened(self._tokens(text), len(before) + new_tokens, "prompt and answer")]

    def document(self, text: str) -> tuple[list[int], list[int]]:
        """The tokens that stand before each window of a text, and those of the text.

        Raises:
            ValueError: the text has no token, or holds the mask token.
        """
        tokens = self._tokens(text)
        if not tokens:
            raise ValueError("a text whose likelihood is asked for must have at least one token, got an empty one")
        before, _ = self._frame(text)
        if not before and (self.first or self.after):
            before = [self.tokenizer.bos_token_id]
        return before, tokens

    def _tokens(self, text: str) -> list[int]:
        if not text.isascii() and (alone := _SURROGATE.search(text)):
            raise ValueError(f"a text must be Unicode, got half of a surrogate pair, {alone[0]!r}")
        tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if self.mask_id in tokens:
            raise ValueError(
                f"a text must not hold the mask token {self.tokenizer.mask_token!r}, got it in ...{text[-60:]!r}"
            )
        return list(tokens)

    def _frame(self, text: str) -> tuple[list[int], list[int]]:
        """The special tokens before a text and behind it."""
        wanted = self.add_special_tokens
        if wanted is None:
            wanted = not any(text.startswith(opening) for opening in self.openings)
        before, behind = (self.before, self.behind) if wanted else ([], [])
        if self.bos and before[:1] != self.bos and not text.startswith(self.tokenizer.bos_token):
            before = [*self.bos, *before]
        return before, behind

    def _shortened(self, tokens: list[int], others: int, what: str) -> list[int]:
        """The tokens, without as many on the left as are too much beside the others."""
        surplus = len(tokens) + others - self.limit
        if surplus <= 0:
            return tokens
        if self.too_long != "cut" or surplus > len(tokens):
            raise ValueError(
                f"{what} must have at most {self.limit} tokens, got {len(tokens) + others}; "
                'too_long="cut" cuts prompts on their left'
            )
        if not self.cut:
            _log.warning("prompts that are longer than %d tokens are cut on their left", self.limit)
        self.cut += 1
        return tokens[surplus:]


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before a text and behind it."""
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    framed = list(tokenizer("a")["input_ids"])
    starts = [n for n in range(len(framed) - len(plain) + 1) if framed[n : n + len(plain)] == plain]
    return (framed[: starts[0]], framed[starts[0] + len(plain) :]) if starts else ([], [])


def _openings(tokenizer: Any) -> list[str]:
    """The texts that begin a conversation in the tokenizer's chat template: with a system message and without."""
    if not getattr(tokenizer, "chat_template", None):
        return []
    probe, found = "\N{SNOWMAN}", []
    conversations: list[Sequence[dict[str, str]]] = [
        [{"role": "user", "content": probe}],
        [{"role": "system", "content": probe}, {"role": "user", "content": "?"}],
    ]
    for messages in conversations:
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except (jinja2.TemplateError, TypeError, ValueError):
            continue  # a template without system messages
        opening = text.partition(probe)[0]
        if opening.strip():
            found.append(opening)
    return found
