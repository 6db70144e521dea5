"""Running text as samples of token ids, all of one length."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dllm.data.chat import IGNORE
from dllm.data.encoding import encode_texts
from dllm.data.formats import text_column


def tokenize_and_group(
    examples: Mapping[str, Sequence[str]],
    tokenizer: Any,
    text_field: str = "text",
    seq_length: int = 1024,
    insert_eos: bool = False,
    drop_tail: bool = True,
    add_special_tokens: bool = False,
) -> dict[str, list[list[int]]]:
    """Texts as one row of tokens after another, cut into samples of `seq_length`: what pre-training reads.

    To be mapped over a data set in batches, streaming or not; each batch is cut for itself, and has a tail of its own:

        group = functools.partial(tokenize_and_group, tokenizer=tokenizer)
        dataset.map(group, batched=True, remove_columns=dataset["train"].column_names)

    A token attends to all others of its sample, to those of another text too, as in the pre-training of BERT's and
    LLaDA's successors; :mod:`dllm.data.packing` keeps texts apart.

    Text that spells the mask token is encoded as ordinary text: there is nothing to learn at a mask. Other special
    tokens that a text spells out, such as an end of sequence between documents, are those tokens.

    Args:
        examples: a batch of rows, by column.
        tokenizer: without a limit of its own: what a model cannot take in is cut here.
        text_field: the column of the texts; Text for text too, and where there is no such column, for the default,
            content or raw_content (:func:`~dllm.data.formats.text_column`).
        seq_length: tokens of a sample.
        insert_eos: end every text with the tokenizer's end of sequence, unless it has it already.
        drop_tail: leave out what is shorter than `seq_length` at the end; else it becomes the last sample.
        add_special_tokens: let the tokenizer put its own around every text ([CLS] and [SEP], for BERT).

    Returns:
        `input_ids` and `labels`, which are the same.

    Raises:
        ValueError: no such column, a text that is none, a length below 1, no end of sequence to insert.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> found = tokenize_and_group({"text": ["1 + 2 = 3", "7"]}, load_shipped()[1], seq_length=4)
        >>> [len(sample) for sample in found["input_ids"]], found["labels"] == found["input_ids"]
        ([4], True)
    """
    column = text_column(examples, text_field)
    if column is None:
        raise ValueError(f"rows must have the column {text_field!r}, got {', '.join(examples)}")
    if seq_length < 1:
        raise ValueError(f"seq_length must be at least 1, got {seq_length}")
    if insert_eos and tokenizer.eos_token_id is None:
        raise ValueError("insert_eos needs a tokenizer with an end of sequence, got one without")
    texts = list(examples[column])
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"{column} must be text, got {text!r}")
    found = encode_texts(texts, tokenizer, add_special_tokens)
    if insert_eos:
        found = [_ended(tokens, tokenizer.eos_token_id) for tokens in found]
    tokens = list(itertools.chain.from_iterable(found))
    end = len(tokens) - len(tokens) % seq_length if drop_tail else len(tokens)
    samples = [tokens[start : start + seq_length] for start in range(0, end, seq_length)]
    return {"input_ids": samples, "labels": [list(sample) for sample in samples]}


def prepend_bos(batch: Mapping[str, Any], bos_token_id: int, label_pad_token_id: int = IGNORE) -> dict[str, Any]:
    """A batch with one more token at the beginning of each row, which is attended to and never learnt.

    Args:
        batch: `input_ids` int64 [B, L] and perhaps `labels`, `attention_mask`, `token_type_ids` and `position_ids` of
            the same shape, padded on the right.
        bos_token_id: the token.
        label_pad_token_id: its label.

    Returns:
        The batch, those entries with [B, L + 1].

    Raises:
        TypeError: no token to put there.
        ValueError: padding on the left, or an attention mask or labels of another shape.

    Example:
        >>> batch = {"input_ids": torch.tensor([[5, 6]]), "labels": torch.tensor([[5, 6]])}
        >>> prepend_bos(batch, bos_token_id=1)
        {'input_ids': tensor([[1, 5, 6]]), 'labels': tensor([[-100,    5,    6]])}
    """
    if not isinstance(bos_token_id, int):
        raise TypeError(f"bos_token_id must be a token id, got {bos_token_id!r}: the tokenizer has none?")
    shape = batch["input_ids"].shape
    first = {"input_ids": bos_token_id, "labels": label_pad_token_id, "attention_mask": 1, "token_type_ids": 0}
    batch = dict(batch)
    for name in ("labels", "attention_mask", "token_type_ids", "position_ids"):
        if name in batch and batch[name].shape != shape:
            raise ValueError(f"{name} must have the shape of input_ids {list(shape)}, got {list(batch[name].shape)}")
    if "attention_mask" in batch and bool((batch["attention_mask"][:, :1] == 0).any()):
        raise ValueError("attention_mask must be right padding, got a row that begins with padding")
    for name, value in first.items():
        if name in batch:
            batch[name] = _with_first(batch[name], value)
    if "position_ids" in batch:
        batch["position_ids"] = torch.cat([batch["position_ids"][:, :1], batch["position_ids"] + 1], dim=1)
    return batch


def _with_first(rows: Tensor, value: int) -> Tensor:
    return torch.cat([rows.new_full((len(rows), 1), value), rows], dim=1)


def _ended(tokens: list[int], end: int) -> list[int]:
    return tokens if tokens and tokens[-1] == end else [*tokens, end]
