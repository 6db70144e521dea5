"""The recorded denoising of one answer."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from dllm.chat.film import Frame
from dllm.chat.tokens import pieces

# kinds of confidence: a description, and the function that maps it to [0, 1]
RANKS = {
    "log_prob": ("probability", math.exp),
    "probability": ("probability", float),
    "margin": ("lead over the second likeliest", float),
    "neg_entropy": ("exp(-entropy)", math.exp),
    "random": ("random number", float),
}


class Replay(NamedTuple):
    """All frames of an answer.

    question, answer: text.
    frames: one per step, and the first from before the first step.
    ranked_by: kind of the sampler's confidence, one of :data:`RANKS`.
    """

    question: str
    answer: str
    frames: list[Frame]
    ranked_by: str = "log_prob"

    @property
    def rank_name(self) -> str:
        """A description of the confidence."""
        return RANKS[self.ranked_by][0]

    def confidences(self, frame: Frame) -> list[float | None]:
        """The confidence of each token of a frame, in [0, 1]; None where nothing was proposed."""
        scale = RANKS[self.ranked_by][1]
        return [None if value is None else scale(value) for value in frame.confidence]

    def scenes(self, tokenizer: Any) -> list[dict[str, Any]]:
        """For each frame the text, state and confidence of its tokens, as plain values for JSON."""
        return [
            {
                "pieces": pieces(tokenizer, frame.tokens),
                "states": frame.states,
                "confidence": [None if c is None else round(c, 4) for c in self.confidences(frame)],
            }
            for frame in self.frames
        ]
