"""Facts about a model of any class: its embedding, number of positions, mask token and settings."""

from __future__ import annotations

import logging
import os
import re
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from dllm_kernels import _checks

# Names of tables of positions, perhaps inside an adapter, and of modules whose positions do not end.
_TABLE = re.compile(r"(^|\.)((?!rel)\w*position(s|al)?(_embeddings?)?|wpe|pos_emb)(\.(base_layer|original_module))?$")
_ENDLESS = re.compile(r"[Rr]otary|RoPE|Rope|ALiBi|Alibi")
# Configuration entries of models whose positions do not end.
_SAYS_ENDLESS = ("rope_theta", "rope_parameters", "alibi", "relative_attention")
# What configurations call the number of positions.
_POSITIONS = ("max_position_embeddings", "max_sequence_length", "n_positions", "max_seq_len")

# The field of a saved configuration, and of a saved tokenizer's, that keeps the family: {"family": name, ...}.
MARKER = "masked_diffusion"

_log = logging.getLogger("dllm.fast")
_warned: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DDP, FSDP, DeepSpeed or torch.compile: the first that can name its LM head.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> unwrapped(layer) is layer
        True
    """
    inner = model
    while not callable(getattr(inner, "get_output_embeddings", None)):
        inside = getattr(inner, "_orig_mod", getattr(inner, "module", None))
        if not isinstance(inside, nn.Module):
            return model
        inner = inside
    return inner


def is_diffusion_gemma(model: nn.Module) -> bool:
    """Whether a model is DiffusionGemma, which denoises uniform noise and has no mask token."""
    inner = unwrapped(model)
    return getattr(getattr(inner, "config", None), "model_type", None) == "diffusion_gemma"


def input_embedding(model: nn.Module) -> Tensor:
    """The model's input embedding weight [V, H], or its output head's where it names no input embedding."""
    get = getattr(model, "get_input_embeddings", None)
    weight = _weight_of(get() if callable(get) else None)
    return _weight_of(model.get_output_embeddings()) if weight is None else weight


def _weight_of(module: nn.Module | None) -> Tensor | None:
    """A module's weight; a quantised one has it as a method."""
    weight = getattr(module, "weight", None)
    return weight() if callable(weight) else weight


def logits_of(output: object) -> Tensor:
    """The logits of a model's output: `.logits`, the first element of a tuple, or the tensor itself."""
    if isinstance(output, Tensor):
        return output
    return output.logits if hasattr(output, "logits") else output[0]


