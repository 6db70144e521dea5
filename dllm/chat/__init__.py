"""Chat with a masked-diffusion model in a terminal; show its denoising steps, live or as a replay."""

from dllm.chat.session import multi_turn_chat, single_turn_sampling
from dllm.chat.talk import Continuation, Conversation
from dllm.chat.trim import infill_trim, sample_trim
from dllm.chat.visualizers import PageVisualizer, TerminalVisualizer, VideoVisualizer

__all__ = [
    "Continuation",
    "Conversation",
    "PageVisualizer",
    "TerminalVisualizer",
    "VideoVisualizer",
    "infill_trim",
    "multi_turn_chat",
    "sample_trim",
    "single_turn_sampling",
]
