"""From canvases to texts, under the name that scripts for dLLM 0.1 import it by."""

from dllm.chat.trim import infill_trim, sample_trim

__all__ = ["infill_trim", "sample_trim"]
