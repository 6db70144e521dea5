"""A hash that tells models and tokenizers apart, by which answers of an earlier run are known to be of the same model.

Of a model it covers the configuration, and of each parameter and buffer the name, the shape, the dtype and up to 64
values that are spread evenly over it. So it takes a moment even for 8 billion parameters, finds out that a model was
trained further (which changes nearly all values), and is the same for a copy of the folder, for another name of it, and
for an adapter that was merged or is applied. Files' names, times and hashes do not enter.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

_VALUES = 64
# entries of a configuration that say where a model comes from, or how it is run, rather than what it is
_NOT_THE_MODEL = ("_name_or_path", "transformers_version", "_attn_implementation", "attn_implementation", "use_cache")


def fingerprint(model: nn.Module, tokenizer: Any) -> str:
    """The hash of a model and its tokenizer, as 64 hexadecimal digits.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> fingerprint(*load_shipped()) == fingerprint(*load_shipped())
        True
    """
    found = hashlib.sha256()
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "to_dict"):
        fields = {name: value for name, value in config.to_dict().items() if name not in _NOT_THE_MODEL}
        found.update(json.dumps(fields, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            found.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
            found.update(_sample(tensor))
    found.update(_tokenizer(tokenizer).encode())
    return found.hexdigest()


def _sample(tensor: Tensor) -> bytes:
    """Values of a tensor, spread evenly over it; none of one without storage, whose values lie elsewhere."""
    if tensor.numel() == 0 or tensor.device.type == "meta":
        return b""
    flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach().flatten()
    positions = torch.linspace(0, len(flat) - 1, min(_VALUES, len(flat)), dtype=torch.float64).round().long()
    values = flat[positions.to(flat.device)].cpu()
    return values.contiguous().view(torch.uint8).numpy().tobytes()


def _tokenizer(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    special = [getattr(tokenizer, f"{name}_token_id", None) for name in ("mask", "bos", "eos", "pad", "eot")]
    return json.dumps([content, special])
