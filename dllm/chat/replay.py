"""An answer's denoising, kept to be looked at again."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from dllm.chat.film import Frame
from dllm.chat.tokens import pieces

# what ranks proposals: in words, and how it becomes a number from 0 to 1
RANKS = {
    "log_prob": ("probability", math.exp),
    "probability": ("probability", float),
    "margin": ("lead over the second likeliest", float),
    "neg_entropy": ("exp(-entropy)", math.exp),
    "random": ("random number", float),
}


class Replay(NamedTuple):
    """All frames of an answer.

    question: what was asked.
    answer: as text.
    frames: the first from before the first step.
    ranked_by: the sampler's confidence, one of :data:`RANKS`.
    """

    question: str
    answer: str
    frames: list[Frame]
    ranked_by: str = "log_prob"

    @property
    def rank_name(self) -> str:
        """What the confidence is, in words."""
        return RANKS[self.ranked_by][0]

    def confidences(self, frame: Frame) -> list[float | None]:
        """Of each token of a frame, from 0 to 1; None where nothing was proposed."""
        scale = RANKS[self.ranked_by][1]
        return [None if value is None else scale(value) for value in frame.confidence]

    def scenes(self, tokenizer: Any) -> list[dict[str, Any]]:
        """The frames as text: for each the pieces of text, their states and confidences."""
        return [
            {
                "pieces": pieces(tokenizer, frame.tokens),
                "states": frame.states,
                "confidence": [None if c is None else round(c, 4) for c in self.confidences(frame)],
            }
            for frame in self.frames
        ]
