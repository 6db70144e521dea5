"""Rollouts: the completions of an optimizer step with what the loss needs of them, and their batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dllm.core.trainers.batches import CORRUPTION
from dllm_kernels import philox


def rollout_seeds(prompts: Sequence[Sequence[int]], places: Sequence[int], update: int, run_seed: int) -> Tensor:
    """The seed of each completion, int64 [n]: a hash of the run's seed, the prompt, the update and the place in it.

    Args:
        prompts: token ids of each completion's prompt.
        places: of each completion among those of its update, all processes together.
        update: which generation of completions it is.
        run_seed: seed of the run.

    Example:
        >>> a, b = rollout_seeds([[5, 6], [5, 6]], [0, 1], update=0, run_seed=1).tolist()
        >>> a == b
        False
    """
    rows = [torch.tensor([[*prompt, update, place]]) for prompt, place in zip(prompts, places, strict=True)]
    return torch.cat([philox.sample_seeds(row, torch.tensor([row.shape[1]]), run_seed) for row in rows])


@dataclass
class Rollouts:
    """The completions of n prompts, on the CPU.

    prompts: token ids of each.
    completions: int64 [n, C].
    lengths: int64 [n], tokens of each completion up to and with its first EOS; only these are scored.
    seeds: int64 [n], of the completions' noise, and of the prompts' masks.
    advantages: float32 [n].
    old: log-probabilities of the model that wrote them, float32 [iterations, n, C], those of the first iteration
        unused; None with one iteration, in which the model is that one.
    reference: log-probabilities of the reference model, float32 [iterations, n, C]; None without one.
    """

    prompts: Sequence[Sequence[int]]
    completions: Tensor
    lengths: Tensor
    seeds: Tensor
    advantages: Tensor
    old: Tensor | None = None
    reference: Tensor | None = None

    def batch(
        self, chosen: slice, iteration: int, *, mask_id: int, pad_id: int, p_mask_prompt: float, right_shift: bool
    ) -> dict[str, Any]:
        """A batch for the model and the loss: prompts masked at random, and completions masked whole.

        The masks of a prompt depend on its completion's seed and the iteration alone, not on the batch. So the models
        that are compared see the same masks.

        Returns:
            `input_ids` [B, L] of L tokens in the longest row; `attention_mask`, if a row is padded; and "corruption":
            rows, targets: int64 [N], as :func:`dllm.fast.training.loss.masked_loss` takes them, of all scored tokens.
            sample, column: int64 [N], where the token lies in the batch's completions.
            advantages: float32 [B].
            old, reference: float32 [N], where they are known.
            maskable: int64 [B], scored tokens of each row.
            lengths: int64 [B], tokens of each row.
        """
        prompts, seeds = self.prompts[chosen], self.seeds[chosen]
        completions, scored = self.completions[chosen], self.lengths[chosen]
        width = completions.shape[1]
        starts = torch.tensor([len(prompt) for prompt in prompts])
        lengths = starts + width
        tokens = torch.full((len(prompts), int(lengths.max())), pad_id)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
            row[len(prompt) : len(prompt) + width] = mask_id
        position = torch.arange(tokens.shape[1])
        step = torch.full_like(position, iteration)
        hidden = philox.uniform(seeds[:, None], position, step, philox.TRAINING_CORRUPTION) < p_mask_prompt
        tokens[hidden & (position < starts[:, None])] = mask_id
        sample, column = (torch.arange(width) < scored[:, None]).nonzero(as_tuple=True)
        predicted_at = starts[sample] + column - int(right_shift)
        corruption = dict(
            rows=sample * tokens.shape[1] + predicted_at,
            targets=completions[sample, column],
            sample=sample,
            column=column,
            advantages=self.advantages[chosen],
            maskable=scored,
            lengths=lengths,
        )
        if self.old is not None and iteration:
            corruption["old"] = self.old[iteration, chosen][sample, column]
        if self.reference is not None:
            corruption["reference"] = self.reference[iteration, chosen][sample, column]
        padding = {} if bool((lengths == tokens.shape[1]).all()) else {"attention_mask": (position < lengths[:, None])}
        return {"input_ids": tokens, **{name: mask.long() for name, mask in padding.items()}, CORRUPTION: corruption}

    def save(self, path: str | Path) -> None:
        """Write them into a checkpoint."""
        torch.save(dataclasses.asdict(self), path)

    @classmethod
    def load(cls, path: str | Path) -> Rollouts:
        """What :meth:`save` wrote."""
        return cls(**torch.load(path, map_location="cpu", weights_only=True))


def lengths_to_eos(completions: Tensor, ends: Sequence[int]) -> Tensor:
    """The length of each completion up to and with its first token of `ends`, int64 [n]; all of it without one.

    Example:
        >>> lengths_to_eos(torch.tensor([[5, 2, 2], [5, 6, 7]]), [2])
        tensor([2, 3])
    """
    ended = torch.isin(completions, torch.tensor(list(ends), dtype=torch.int64))
    first = ended.int().argmax(1) + 1
    return torch.where(ended.any(1), first, completions.shape[1])
