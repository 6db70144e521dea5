"""CanvasCollator: turns samples into clean texts, each with one canvas of its answer, corrupted by uniform tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dllm.core import noising
from dllm.core.trainers.batches import CORRUPTION, IGNORE, check_batch, check_draws, check_fits
from dllm.core.trainers.collator import MDLMCollator
from dllm_kernels import philox

# Positions at which a sample's draws stand in the stream of diffusion times; the time itself stands at 0.
_WHICH_CANVAS, _CONDITIONED = 1, 2


class Canvas(NamedTuple):
    """A canvas at column `begin` of an answer that goes from column `answer` to before column `end`."""

    answer: int
    begin: int
    end: int


def canvases_of(labels: Tensor, length: int) -> list[Canvas]:
    """The canvases of a row: each answer, a run of labelled tokens, is cut into pieces of `length` from its beginning.

    Args:
        labels: int64 [L], -100 where a token belongs to no answer.
        length: of a canvas; the last of an answer may hold less of it.

    Example:
        >>> canvases_of(torch.tensor([-100, 5, 6, 7, -100, 8]), length=2)
        [Canvas(answer=1, begin=1, end=4), Canvas(answer=1, begin=3, end=4), Canvas(answer=5, begin=5, end=6)]
    """
    inside = torch.cat([torch.tensor([False]), labels != IGNORE, torch.tensor([False])]).int().diff()
    begins, ends = ((inside == change).nonzero().flatten().tolist() for change in (1, -1))
    answers = zip(begins, ends, strict=True)
    return [Canvas(answer, begin, end) for answer, end in answers for begin in range(answer, end, length)]


@dataclass(kw_only=True)
class CanvasCollator(MDLMCollator):
    """Pads samples with `base`, then draws one canvas of each answer and replaces its tokens by uniform ones.

    An answer, a run of tokens with labels, is cut into canvases from its first token on. One is drawn, each with the
    same probability. Each of its tokens is replaced with probability t by a token of the whole vocabulary, perhaps
    itself. Behind the end of an answer a canvas is filled with `fill_id`, which is learnt if the answer has an
    end-of-text token; an answer without one was cut.

    The draws of a sample are those of the run's seed, its tokens and the epoch, as of
    :class:`~dllm.core.trainers.collator.MDLMCollator`: t, which canvas and whether it is conditioned at the positions
    0, 1 and 2 of the stream of diffusion times; what is replaced, and by what, at the token's own position of the
    streams TRAINING_CORRUPTION and UNIFORM_TOKENS.

    Args:
        base: as of MDLMCollator. Padding must not have labels.
        canvas_length: L, tokens of a canvas.
        fill_id: the token behind the end of an answer.
        end_ids: the end-of-text tokens.
        corrupted_only: only replaced tokens have a loss, instead of all.
        next_tokens: the whole text is read, and its next tokens have a loss. Else texts end where the last canvas of
            the batch begins.
        self_conditioning: the probability that a canvas is self-conditioned.
        image_id: stands for a part of an image; None if the model has no such token.
        others: as of MDLMCollator; there is no mask token, and no right shift.

    A batch has `input_ids` [B, S], clean, and `decoder_input_ids` [B, L], corrupted. Its entry "corruption" holds, for
    the N positions of canvases that have a loss, and the M pairs of neighbours in the texts:
        rows, targets, weight: int64 [N] index b L + p, int64 [N], float32 [N], w(t).
        next_rows, next_targets: int64 [M] index b S + p, int64 [M], the token behind it.
        begin: int64 [B], the column at which the canvas begins.
        conditioned: int64 [C], the rows that are self-conditioned.
        maskable, pairs: int64 [B], each sample's share of N and of M.
        lengths: int64 [B], tokens that the model reads of each sample, the canvas included.

    Raises:
        TypeError, ValueError: as MDLMCollator; the batch is empty; a sample has no answer; samples are packed, or have
            images.

    Source: google-deepmind/gemma, `gemma/diffusion`; several turns and the fill are as here.

    Example:
        >>> from dllm.core.schedulers import LinearAlphaScheduler
        >>> def stack(samples):
        ...     return {name: torch.tensor([s[name] for s in samples]) for name in samples[0]}
        >>> collate = CanvasCollator(
        ...     base=stack, scheduler=LinearAlphaScheduler(), pad_id=None, vocab_size=10, seed=0, canvas_length=4,
        ...     fill_id=1, end_ids=(1,), high=1e-3,
        ... )
        >>> batch = collate([{"input_ids": [5, 6, 7, 1], "labels": [-100, 6, 7, 1]}])
        >>> batch["decoder_input_ids"], batch["corruption"]["begin"]
        (tensor([[6, 7, 1, 1]]), tensor([1]))
    """

    mask_id: None = None
    canvas_length: int
    fill_id: int
    end_ids: tuple[int, ...]
    corrupted_only: bool = False
    next_tokens: bool = True
    self_conditioning: float = 0.5
    image_id: int | None = None

    def corrupt(self, batch: Mapping[str, Any], keep_clean: bool = False) -> dict[str, Any]:
        """Corrupt a batch on the CPU.

        Args:
            batch: as :meth:`clean` gives it.
            keep_clean: must be False: this objective has no steps that could be replaced.
        """
        if keep_clean:
            raise ValueError("keep_clean must be False for canvases, got True")
        tokens, labels, attention_mask = batch["input_ids"], batch["labels"], batch.get("attention_mask")
        self._check(batch, tokens, labels, attention_mask)
        times, seeds = batch.get("times"), batch.get("seeds")
        check_draws(times, seeds, len(tokens))
        lengths = noising.real_lengths(tokens, attention_mask, None)
        if seeds is None:
            seeds = philox.sample_seeds(tokens, noising.real_lengths(tokens, attention_mask, self.pad_id), self.seed)
        if times is None:
            times = self._times(seeds, tokens.shape[1])
        chosen = self._chosen_canvases(labels, seeds)
        begin = torch.tensor([canvas.begin for canvas in chosen])
        clean, learnt = self._clean_canvases(tokens, labels, chosen)
        noised = noising.replace_uniformly(
            clean,
            times,
            positions=begin[:, None] + torch.arange(self.canvas_length),
            seeds=seeds,
            epoch=self._draw_number,
            vocab_size=self.vocab_size,
        )
        with_loss = learnt & noised.masked if self.corrupted_only else learnt
        read = tokens if self.next_tokens else tokens[:, : max(1, int(begin.max()))]
        corruption = self._masked_rows(clean, with_loss, times) | self._next_tokens(read, lengths)
        corruption |= dict(begin=begin, maskable=with_loss.sum(1), conditioned=self._conditioned(seeds))
        corruption["lengths"] = lengths.clamp(max=read.shape[1]) + self.canvas_length
        self._batch_count += 1
        return {"input_ids": read, "decoder_input_ids": noised.tokens, CORRUPTION: corruption}

    def _check(self, batch: Mapping[str, Any], tokens: object, labels: object, attention_mask: object) -> None:
        """Check a batch before anything is drawn."""
        if "position_ids" in batch:
            raise ValueError("samples must have a row each, got packed samples (position_ids)")
        if "pixel_values" in batch:
            raise ValueError("samples must be text, got images (pixel_values)")
        check_batch(tokens, labels, attention_mask, self.vocab_size)
        if not len(tokens):
            raise ValueError("a batch must have at least one sample, got none")
        if self.image_id is not None and bool((images := tokens == self.image_id).any()):
            row, position = images.nonzero()[0].tolist()
            raise ValueError(
                f"samples must be text, got the image token {self.image_id} at row {row}, position {position}"
            )
        check_fits(tokens, None, self.positions)
        unanswered = (labels == IGNORE).all(1)
        if bool(unanswered.any()):
            raise ValueError(
                f"each sample must have an answer, tokens whose label is not {IGNORE}, got none in row "
                f"{int(unanswered.nonzero()[0])} of a batch: max_length may have cut it off"
            )

    def _uniform(self, seeds: Tensor, position: int) -> Tensor:
        """A number of each sample, float32 [B] in (0, 1)."""
        at, step = torch.tensor(position), torch.tensor(self._draw_number)
        return philox.uniform(seeds, at, step, philox.DIFFUSION_TIME)

    def _chosen_canvases(self, labels: Tensor, seeds: Tensor) -> list[Canvas]:
        """One canvas of each row."""
        drawn = self._uniform(seeds, _WHICH_CANVAS).tolist()
        found = (canvases_of(row, self.canvas_length) for row in labels)
        return [canvases[int(u * len(canvases))] for u, canvases in zip(drawn, found, strict=True)]

    def _clean_canvases(self, tokens: Tensor, labels: Tensor, chosen: list[Canvas]) -> tuple[Tensor, Tensor]:
        """The tokens of canvases, filled behind the end of answers, int64 [B, L], and which of them are learnt."""
        clean = torch.full((len(tokens), self.canvas_length), self.fill_id)
        learnt = torch.zeros_like(clean, dtype=torch.bool)
        ends = torch.tensor(self.end_ids, dtype=torch.int64)
        for row, (answer, begin, end) in enumerate(chosen):
            piece = tokens[row, begin : min(end, begin + self.canvas_length)]
            clean[row, : len(piece)] = piece
            learnt[row, : len(piece)] = True
            learnt[row] |= bool(torch.isin(tokens[row, answer:end], ends).any())
        return clean, learnt

    def _next_tokens(self, read: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """The pairs of neighbours that have a loss; none where that loss is not wanted."""
        pairs = torch.arange(1, read.shape[1]) < lengths[:, None] if self.next_tokens else read.new_zeros(len(read), 0)
        row, position = pairs.nonzero(as_tuple=True)
        rows, targets = row * read.shape[1] + position, read[row, position + 1]
        return dict(next_rows=rows, next_targets=targets, pairs=pairs.sum(1))

    def _conditioned(self, seeds: Tensor) -> Tensor:
        """The rows that are self-conditioned, int64 [C]."""
        return (self._uniform(seeds, _CONDITIONED) < self.self_conditioning).nonzero().flatten()

    def _weights(self, masked: Tensor, times: Tensor) -> Tensor:
        """w(t) = 1, or -alpha'(t) / alpha(t) = 1 / (1 - t)."""
        weight = torch.ones_like(times) if self.uniform_weight else 1 / (1 - times.double()).float()
        if not bool((weight < torch.inf).all()):
            raise ValueError(f"times must be below 1 for weights of 1 / (1 - t), got {float(times.max())}")
        return weight[:, None].expand_as(masked)
