"""Wrappers of collators, re-exported under their dLLM 0.1 name."""

from dllm.data.collators import CollatorWrapper, NoAttentionMaskWrapper, PrependBOSWrapper, RandomTruncateWrapper

__all__ = ["CollatorWrapper", "NoAttentionMaskWrapper", "PrependBOSWrapper", "RandomTruncateWrapper"]
