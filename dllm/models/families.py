"""The families of models, and what differs between them: template, end of turn, special tokens, auto class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dllm.fast.model import MARKER
from dllm.models.sources import config_at
from dllm.models.templates import BERT_CHAT, DREAM_CHAT, HEADER_CHAT, IM_CHAT, ROLE_CHAT

_HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_IM = ("<|im_start|>", "<|im_end|>")
_ROLES = ("<role>", "</role>", "<|role_end|>")


@dataclass(frozen=True, slots=True)
class Family:
    """A family: models that share a chat format and a way of loading.

    Attributes:
        name: of the family.
        model_types: `model_type` of configurations.
        end_of_turn: the text that ends an answer; None for base models, which have no turns.
        chat_template: for tokenizers without one; None if every tokenizer of the family has one, or none has.
        answer_header: the text that begins an answer in that template.
        header_tokens: tokens of that template; a tokenizer that lacks one would split it into pieces.
        masks: whether its models have a mask token; those of uniform diffusion have none.
        mask_token: for tokenizers that declare none; None if every tokenizer of the family declares one.
        reserved_token: the mask token where none is declared and the model has no row for a new one.
        gains_mask_row: whether loading a model enlarges an embedding that has no row for the declared mask token.
        bos, eos, pad: for tokenizers that declare none, if they are in the vocabulary.
        thinks: whether templates that can be told to reason do so by default.
        unknown_to_transformers: whether the published files name a model type or a tokenizer class that transformers
            does not have.
        runs_own_code: whether its models run by the code that comes with them, if that is trusted: transformers has no
            class that computes the same.
        auto_class: the class of transformers that loads the family's models.
    """

    name: str
    model_types: tuple[str, ...]
    end_of_turn: str | None
    chat_template: str | None = None
    answer_header: str | None = None
    header_tokens: tuple[str, ...] = ()
    masks: bool = True
    mask_token: str | None = None
    reserved_token: str | None = None
    gains_mask_row: bool = False
    bos: str | None = None
    eos: str | None = None
    pad: str | None = None
    thinks: bool = True
    unknown_to_transformers: bool = True
    runs_own_code: bool = False
    auto_class: str = "AutoModelForMaskedLM"


def _inclusion(name: str, model_types: tuple[str, ...]) -> Family:
    """A family with the tokenizer of LLaDA-MoE, which LLaDA2 shares."""
    return Family(
        name,
        model_types,
        "<|role_end|>",
        ROLE_CHAT,
        "<role>ASSISTANT</role>",
        _ROLES,
        mask_token="<|mask|>",
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        auto_class="AutoModel",
    )


# A2D models are autoregressive models that were made bidirectional; they end a turn as the base model does.
FAMILIES = (
    Family(
        "bert",
        ("bert", "roberta", "xlm-roberta", "modernbert"),
        "[/Answer]",
        BERT_CHAT,
        unknown_to_transformers=False,
    ),
    Family(
        "llada",
        ("llada",),
        "<|eot_id|>",
        HEADER_CHAT,
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        _HEADERS,
        mask_token="<|mdm_mask|>",
        bos="<|startoftext|>",
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        auto_class="AutoModel",
    ),
    _inclusion("llada_moe", ("llada_moe",)),
    _inclusion("llada2", ("llada2_moe",)),
    Family(
        "dream",
        ("Dream",),
        "<|im_end|>",
        DREAM_CHAT,
        "<|im_start|>assistant\n",
        _IM,
        mask_token="<|mask|>",
        bos="<|beginoftext|>",
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        auto_class="AutoModel",
    ),
    Family(
        "rnd1",
        ("rnd1",),
        None,
        mask_token="<|mask|>",
        eos="<|im_end|>",
        pad="<|endoftext|>",
        auto_class="AutoModel",
    ),
    Family(
        "a2d",
        ("a2d-qwen2", "a2d-qwen3"),
        "<|im_end|>",
        IM_CHAT,
        "<|im_start|>assistant\n",
        _IM,
        mask_token="<|mask|>",
        gains_mask_row=True,
        thinks=False,
    ),
    Family(
        "a2d-llama",
        ("a2d-llama",),
        "<|eot_id|>",
        HEADER_CHAT,
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        _HEADERS,
        mask_token="<|mask|>",
        reserved_token="<|reserved_special_token_0|>",
        gains_mask_row=True,
    ),
    Family(
        "diffusion_gemma",
        ("diffusion_gemma",),
        "<turn|>",
        masks=False,
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
        unknown_to_transformers=False,
        auto_class="AutoModelForImageTextToText",
    ),
    Family(
        "nemotron_diffusion",
        ("nemotron_labs_diffusion",),
        None,  # an answer ends with the EOS of the model's configuration
        mask_token="<|mask|>",
        runs_own_code=True,
        auto_class="AutoModel",
    ),
)


def family_of(model_type: str | None) -> Family | None:
    """The family of a model type; None if it belongs to none.

    LLaDA-MoE shares its model type with LLaDA: :func:`family_in` tells them apart.

    Example:
        >>> family_of("modernbert").name
        'bert'
    """
    if model_type is not None and model_type.startswith("llada2_moe"):  # there are variants with a suffix
        model_type = "llada2_moe"
    return next((family for family in FAMILIES if model_type in family.model_types), None)


def family_in(config: Mapping[str, Any]) -> Family | None:
    """The family of a model by the content of its config.json; None if it belongs to none.

    A saved model carries the name of its family; its `model_type` is that of a class of transformers.

    Raises:
        ValueError: it carries the name of an unknown family.

    Example:
        >>> family_in({"model_type": "llada", "architectures": ["LLaDAMoEModelLM"]}).name
        'llada_moe'
        >>> family_in({"model_type": "qwen2", "masked_diffusion": {"family": "dream"}}).name
        'dream'
    """
    model_type, marker = config.get("model_type"), config.get(MARKER)
    if isinstance(marker, Mapping) and "family" in marker:
        return _family_named(marker["family"], model_type)
    architectures = config.get("architectures") or ()
    if model_type == "llada" and (
        any("LLaDAMoE" in name for name in architectures) or "expert_intermediate_size" in config
    ):
        model_type = "llada_moe"
    return family_of(model_type)


def family_at(source: str | Path) -> Family | None:
    """The family of the model in a folder or at a name on the Hub; None if it belongs to none.

    Of an adapter it is that of the base model. No code that comes with a model is run.

    Raises:
        OSError: the folder or the name does not exist.
        ValueError: the configuration cannot be read.

    Example:
        >>> from dllm.demo.shipped import SHIPPED
        >>> family_at(SHIPPED).name
        'bert'
    """
    return family_in(config_at(source))


def _family_named(name: object, model_type: str | None) -> Family:
    if name == "a2d" and model_type == "llama":
        name = "a2d-llama"
    found = next((family for family in FAMILIES if family.name == name), None)
    if found is None:
        names = ", ".join(family.name for family in FAMILIES)
        raise ValueError(f"the family in a configuration must be one of {names}, got {name!r}")
    return found
