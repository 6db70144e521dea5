"""Functions that prepare data, re-exported under their dLLM 0.1 name."""

from dllm.data.chat import default_sft_map_fn
from dllm.data.lengths import clip_row, clip_row_streaming, post_process_dataset, post_process_dataset_streaming
from dllm.data.spec import parse_spec
from dllm.data.tokens import prepend_bos, tokenize_and_group

__all__ = [
    "clip_row",
    "clip_row_streaming",
    "default_sft_map_fn",
    "parse_spec",
    "post_process_dataset",
    "post_process_dataset_streaming",
    "prepend_bos",
    "tokenize_and_group",
]
