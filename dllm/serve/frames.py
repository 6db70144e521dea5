"""Frames of a stream: how an answer's canvas looks after a step, in the fields of a "diffusion_frame" chunk."""

from __future__ import annotations

from typing import Any

import torch

from dllm.chat.film import Film
from dllm.chat.replay import RANKS
from dllm.chat.tokens import END_MARK, pieces
from dllm.fast.sampling.live import RowView
from dllm.serve.orders import Choice

# given, masked, tentative, new and committed tokens by their first letters
LETTERS = {"given": "g", "masked": "m", "tentative": "t", "new": "n", "committed": "c"}


class Frames:
    """Turns the views of a choice into frames. The first one is whole; each later one has the columns that changed.

    Frames that are left out change nothing for those that follow: columns are compared with what was sent last.

    Args:
        tokenizer: of the model.
        choice: whose views come.
    """

    def __init__(self, tokenizer: Any, choice: Choice):
        self._tokenizer, self._span, self._steps = tokenizer, choice.prompt.span, choice.steps
        self._scale, mask = RANKS[choice.confidence][1], tokenizer.mask_token_id
        row = choice.prompt.tokens + [mask] * (choice.prompt.new or 0)
        self._film = Film(mask, [self._span], torch.tensor([row]))
        self._sent: list[tuple[str, str, float | None]] | None = None

    def of(self, view: RowView) -> dict[str, Any]:
        """The fields of the frame after a step. Decodes, so it is no work for the event loop."""
        frame = self._film.add(view.canvas[None], view.tentative[None], view.confidence[None])[0]
        self._film.rows[0] = [frame]  # those before are not needed
        states = [LETTERS[state] for state in frame.states]
        values = [None if value is None else round(self._scale(value), 4) for value in frame.confidence]
        columns = list(zip(pieces(self._tokenizer, frame.tokens), states, values, strict=True))
        own: dict[str, Any] = {}
        changed = range(len(columns))
        if self._sent is not None:
            changed = [place for place, column in enumerate(columns) if column != self._sent[place]]
            own["columns"] = list(changed)
        self._sent = columns
        own |= {
            "pieces": [columns[place][0] for place in changed],
            "states": "".join(columns[place][1] for place in changed),
            "confidence": [columns[place][2] for place in changed],
        }
        draft = view.canvas[self._span].tolist()
        return {
            "type": "diffusion_frame",
            "block": min(view.block, view.blocks - 1),
            "step": view.taken,
            "total": self._steps,
            "text": "".join(pieces(self._tokenizer, draft)).replace(END_MARK, "").strip(),
            "dllm": own,
        }
