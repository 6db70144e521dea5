"""Whole folders of small official checkpoints: the weights of `toys` with the tokenizer of `official_tokenizers`."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests import official_tokenizers
from tests.families.toys import config_of, random_like, tensors_of

TOKENIZERS = {"lladamoe": "llada_moe", "a2d-qwen3": "a2d"}  # of checkpoints whose tokenizer has another name
ENDS = ("wte.weight", "transformer.ff_out.weight", "embed_tokens.weight", "word_embeddings.weight", "lm_head.weight")


def write(folder: Path, name: str) -> str:
    """Write the checkpoint with a tokenizer, its embedding and head enlarged to the tokenizer's rows."""
    rows = official_tokenizers.ROWS
    fields = {key: value for key, value in config_of(name).items() if not key.endswith("_token_id")}
    fields |= {key: rows for key in ("vocab_size", "embedding_size") if key in fields}
    official_tokenizers.write(TOKENIZERS.get(name, name), folder, **fields)
    tensors = tensors_of(name)
    for key in [key for key in tensors if key.endswith(ENDS)]:
        count, width = tensors[key].shape
        tensors[key] = torch.cat([tensors[key], random_like({"more": (rows - count, width)})["more"]])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def content(folder: str) -> dict:
    """The content of config.json."""
    return json.loads((Path(folder) / "config.json").read_text())
