"""The terminal chat, re-exported under its dLLM 0.1 name."""

from dllm.chat.session import multi_turn_chat, single_turn_sampling
from dllm.chat.talk import build_chat_inputs
from dllm.chat.text import banner_line, boxed, print_wrapped, prompt_choice, render_menu
from dllm.chat.visualizers import visualize_histories

__all__ = [
    "banner_line",
    "boxed",
    "build_chat_inputs",
    "multi_turn_chat",
    "print_wrapped",
    "prompt_choice",
    "render_menu",
    "single_turn_sampling",
    "visualize_histories",
]
