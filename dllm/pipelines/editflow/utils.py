"""The collator of Edit Flows, under the name of dLLM 0.1."""

from dllm.core.trainers import EditFlowCollator

__all__ = ["EditFlowCollator"]
