"""The families of models, and what differs between them: template, end of turn, mask token, auto class."""

from __future__ import annotations

from dataclasses import dataclass

# [Question]\nHow are you?\n[/Question]\n\n[Answer]\nI am fine.\n[/Answer]\n\n
# As in dLLM 0.1, white space around a message is dropped, and no answer is opened after an answer.
BERT_CHAT = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}[SYS]\n{{ message['content'] | trim }}\n[/SYS]\n\n"
    "{% elif message['role'] == 'user' %}[Question]\n{{ message['content'] | trim }}\n[/Question]\n\n"
    "{% elif message['role'] == 'assistant' %}[Answer]\n{{ message['content'] | trim }}\n[/Answer]\n\n"
    "{% else %}{{ raise_exception('expected the role system, user or assistant, got ' + message['role']) }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt and (not messages or messages[-1]['role'] != 'assistant') %}[Answer]\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Family:
    """A family: models that share a chat format and a way of loading.

    Attributes:
        name: of the family.
        model_types: `model_type` of transformers' configurations.
        end_of_turn: the text that ends an answer.
        chat_template: for tokenizers without one; None if every tokenizer of the family has one.
        mask_token: for tokenizers without one; None if every tokenizer of the family has one.
        auto_class: the class of transformers that loads the family's models.
    """

    name: str
    model_types: tuple[str, ...]
    end_of_turn: str
    chat_template: str | None = None
    mask_token: str | None = None
    auto_class: str = "AutoModelForMaskedLM"


# LLaDA and Dream come with code of their own, which registers AutoModel. A2D models are autoregressive models that were
# made bidirectional; those made from Qwen end a turn as Qwen does.
FAMILIES = (
    Family("bert", ("bert", "roberta", "xlm-roberta", "modernbert"), "[/Answer]", BERT_CHAT),
    Family("llada", ("llada",), "<|eot_id|>", mask_token="<|mdm_mask|>", auto_class="AutoModel"),
    Family("dream", ("Dream",), "<|im_end|>", auto_class="AutoModel"),
    Family("a2d", ("a2d-qwen2", "a2d-qwen3"), "<|im_end|>", mask_token="<|mask|>"),
)


def family_of(model_type: str | None) -> Family | None:
    """The family of a model type; None if it belongs to none.

    Example:
        >>> family_of("modernbert").name
        'bert'
    """
    return next((family for family in FAMILIES if model_type in family.model_types), None)
