"""Names that scripts for dLLM 0.1 import. Nothing lives here: every name is imported from where it lives, when used."""

import importlib
from typing import Any

_HOMES = {
    "DataArguments": "dllm.configs",
    "ModelArguments": "dllm.configs",
    "TrainingArguments": "dllm.configs",
    "BaseVisualizer": "dllm.chat.visualizers",
    "TerminalVisualizer": "dllm.chat.visualizers",
    "VideoVisualizer": "dllm.chat.visualizers",
    "banner_line": "dllm.chat.text",
    "boxed": "dllm.chat.text",
    "build_chat_inputs": "dllm.chat.talk",
    "infill_trim": "dllm.chat.trim",
    "multi_turn_chat": "dllm.chat.session",
    "print_wrapped": "dllm.chat.text",
    "prompt_choice": "dllm.chat.text",
    "render_menu": "dllm.chat.text",
    "sample_trim": "dllm.chat.trim",
    "single_turn_sampling": "dllm.chat.session",
    "visualize_histories": "dllm.chat.visualizers",
    "CollatorWrapper": "dllm.data.collators",
    "NoAttentionMaskWrapper": "dllm.data.collators",
    "clip_row": "dllm.data.lengths",
    "clip_row_streaming": "dllm.data.lengths",
    "default_sft_map_fn": "dllm.data.chat",
    "get_model": "dllm.models",
    "get_tokenizer": "dllm.models",
    "load_peft": "dllm.models",
    "parse_spec": "dllm.data.spec",
    "post_process_dataset": "dllm.data.lengths",
    "post_process_dataset_streaming": "dllm.data.lengths",
    "prepend_bos": "dllm.data.tokens",
    "PrependBOSWrapper": "dllm.data.collators",
    "RandomTruncateWrapper": "dllm.data.collators",
    "tokenize_and_group": "dllm.data.tokens",
}
_PARTS = ("chat", "collators", "configs", "data", "models", "sampling", "visualizers")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _PARTS:
        return importlib.import_module(f"dllm.utils.{name}")
    raise AttributeError(f"module 'dllm.utils' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_PARTS])
