"""Data sets, from their files to what a trainer takes."""

from dllm.data.load import load_pt_dataset, load_sft_dataset

__all__ = ["load_pt_dataset", "load_sft_dataset"]
