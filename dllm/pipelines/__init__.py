"""The names that scripts of dLLM 0.1 import, family by family, and what is special to one family.

A name that this package does not have is an ImportError.
"""

from dllm.pipelines import a2d, bert, dream, fastdllm, llada, llada2, llada21, rnd1

__all__ = ["a2d", "bert", "dream", "fastdllm", "llada", "llada2", "llada21", "rnd1"]
