"""What stands around a collator, under the name that scripts for dLLM 0.1 import it by."""

from dllm.data.collators import CollatorWrapper, NoAttentionMaskWrapper, PrependBOSWrapper, RandomTruncateWrapper

__all__ = ["CollatorWrapper", "NoAttentionMaskWrapper", "PrependBOSWrapper", "RandomTruncateWrapper"]
