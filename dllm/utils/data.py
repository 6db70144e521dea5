"""What prepares data, under the name that scripts for dLLM 0.1 import it by."""

from dllm.data.chat import default_sft_map_fn
from dllm.data.load import clip_row, parse_spec, post_process_dataset

__all__ = ["clip_row", "default_sft_map_fn", "parse_spec", "post_process_dataset"]
