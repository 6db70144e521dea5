"""Small official checkpoints with the tokenizers of their families, complete as they are published."""

from __future__ import annotations

from pathlib import Path

import torch

from tests import official_tokenizers
from tests.families import toys

EMBEDDINGS = (
    "wte.weight",
    "embed_tokens.weight",
    "transformer.ff_out.weight",
    "lm_head.weight",
    "word_embeddings.weight",
)
# the checkpoint and the tokenizer of each family
PARTS = {
    "llada": ("llada", "llada"),
    "llada_moe": ("lladamoe", "llada_moe"),
    "dream": ("dream", "dream"),
    "rnd1": ("rnd1", "rnd1"),
    "llada2": ("llada2", "llada2"),
    "a2d": ("a2d-qwen3", "a2d"),
}


def write(family: str, folder: Path) -> Path:
    """Write the family's checkpoint, its embedding enlarged to the rows that its tokenizer needs."""
    checkpoint, tokenizer = PARTS[family]
    official = official_tokenizers.OFFICIAL[tokenizer].config
    kept = {name: value for name, value in toys.config_of(checkpoint).items() if name not in official}
    kept |= {"mask_token_id": official_tokenizers.token_id(tokenizer, "<|mask|>")} if family == "llada_moe" else {}
    official_tokenizers.write(tokenizer, folder, **kept)
    rows, tensors = official_tokenizers.ROWS, toys.tensors_of(checkpoint)
    for name in [name for name in tensors if name.endswith(EMBEDDINGS)]:
        tensors[name] = torch.cat([tensors[name], tensors[name]])[:rows].clone()
    toys.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
