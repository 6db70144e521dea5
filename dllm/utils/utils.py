"""Set-up of training scripts and parsing of their arguments, re-exported under its dLLM 0.1 name."""

from dllm.configs import resolve_with_base_env
from dllm.data.spec import parse_spec
from dllm.models import load_peft
from dllm.startup import (
    disable_caching_allocator_warmup,
    disable_dataset_caching,
    disable_dataset_progress_bar_except_main,
    get_default_logger,
    init_device_context_manager,
    initial_training_setup,
    pprint_main,
    print_args,
    print_args_main,
    print_main,
)

__all__ = [
    "disable_caching_allocator_warmup",
    "disable_dataset_caching",
    "disable_dataset_progress_bar_except_main",
    "get_default_logger",
    "init_device_context_manager",
    "initial_training_setup",
    "load_peft",
    "parse_spec",
    "pprint_main",
    "print_args",
    "print_args_main",
    "print_main",
    "resolve_with_base_env",
]
