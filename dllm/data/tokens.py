"""Tokenizing text into samples of one length, for pre-training."""

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
    """Tokenize texts, concatenate them, and cut them into samples of `seq_length` tokens.

    To be mapped over a data set in batches, streaming or not. Each batch is cut separately and has its own tail:

        group = functools.partial(tokenize_and_group, tokenizer=tokenizer)
        dataset.map(group, batched=True, remove_columns=dataset["train"].column_names)

    A token attends to its whole sample, including parts of other texts, as is usual in pre-training;
    :mod:`dllm.data.packing` separates texts.

    Text that spells the mask token is encoded as ordinary text, because nothing can be learnt at a mask. Other special
    tokens in a text, such as EOS between documents, are encoded as special tokens.

    Args:
        examples: a batch of rows, by column.
        tokenizer: its maximum length is ignored.
        text_field: column of the texts, in any case; for the default also content and raw_content are tried
            (:func:`~dllm.data.formats.text_column`).
        seq_length: tokens per sample.
        insert_eos: append EOS to every text that does not end with it.
        drop_tail: leave out the last tokens if they are fewer than `seq_length`; otherwise they are the last sample.
        add_special_tokens: add the tokenizer's special tokens around every text ([CLS] and [SEP] for BERT).

    Returns:
        `input_ids`, and `labels` with the same values.

    Raises:
        ValueError: no such column, a value that is not text, `seq_length` below 1, or no EOS token to insert.

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
        found = [_with_eos(tokens, tokenizer.eos_token_id) for tokens in found]
    tokens = list(itertools.chain.from_iterable(found))
    end = len(tokens) - len(tokens) % seq_length if drop_tail else len(tokens)
    samples = [tokens[start : start + seq_length] for start in range(0, end, seq_length)]
    return {"input_ids": samples, "labels": [list(sample) for sample in samples]}


def prepend_bos(batch: Mapping[str, Any], bos_token_id: int, label_pad_token_id: int = IGNORE) -> dict[str, Any]:
    """Prepend a BOS token to each row of a batch. It is attended to and never learnt.

    Args:
        batch: `input_ids` int64 [B, L] and optionally `labels`, `attention_mask`, `token_type_ids` and `position_ids`
            of the same shape, padded on the right.
        bos_token_id: id of the token.
        label_pad_token_id: label of the token.

    Returns:
        The batch; the entries above have the shape [B, L + 1].

    Raises:
        TypeError: `bos_token_id` is not an integer.
        ValueError: padding on the left, or an attention mask or labels of another shape.

    Example:
        >>> batch = {"input_ids": torch.tensor([[5, 6]]), "labels": torch.tensor([[5, 6]])}
        >>> prepend_bos(batch, bos_token_id=1)
        {'input_ids': tensor([[1, 5, 6]]), 'labels': tensor([[-100,    5,    6]])}
    """
    if not isinstance(bos_token_id, int):
        raise TypeError(f"bos_token_id must be a token id, got {bos_token_id!r}: does the tokenizer have one?")
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
            batch[name] = _prepend(batch[name], value)
    if "position_ids" in batch:
        batch["position_ids"] = torch.cat([batch["position_ids"][:, :1], batch["position_ids"] + 1], dim=1)
    return batch


def _prepend(rows: Tensor, value: int) -> Tensor:
    return torch.cat([rows.new_full((len(rows), 1), value), rows], dim=1)


def _with_eos(tokens: list[int], end: int) -> list[int]:
    return tokens if tokens and tokens[-1] == end else [*tokens, end]
