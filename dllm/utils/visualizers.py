"""What replays a sampler's steps, under the name that scripts for dLLM 0.1 import it by."""

from dllm.chat.visualizers import BaseVisualizer, TerminalVisualizer, VideoVisualizer

__all__ = ["BaseVisualizer", "TerminalVisualizer", "VideoVisualizer"]
