"""The loop of Edit Flows: texts are edited step by step, and the model runs on those alone that have changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dllm.core.samplers.edit_texts import EditedTexts, allowed, draw_edits, leap
from dllm.fast.deferred import no_deferral
from dllm.fast.head.use import hooks_of, is_linear
from dllm.fast.int8 import Int8Linear
from dllm_kernels import gumbel_argmax, linear_gumbel_argmax


class EditLoopSettings(NamedTuple):
    """How texts are edited.

    weights: of each step, w(t) tau.
    temperature: of the tokens' distributions; 0 takes the most probable token.
    min_edits: a text is finished when fewer edits than this are expected in the steps that are left.
    limit: the most tokens of a text, None for no limit.
    suppress: bool [V], tokens that are never put in, or None.
    apart: run one text at a time.
    impl: of the kernels.
    body_context: a function that makes the context in which the model's body runs.
    """

    weights: Sequence[float]
    temperature: float
    min_edits: float
    limit: int | None
    suppress: Tensor | None
    apart: bool
    impl: str
    body_context: Callable[[], AbstractContextManager] = nullcontext


class Predictions(NamedTuple):
    """What the model says of texts: hidden [B, L, H] that its heads read, and rates float32 [B, L, 3]."""

    hidden: Tensor
    rates: Tensor


class EditLoop:
    """Edits a batch of texts.

    The model depends on a text alone, not on the time, so a step without an edit costs a few random numbers. A text's
    draws depend on its seed, the position and the step, not on the batch.

    Args:
        model: with `hidden_states`, `rates`, `sub_logits`, `ins_logits` and `config.right_shift`
            (:class:`dllm.models.EditFlowModel`).
        settings: :class:`EditLoopSettings`.

    Attributes:
        forwards: how often the model has run.
        row_forwards: in how many of these each text took part.
        steps: how many steps were taken until all texts were finished.
    """

    def __init__(self, model: nn.Module, settings: EditLoopSettings):
        self.model, self.settings = model, settings
        self.forwards, self.steps = 0, 0
        self.row_forwards: list[int] = []

    @torch.no_grad()
    def run(
        self, texts: EditedTexts, seeds: Tensor, show: Callable[[EditedTexts, int], object] | None = None
    ) -> EditedTexts:
        """The texts after the last step.

        Args:
            texts: to begin with.
            seeds: int64 [B].
            show: called with the texts and the number of the step after each step in which one has changed.

        Raises:
            RuntimeError: rates or the logits of a token are not finite.
        """
        weights = self.settings.weights
        left = torch.tensor(weights, dtype=torch.float64).flip(0).cumsum(0).flip(0).tolist()
        self.row_forwards = [0] * len(seeds)
        changed, predictions = list(range(len(seeds))), None
        for step, weight in enumerate(weights if changed else ()):
            if changed:
                predictions = self._predicted(texts, changed, predictions)
            rates = allowed(predictions.rates, texts)
            expected = rates.sum((1, 2)) * left[step]
            finite = expected.isfinite()
            unfinished = (expected > 0) & (expected >= self.settings.min_edits)
            edits = draw_edits(rates * unfinished[:, None, None], weight, seeds, step)
            going_on, change, sound = torch.stack([unfinished, edits.rows, finite]).tolist()
            if not all(sound):
                raise RuntimeError(f"the rates must be finite, got others in row {sound.index(False)}, step {step}")
            if not any(going_on):
                break
            self.steps = step + 1
            changed = [row for row, changes in enumerate(change) if changes]
            if not changed:
                continue
            substitutes = self._tokens("sub", predictions.hidden, edits.substitute, seeds, 2 * step)
            inserted = self._tokens("ins", predictions.hidden, edits.insert, seeds, 2 * step + 1)
            texts = leap(texts, edits, substitutes, inserted, self.settings.limit)
            if show is not None:
                show(texts, step)
        return texts

    def _predicted(self, texts: EditedTexts, changed: list[int], before: Predictions | None) -> Predictions:
        """Predictions for all texts: new ones for those that have changed."""
        for group in [[row] for row in changed] if self.settings.apart else [changed]:
            rows = torch.tensor(group, device=texts.tokens.device)
            lengths = texts.lengths[rows]
            longest, shortest = int(lengths.max()), int(lengths.min())
            tokens = texts.tokens[rows, :longest]
            mask = None if longest == shortest else texts.real[rows, :longest].long()
            with self.settings.body_context():
                hidden = self.model.hidden_states(tokens, mask)
            made, columns = (hidden, self.model.rates(hidden)), texts.tokens.shape[1]
            old = (None, None) if before is None else before
            parts = zip(old, made, strict=True)
            before = Predictions(*(_placed(a, b, rows, len(texts.tokens), columns) for a, b in parts))
            self.forwards += 1
            for row in group:
                self.row_forwards[row] += 1
        return before

    def _tokens(self, kind: str, hidden: Tensor, where: Tensor, seeds: Tensor, step: int) -> Tensor:
        """Tokens drawn at these places, int64 [B, L], 0 elsewhere."""
        head, found = getattr(self.model, f"{kind}_logits"), torch.zeros_like(where, dtype=torch.int64)
        row, position = where.nonzero(as_tuple=True)
        if not len(row):
            return found
        read = position - 1 if kind == "sub" and self.model.config.right_shift else position
        rows = row * where.shape[1] + read
        options = dict(suppress=self.settings.suppress, impl=self.settings.impl, temperature=self.settings.temperature)
        options |= dict(seeds=seeds[row], positions=position, step=step)
        flat = hidden.flatten(0, 1)
        if (quantized := type(head) is Int8Linear) or (is_linear(head) and not hooks_of(head)):
            scale = head.scale if quantized else None
            drawn = linear_gumbel_argmax(flat, head.weight, head.bias, weight_scale=scale, rows=rows, **options)
        else:  # of an adapter
            with no_deferral():
                drawn = gumbel_argmax(head(flat[rows]), **options)
        if bool((drawn.token < 0).any()):
            wrong = int(row[(drawn.token < 0).nonzero()[0]])
            raise RuntimeError(f"the logits of {kind}_logits must be finite, got none in row {wrong}, step {step // 2}")
        found[row, position] = drawn.token
        return found


def _placed(old: Tensor | None, new: Tensor, rows: Tensor, batch: int, columns: int) -> Tensor:
    """[B, columns, ...] with `new` in these rows and `old` in the others, 0 beyond their columns."""
    found: Any = new.new_zeros(batch, columns, new.shape[2])
    if old is not None:
        kept = min(old.shape[1], columns)
        found[:, :kept] = old[:, :kept]
        found[rows] = 0
    found[rows, : new.shape[1]] = new
    return found
