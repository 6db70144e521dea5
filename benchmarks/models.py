"""Models to measure: presets, which are known shapes with random seeded weights, or a local folder.

Speed does not depend on the weights, so a shape is enough and nothing is downloaded. transformers has no LLaDA or Dream
classes: they are measured as Llama and Qwen2 of the same shape with bidirectional attention. A model is built on its
device in its dtype, after a check that it fits.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import nn

from benchmarks import machine
from dllm.configs import ModelArguments
from dllm.models import get_config, get_model, get_tokenizer, new_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class NotEnoughMemoryError(MemoryError):
    """A model and the loop's temporaries do not fit; the message states bytes needed and bytes free."""


@dataclass(frozen=True, slots=True)
class Preset:
    """A shape: the transformers classes that build it, their settings, and its mask token."""

    model_class: str
    config_class: str
    mask_id: int
    settings: dict[str, object]


def _small_modernbert(hidden_size: int, layers: int) -> Preset:
    """ModernBERT's architecture at the width and depth of a small BERT, with the tokens of BERT."""
    settings = {
        "vocab_size": 30522,
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden_size // 64,
        "intermediate_size": hidden_size * 3 // 2,
        "pad_token_id": 0,
        "bos_token_id": 101,
        "cls_token_id": 101,
        "eos_token_id": 102,
        "sep_token_id": 102,
    }
    return Preset("ModernBertForMaskedLM", "ModernBertConfig", mask_id=103, settings=settings)


PRESETS = {
    "minilm": Preset(
        "BertForMaskedLM",
        "BertConfig",
        mask_id=103,
        settings={
            "vocab_size": 30522,
            "hidden_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
        },
    ),
    "modernbert-tiny": _small_modernbert(hidden_size=128, layers=2),  # as BERT-tiny
    "modernbert-mini": _small_modernbert(hidden_size=256, layers=4),  # as BERT-mini
    "modernbert-base": Preset(
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        mask_id=50284,
        settings={
            "vocab_size": 50368,
            "hidden_size": 768,
            "num_hidden_layers": 22,
            "num_attention_heads": 12,
            "intermediate_size": 1152,
        },
    ),
    "modernbert-large": Preset(
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        mask_id=50284,
        settings={
            "vocab_size": 50368,
            "hidden_size": 1024,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "intermediate_size": 2624,
        },
    ),
    "small-llama": Preset(  # LLaDA's architecture at a size for a CPU
        "LlamaForCausalLM",
        "LlamaConfig",
        mask_id=3,
        settings={
            "vocab_size": 32000,
            "hidden_size": 512,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "intermediate_size": 1365,
            "max_position_embeddings": 4096,
        },
    ),
    "llada-0.5b": Preset(  # LLaDA's architecture with as many parameters in its body as dream-0.5b
        "LlamaForCausalLM",
        "LlamaConfig",
        mask_id=126336,
        settings={
            "vocab_size": 126464,
            "hidden_size": 896,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 14,
            "intermediate_size": 4352,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": False,
        },
    ),
    "dream-0.5b": Preset(  # Qwen2.5-0.5B's sizes with the vocabulary and the untied head of Dream
        "Qwen2ForCausalLM",
        "Qwen2Config",
        mask_id=151666,
        settings={
            "vocab_size": 152064,
            "hidden_size": 896,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "intermediate_size": 4864,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": False,
        },
    ),
    "llada-8b": Preset(
        "LlamaForCausalLM",
        "LlamaConfig",
        mask_id=126336,
        settings={
            "vocab_size": 126464,
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "intermediate_size": 12288,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": False,
        },
    ),
    "dream-7b": Preset(
        "Qwen2ForCausalLM",
        "Qwen2Config",
        mask_id=151666,
        settings={
            "vocab_size": 152064,
            "hidden_size": 3584,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "intermediate_size": 18944,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": False,
        },
    ),
}


