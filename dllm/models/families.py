"""What differs between families of models, an entry each."""

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
