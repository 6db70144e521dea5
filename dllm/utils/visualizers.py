"""Replay of a sampler's steps, re-exported under its dLLM 0.1 name."""

from dllm.chat.visualizers import BaseVisualizer, TerminalVisualizer, VideoVisualizer

__all__ = ["BaseVisualizer", "TerminalVisualizer", "VideoVisualizer"]
