"""The mask token of a checkpoint whose config.json does not name it, and an embedding with a row for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn


def mask_token_at(find: Callable[[str], Path | None]) -> int | None:
    """The id of the mask token that the tokenizer's files name; None if they name none.

    Args:
        find: gives the path of a file of the checkpoint, None if it does not exist.

    Example:
        >>> mask_token_at(lambda name: None) is None
        True
    """
    settings = _content(find("tokenizer_config.json"))
    token = settings.get("mask_token") or _content(find("special_tokens_map.json")).get("mask_token")
    token = token.get("content") if isinstance(token, dict) else token
    if token is None:
        return None
    for number, entry in (settings.get("added_tokens_decoder") or {}).items():
        if entry.get("content") == token:
            return int(number)
    for entry in _content(find("tokenizer.json")).get("added_tokens") or []:
        if entry.get("content") == token:
            return int(entry["id"])
    return _content(find("added_tokens.json")).get(token)


def with_mask_row(model: nn.Module) -> nn.Module:
    """Enlarge the embedding and the head, in place, if the mask token's id is beyond them.

    New rows are the mean of the others, so that every process gets the same.

    Returns:
        The same model.
    """
    mask, rows = model.config.mask_token_id, model.config.vocab_size
    if mask is None or mask < rows:
        return model
    model.resize_token_embeddings(mask + 1, mean_resizing=False)
    with torch.no_grad():
        for weight in {id(w): w for w in _ends(model)}.values():
            weight[rows:] = weight[:rows].float().mean(0).to(weight.dtype)
    return model


def _ends(model: nn.Module) -> list[nn.Parameter]:
    return [model.get_input_embeddings().weight, model.get_output_embeddings().weight]


def _content(path: Path | None) -> dict[str, Any]:
    """The JSON object in a file; empty if there is no file.

    Raises:
        ValueError: it is damaged.
    """
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be JSON: {error}") from error
    return content if isinstance(content, dict) else {}