def position_limit(model: nn.Module) -> tuple[int | None, bool]:
    """How many positions a model has, None if unknown, and whether that is a hard limit.

    A table of positions is a hard limit. Rotary positions and ALiBi have none: there the number is the configuration's,
    for which the model was trained. For a model with neither, the configuration's number counts as a hard limit.
    RoBERTa-like tables begin with rows that are never used.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and _TABLE.search(name):
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - max(unused, getattr(module, "offset", 0)), True
    config = getattr(model, "config", None)
    count = next((value for name in _POSITIONS if isinstance(value := getattr(config, name, None), int)), None)
    endless = any(getattr(config, name, None) for name in _SAYS_ENDLESS)
    endless = endless or any(_ENDLESS.search(type(module).__name__) for module in model.modules())
    return count, count is not None and not endless


def check_positions(model: nn.Module, columns: int, rule: str, where: str = "") -> None:
    """Check that rows of so many columns fit the model and its device; where they are only longer than what it was
    trained for, that is logged, once per model.

    Args:
        rule, where: what must fit, "every row must fit", and where that many columns are, for the error.

    Raises:
        ValueError: the model has fewer positions. Or its positions go on, and the hidden states of one row, which each
            layer computes, are larger than all memory of the device.
    """
    positions, ends = position_limit(model)
    if positions is not None and ends and columns > positions:
        raise ValueError(f"{rule} the model's {positions} positions, got {columns}{where}")
    needed, memory = columns * _hidden_bytes(model), _memory_beside(model)
    if memory is not None and needed > memory:
        raise ValueError(
            f"{rule} the device's memory of {memory / 2**30:.4g} GiB, got {columns} tokens{where}, whose hidden states "
            f"alone take {needed / 2**30:.4g} GiB"
        )
    if positions is None or columns <= positions:
        return
    if model not in _warned:
        _warned.add(model)
        _log.warning(
            "rows of %d tokens are longer than the %d that %s was made for: its positions go on, its answers may not",
            columns,
            positions,
            type(model).__name__,
        )


def _hidden_bytes(model: nn.Module) -> int:
    """Bytes of one token's hidden state, at least; 0 if the configuration does not say how wide it is."""
    config, weight = getattr(unwrapped(model), "config", None), next(model.parameters(), None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    width = getattr(config, "hidden_size", None)
    return width * weight.element_size() if isinstance(width, int) and weight is not None else 0


def _memory_beside(model: nn.Module) -> int | None:
    """All memory of the device that has the model, in bytes; None if that is not known."""
    device = next((weight.device for weight in model.parameters()), None)
    if device is None or device.type not in ("cpu", "cuda"):
        return None
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on every system
        return None


def find_mask_id(model: nn.Module, mask_id: int | None, tokenizer: object | None) -> int:
    """The mask token: `mask_id`, else the tokenizer's, else the model config's, else that of the tokenizer at
    `model.name_or_path`.

    Raises:
        TypeError: it is no integer.
        ValueError: none of these knows one; or the model is DiffusionGemma, which has none whatever its tokenizer says.
    """
    if is_diffusion_gemma(model):
        raise ValueError(
            f"a {type(model).__name__} has no mask token, so what fills masks cannot run it: "
            "dllm.core.samplers.DiffusionGemmaSampler, or dllm.fast.patch(model) and its own generate"
        )
    if mask_id is not None:
        return _checks.int64("mask_id", mask_id)
    if tokenizer is not None:
        found = getattr(tokenizer, "mask_token_id", None)
        if found is None:
            raise ValueError(f"the tokenizer ({type(tokenizer).__name__}) has no mask token; pass mask_id=")
        return _checks.int64("mask_token_id", found)
    found = getattr(getattr(model, "config", None), "mask_token_id", None)
    if found is None:
        found = _mask_id_at(getattr(model, "name_or_path", "") or "")
    if found is None:
        raise ValueError(
            "no mask token is known: pass mask_id= or tokenizer= "
            "(the model's config has no mask_token_id and no tokenizer with one lies at model.name_or_path)"
        )
    return _checks.int64("mask_token_id", found)


def right_shift_of(model: nn.Module) -> bool | None:
    """Whether the logits for position p are those at p - 1, by the model's configuration; None if it does not say."""
    return _marker(model).get("right_shift")


def block_size_of(model: nn.Module) -> int | None:
    """The size of the blocks that a model attends by, by its configuration; None if it does not say, as of models that
    attend to the whole row."""
    return _marker(model).get("block_size")


def family_of(model: nn.Module) -> str | None:
    """The name of a model's family, by its configuration; None if it does not say."""
    return _marker(model).get("family")


def _marker(model: nn.Module) -> dict:
    """What the configuration says of masked diffusion; empty if it says nothing."""
    marker = getattr(getattr(model, "config", None), MARKER, None)
    return marker if isinstance(marker, dict) else {}


def configuration(model: nn.Module) -> str:
    """A model's configuration as text."""
    config = getattr(model, "config", None)
    return config.to_json_string() if hasattr(config, "to_json_string") else repr(config)


def checkpoints_activations(model: nn.Module) -> bool:
    """Whether layers compute their activations twice: those of transformers then drop `past_key_values`, with a
    line in the log."""
    return any(module.training and getattr(module, "gradient_checkpointing", False) for module in model.modules())


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode (no dropout, so no random number is drawn), then each as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _mask_id_at(name_or_path: str) -> int | None:
    """The mask token of the tokenizer at a name or path. The only function of dllm.fast that loads transformers, and
    only if the mask token is not known otherwise."""
    folder = Path(name_or_path)
    if not name_or_path or (folder.is_dir() and not any(folder.glob("tokenizer*")) and not any(folder.glob("vocab*"))):
        return None  # for a folder without a tokenizer transformers 5 makes up an empty one, with a mask token
    try:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(name_or_path).mask_token_id
    except (ImportError, OSError, ValueError, KeyError):
        return None
