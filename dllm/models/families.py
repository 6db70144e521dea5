"""What differs between families of models, an entry each."""

from __future__ import annotations

from dataclasses import dataclass

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
        chat_template: for tokenizers that bring none.
    """

    name: str
    model_types: tuple[str, ...]
    end_of_turn: str
    chat_template: str


FAMILIES = (Family("bert", ("bert", "roberta", "xlm-roberta", "modernbert"), "[/Answer]", BERT_CHAT),)


def family_of(model_type: str) -> Family | None:
    """The family that models of this type belong to, None for one of no family known here.

    Example:
        >>> family_of("modernbert").name
        'bert'
    """
    return next((family for family in FAMILIES if model_type in family.model_types), None)
