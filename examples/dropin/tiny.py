"""What the scripts beside this one start from: a tiny random model and text, or `--model PATH` and a real text."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM, PreTrainedModel

MASK_ID, FIRST_WORD, WORDS = 3, 5, 500
TEXT = "Six friends share a row boat. Each of them rows for four minutes, and then they rest and drink their tea. "


def arguments(header: str, argv: Sequence[str] | None) -> argparse.Namespace:
    """--model, --steps."""
    parser = argparse.ArgumentParser(description=header.splitlines()[0])
    parser.add_argument("--model", help="a masked language model's folder or name; a tiny random one without")
    parser.add_argument("--steps", type=int, default=8)
    return parser.parse_args(argv)


def model_and_tokens(path: str | None) -> tuple[PreTrainedModel, Tensor, int]:
    """A model in training mode, int64 [8, 32] token ids and the id of the mask token."""
    torch.manual_seed(0)
    if path is None:
        sizes = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
        model = BertForMaskedLM(BertConfig(vocab_size=FIRST_WORD + WORDS, max_position_embeddings=64, **sizes))
        return model.train(), torch.randint(FIRST_WORD, FIRST_WORD + WORDS, (8, 32)), MASK_ID
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    ids = tokenizer(TEXT * 20, add_special_tokens=False, return_tensors="pt").input_ids[0]
    return model.train(), ids[: 8 * 32].view(8, 32), tokenizer.mask_token_id