@dataclass(slots=True)
class Loaded:
    """A model ready to be measured.

    source: the preset or folder that it came from. eos_id: the token that ends an answer, None where none is known.
    """

    source: str
    model: nn.Module
    mask_id: int
    eos_id: int | None = None

    @property
    def vocab_size(self) -> int:
        """Rows of the LM head."""
        return self.model.get_output_embeddings().weight.shape[0]

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def load(
    name: str,
    dtype: torch.dtype,
    device: torch.device,
    *,
    seed: int = 0,
    mask_id: int | None = None,
    attention: str | None = None,
) -> Loaded:
    """A preset with random weights, or the masked language model in a local folder.

    Args:
        name: a key of ``PRESETS``, or a folder that ``from_pretrained`` reads.
        seed: seed of a preset's random weights.
        mask_id: overrides the mask token, which is otherwise the preset's, the config's or the tokenizer's.
        attention: the attention implementation, "eager", "sdpa", ...; None leaves the choice to transformers.

    Raises:
        ValueError: neither a preset nor a folder, or no mask token can be found.
        NotEnoughMemoryError: it does not fit.
    """
    if name in PRESETS:
        preset = PRESETS[name]
        config = getattr(transformers, preset.config_class)(**preset.settings)
        make = getattr(transformers, preset.model_class)
    elif Path(name).is_dir():
        preset = None
        config = get_config(model_name_or_path=name)
        arguments = ModelArguments(model_name_or_path=name, dtype=str(dtype))
        make = functools.partial(new_model, model_args=arguments)
    else:
        raise ValueError(f"expected one of {', '.join(PRESETS)} or a local folder, got {name!r}")
    make_bidirectional(config)
    if attention is not None:
        config._attn_implementation = attention  # the only way to set it in an existing config
    if hasattr(config, "reference_compile"):
        config.reference_compile = False  # transformers 4.57 would compile ModernBERT by default
    check_weights_fit(name, make, config, dtype, device)
    if preset:
        torch.manual_seed(seed)
        with device, _default_dtype(dtype):
            model = make(config)
    else:
        model = get_model(arguments, config=config).to(device)
    make_bidirectional(model)
    model.eval().requires_grad_(False)
    if mask_id is None:
        mask_id = preset.mask_id if preset else _mask_id(name, config)
    return Loaded(name, model, mask_id, eos_id=None if preset else getattr(config, "eos_token_id", None))


def make_bidirectional(target: nn.Module | transformers.PretrainedConfig) -> None:
    """Make a causal decoder, or its config, bidirectional; encoders stay as they are.

    Without an attention mask, `is_causal` decides: the config's and each attention layer's.

    Raises:
        ValueError: a decoder's config under transformers 4, which stays causal.
    """
    if isinstance(target, nn.Module):
        for module in target.modules():
            if getattr(module, "is_causal", None) is True:
                module.is_causal = False
    elif target.model_type in ("llama", "qwen2"):
        if int(transformers.__version__.partition(".")[0]) < 5:
            raise ValueError(
                f"a {target.model_type} is bidirectional from transformers 5 on, got {transformers.__version__}"
            )
        target.is_causal = False
        target.use_cache = False


def check_weights_fit(
    name: str,
    make: Callable[[transformers.PretrainedConfig], nn.Module],
    config: transformers.PretrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Raise NotEnoughMemoryError for a model whose weights do not fit, before anything is allocated."""
    with torch.device("meta"):
        needed = sum(parameter.numel() for parameter in make(config).parameters()) * dtype.itemsize
    _refuse_if_short(f"the weights of {name} in {dtype}", needed, device)


def check_logits_fit(loaded: Loaded, canvas_tokens: int) -> None:
    """Raise NotEnoughMemoryError where the model card's loop does not fit: it needs B L V (2 itemsize + 32) bytes.

    That is logits and softmax in the model's dtype, and four float64 tensors (logits, noise, exponential, quotient).
    """
    weight = loaded.model.get_output_embeddings().weight
    needed = canvas_tokens * loaded.vocab_size * (2 * weight.dtype.itemsize + 32)
    _refuse_if_short(f"the logits of {canvas_tokens} tokens x {loaded.vocab_size}", needed, weight.device)


def _refuse_if_short(what: str, needed: int, device: torch.device) -> None:
    free = machine.free_memory(device)
    if needed > free:
        raise NotEnoughMemoryError(f"{what} need {needed:,} bytes on {device}, {free:,} are free")


def _mask_id(folder: str, config: transformers.PretrainedConfig) -> int:
    """The mask token of a folder's config or, where it has none, of its tokenizer."""
    if getattr(config, "mask_token_id", None) is not None:
        return config.mask_token_id
    try:
        return get_tokenizer(model_name_or_path=folder).mask_token_id
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} names no mask token in its config, and {error}; pass --mask-id") from error


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
