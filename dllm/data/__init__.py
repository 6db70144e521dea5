"""Data sets: loading, tokenizing, truncating, packing and collating."""

from dllm.data.load import load_pt_dataset, load_sft_dataset

__all__ = ["load_pt_dataset", "load_sft_dataset"]
