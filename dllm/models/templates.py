"""Chat templates of the families, for tokenizers that have none, and what is corrected in templates of their own.

Each begins an answer only if a generation prompt is asked for and the last message is not an answer already. So the
prompt of a conversation is a prefix of the whole conversation, as training needs it.
"""

from __future__ import annotations

from typing import Any

import jinja2

_OPENS = "add_generation_prompt and (not messages or messages[-1]['role'] != 'assistant')"
_UNKNOWN = "{{ raise_exception('expected the role system, user or assistant, got ' + message['role']) }}"

# [Question]\nHow are you?\n[/Question]\n\n[Answer]\nI am fine.\n[/Answer]\n\n
# As in dLLM 0.1, white space around a message is dropped, and no answer is opened after an answer.
BERT_CHAT = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}[SYS]\n{{ message['content'] | trim }}\n[/SYS]\n\n"
    "{% elif message['role'] == 'user' %}[Question]\n{{ message['content'] | trim }}\n[/Question]\n\n"
    "{% elif message['role'] == 'assistant' %}[Answer]\n{{ message['content'] | trim }}\n[/Answer]\n\n"
    "{% else %}" + _UNKNOWN + "{% endif %}{% endfor %}"
    "{% if " + _OPENS + " %}[Answer]\n{% endif %}"
)

# <|startoftext|><|start_header_id|>user<|end_header_id|>\n\nHow are you?<|eot_id|>
# LLaDA's template, which is Llama 3's; the first token is the tokenizer's own.
HEADER_CHAT = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>"
    "{% endfor %}"
    "{% if " + _OPENS + " %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)

# <role>SYSTEM</role>detailed thinking off<|role_end|><role>HUMAN</role>How are you?<|role_end|><role>ASSISTANT</role>
# Without a system message it is the one that the models were tuned with.
ROLE_CHAT = (
    "{% if not messages or messages[0]['role'] != 'system' %}"
    "<role>SYSTEM</role>detailed thinking off<|role_end|>{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}<role>SYSTEM</role>"
    "{% elif message['role'] == 'user' %}<role>HUMAN</role>"
    "{% elif message['role'] == 'assistant' %}<role>ASSISTANT</role>"
    "{% else %}" + _UNKNOWN + "{% endif %}"
    "{{ message['content'] }}<|role_end|>{% endfor %}"
    "{% if " + _OPENS + " %}<role>ASSISTANT</role>{% endif %}"
)

# <|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n
IM_CHAT = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if " + _OPENS + " %}<|im_start|>assistant\n{% endif %}"
)
# The same with a system message at the beginning where the conversation has none.
DREAM_CHAT = (
    "{% if not messages or messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}" + IM_CHAT
)

# Diffusion models converted from Qwen3 are tuned on answers without reasoning.
WITHOUT_THINKING = "{% if enable_thinking is not defined %}{% set enable_thinking = false %}{% endif %}"


def set_template(tokenizer: Any, template: str | None, answer_header: str | None, *, thinks: bool = True) -> None:
    """Set the chat template of a tokenizer, in place.

    Its own template is kept, with two corrections. If it begins an answer although no generation prompt is asked for,
    as LLaDA's does, `template` takes its place. If it can be told whether to reason (`enable_thinking`) and `thinks` is
    False, it does not unless told to. Both are saved with the tokenizer.

    Args:
        tokenizer: of transformers.
        template: for a tokenizer without one; None: it stays without one.
        answer_header: the text that begins an answer; None: templates are not examined.
        thinks: whether the models reason by default.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> tokenizer = load_shipped()[1]
        >>> tokenizer.chat_template = None
        >>> set_template(tokenizer, BERT_CHAT, None)
        >>> tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
        '[Question]\\nHi\\n[/Question]\\n\\n'
    """
    own = tokenizer.chat_template
    if not own or (answer_header and _opens_unasked(tokenizer, answer_header)):
        tokenizer.chat_template = own = template
    if not thinks and isinstance(own, str) and "enable_thinking" in own and not own.startswith(WITHOUT_THINKING):
        tokenizer.chat_template = WITHOUT_THINKING + own


def _opens_unasked(tokenizer: Any, answer_header: str) -> bool:
    """Whether the tokenizer's template begins an answer after a question although it is told not to."""
    question = [{"role": "user", "content": "question"}]
    try:
        text = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=False)
    except (jinja2.TemplateError, TypeError, AttributeError, LookupError, ValueError):
        return False  # it asks for something else than a plain question
    return text.endswith(answer_header)
