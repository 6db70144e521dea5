"""Loading and preparing data, re-exported under its dLLM 0.1 name."""

from dllm.data.lengths import clip_row, clip_row_streaming, post_process_dataset, post_process_dataset_streaming
from dllm.data.load import load_pt_dataset, load_sft_dataset
from dllm.data.spec import parse_spec

__all__ = [
    "clip_row",
    "clip_row_streaming",
    "load_pt_dataset",
    "load_sft_dataset",
    "parse_spec",
    "post_process_dataset",
    "post_process_dataset_streaming",
]
