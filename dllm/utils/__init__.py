"""Names that scripts for dLLM 0.1 import. Each is imported from its module in dllm on first use."""

import importlib
from typing import Any

_MODULE_OF = {
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
    "disable_caching_allocator_warmup": "dllm.startup",
    "disable_dataset_caching": "dllm.startup",
    "disable_dataset_progress_bar_except_main": "dllm.startup",
    "get_default_logger": "dllm.startup",
    "init_device_context_manager": "dllm.startup",
    "initial_training_setup": "dllm.startup",
    "pprint_main": "dllm.startup",
    "print_args": "dllm.startup",
    "print_args_main": "dllm.startup",
    "print_main": "dllm.startup",
    "resolve_with_base_env": "dllm.configs",
}
_SUBMODULES = ("chat", "collators", "configs", "data", "models", "sampling", "utils", "visualizers")


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"dllm.utils.{name}")
    raise AttributeError(f"module 'dllm.utils' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF, *_SUBMODULES])
