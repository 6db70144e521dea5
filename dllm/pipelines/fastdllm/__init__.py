"""Fast-dLLM: LLaDA and Dream with cached keys and values, and several tokens a step."""

from dllm.pipelines.fastdllm import dream, llada

__all__ = ["dream", "llada"]
