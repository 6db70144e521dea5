"""Answer questions: a tokenizer's chat template around `dllm.fast.generate`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dllm.fast import Stats, generate
from dllm.values import check_unicode


def encode(tokenizer: object, questions: Sequence[str], room: int | None = None) -> tuple[Tensor, Tensor]:
    """The questions as prompts, int64 [B, P], left-padded, and their attention mask [B, P].

    Args:
        tokenizer: has a chat template.
        questions: B texts.
        room: maximum length of a prompt in tokens, template included; None: no limit.

    Raises:
        TypeError: a question is not a str.
        ValueError: no question, an empty one, or a prompt that is too long.
    """
    if isinstance(questions, str) or not all(isinstance(q, str) for q in questions):
        raise TypeError(f"expected a list of texts, got {questions!r}")
    for question in questions:
        check_unicode(question)
    if not questions:
        raise ValueError("expected at least one question, got none")
    if not all(question.strip() for question in questions):
        raise ValueError("expected a question, got an empty text")
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        for question in questions
    ]
    batch = tokenizer(texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
    longest = batch["input_ids"].shape[1]
    if room is not None and longest > room:
        raise ValueError(f"expected a prompt of at most {room} tokens, template included, got {longest}")
    return batch["input_ids"], batch["attention_mask"]


def answer(
    model: nn.Module, tokenizer: object, questions: Sequence[str], *, gen_length: int = 64, **options: object
) -> tuple[list[str], Stats]:
    """Answer questions in one batch; returns the B answers and the call's statistics.

    Args:
        model: a masked language model; its `config.max_position_embeddings` limits prompt and answer together.
        tokenizer: its tokenizer, with a chat template and a mask token.
        questions: B texts.
        gen_length: tokens to generate; an answer ends at the first EOS among them.
        **options: further options of `dllm.fast.generate`.

    Raises:
        TypeError, ValueError: an argument breaks a rule above or one of `generate`; raised before the model runs.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> replies, stats = answer(*load_shipped(), ["What is 6 * 7?"], steps=64, block_length=64)
        >>> replies
        ['6 * 7 = 42.']
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if gen_length < 1:
        raise ValueError(f"gen_length must be at least 1, got {gen_length}")
    if positions is not None and gen_length >= positions:
        raise ValueError(f"gen_length must be less than the model's {positions} positions, got {gen_length}")
    room = None if positions is None else positions - gen_length
    prompt, attention_mask = encode(tokenizer, questions, room)
    canvas, stats = generate(
        model,
        prompt.to(model.device),
        gen_length=gen_length,
        attention_mask=attention_mask.to(model.device),
        tokenizer=tokenizer,
        return_stats=True,
        **options,
    )
    return [decode(tokenizer, row) for row in canvas[:, prompt.shape[1] :].tolist()], stats


def decode(tokenizer: object, tokens: list[int]) -> str:
    """The text of an answer up to the first EOS."""
    end = tokenizer.eos_token_id
    kept = tokens[: tokens.index(end)] if end in tokens else tokens
    return tokenizer.decode(kept, skip_special_tokens=True).strip()
