"""What differs between families of models, an entry each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import transformers

_ADAPTER = "adapter_config.json"
# [Question]\nHow are you?\n[/Question]\n\n[Answer]\nI am fine.\n[/Answer]\n\n
BERT_CHAT = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}[SYS]\n{{ message['content'] }}\n[/SYS]\n\n"
    "{% elif message['role'] == 'user' %}[Question]\n{{ message['content'] }}\n[/Question]\n\n"
    "{% elif message['role'] == 'assistant' %}[Answer]\n{{ message['content'] }}\n[/Answer]\n\n"
    "{% else %}{{ raise_exception('expected the role system, user or assistant, got ' + message['role']) }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[Answer]\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Family:
    """Models that are trained and talked to in one way.

    Attributes:
        name: of the family.
        model_types: of transformers' configs.
        end_of_turn: the text that ends an answer.
        chat_template: for tokenizers that bring none; None where every tokenizer of the family brings one.
        mask_token: for tokenizers that name none; None where every tokenizer of the family names its own.
        auto_class: of transformers, by which the family's models are loaded.
    """

    name: str
    model_types: tuple[str, ...]
    end_of_turn: str
    chat_template: str | None = None
    mask_token: str | None = None
    auto_class: str = "AutoModelForMaskedLM"


# LLaDA and Dream run code that comes with them, which names AutoModel as the way in. A2D are autoregressive models that
# were made to look both ways; those that began as Qwen end a turn as it does.
FAMILIES = (
    Family("bert", ("bert", "roberta", "xlm-roberta", "modernbert"), "[/Answer]", BERT_CHAT),
    Family("llada", ("llada",), "<|eot_id|>", mask_token="<|mdm_mask|>", auto_class="AutoModel"),
    Family("dream", ("Dream",), "<|im_end|>", auto_class="AutoModel"),
    Family("a2d", ("a2d-qwen2", "a2d-qwen3"), "<|im_end|>", mask_token="<|mask|>"),
)


def family_of(model_type: str | None) -> Family | None:
    """The family that models of this type belong to, None for one of no family known here.

    Example:
        >>> family_of("modernbert").name
        'bert'
    """
    return next((family for family in FAMILIES if model_type in family.model_types), None)


def model_type_at(source: str | Path) -> str | None:
    """The model type that is written down at a folder or a name on the Hub, of the base model where an adapter lies
    there; None if nothing is. No code that comes with a model is run.

    Raises:
        OSError: there is no such folder or name.

    Example:
        >>> from dllm.demo.shipped import SHIPPED
        >>> model_type_at(SHIPPED)
        'modernbert'
    """
    if adapter_at(source):
        source = json.loads((Path(source) / _ADAPTER).read_text())["base_model_name_or_path"]
    return transformers.PretrainedConfig.get_config_dict(source)[0].get("model_type")


def adapter_at(source: str | Path) -> bool:
    """Whether a folder holds an adapter of peft, to be laid over its base model.

    Example:
        >>> adapter_at("answerdotai/ModernBERT-base")
        False
    """
    return (Path(source) / _ADAPTER).is_file()
