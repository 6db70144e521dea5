"""Collators of Edit Flows: pairs of what a sample begins from and the sample, and the way between them at a time t."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dllm.core.edits import edit_weight, noised_columns, remaining_edits, rows_of, without_blanks
from dllm.core.trainers.batches import CORRUPTION, check_draws, check_fits
from dllm.core.trainers.collator import MDLMCollator
from dllm.data.spec import parse_spec
from dllm_kernels import align_tokens, philox

# Given the tokens of x_1 behind its prompt, those of x_0 behind the same prompt.
X0Sampler = Callable[[Sequence[int]], Sequence[int]]


def make_x0_sampler(spec: str, mask_id: int | None) -> X0Sampler:
    """What samples begin from, by its name: "empty" for nothing, "masks[length:128]" for so many mask tokens.

    Args:
        spec: the name; `length` is 128 if it is not given.
        mask_id: the mask token; None if there is none.

    Raises:
        ValueError: an unknown name or setting, a length below 1, or no mask token where masks are wanted.

    Example:
        >>> make_x0_sampler("masks[length:3]", mask_id=9)([5, 6])
        [9, 9, 9]
    """
    name, settings = parse_spec(spec)
    if name == "empty" and not settings:
        return lambda answer: []
    length = settings.pop("length", 128) if name == "masks" else None
    if name != "masks" or settings or not isinstance(length, int) or length < 1:
        raise ValueError(f"x0_sampler must be empty or masks[length:128], with a length of at least 1, got {spec!r}")
    if mask_id is None:
        raise ValueError("x0_sampler masks needs a tokenizer with a mask token")
    return lambda answer: [mask_id] * length


@dataclass
class EditFlowCollator:
    """Collates samples to pairs (x_0, x_1): x_1 is the sample, x_0 its prompt and what is edited to become the answer.

    A sample's prompt is its first `prompt_len` tokens. Without `prompt_len` it is BOS alone, which is put first if it
    is not there.

    Args:
        tokenizer: has `mask_token_id` and `bos_token_id`.
        x0_sampler: a name that :func:`make_x0_sampler` knows, or a function (answer tokens) -> tokens.

    A batch is `x0_ids` and `x1_ids`, lists of lists of token ids.

    Raises:
        ValueError: as :func:`make_x0_sampler`. In a call: `prompt_len` exceeds the sample; or there is neither a prompt
            nor a BOS token.

    Source: the names are those of dLLM 0.1.

    Example:
        >>> from types import SimpleNamespace
        >>> collate = EditFlowCollator(SimpleNamespace(mask_token_id=3, bos_token_id=1), "masks[length:2]")
        >>> collate([{"input_ids": [5, 6, 7], "prompt_len": 2}, {"input_ids": [8]}])
        {'x0_ids': [[5, 6, 3, 3], [1, 3, 3]], 'x1_ids': [[5, 6, 7], [1, 8]]}
    """

    tokenizer: Any
    x0_sampler: str | X0Sampler = "masks[length:128]"
    _sample_x0: X0Sampler = field(init=False, repr=False)

    def __post_init__(self):
        mask_id = getattr(self.tokenizer, "mask_token_id", None)
        named = isinstance(self.x0_sampler, str)
        self._sample_x0 = make_x0_sampler(self.x0_sampler, mask_id) if named else self.x0_sampler

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, list[list[int]]]:
        pairs = [self._pair(number, sample) for number, sample in enumerate(samples)]
        return {"x0_ids": [x0 for x0, _ in pairs], "x1_ids": [x1 for _, x1 in pairs]}

    def _pair(self, number: int, sample: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        tokens, prompt = [int(token) for token in sample["input_ids"]], int(sample.get("prompt_len") or 0)
        if not 0 <= prompt <= len(tokens):
            raise ValueError(f"prompt_len must lie in [0, {len(tokens)}] in sample {number} of a batch, got {prompt}")
        if prompt == 0:
            bos = getattr(self.tokenizer, "bos_token_id", None)
            if bos is None:
                raise ValueError(f"sample {number} of a batch must have a prompt_len, as there is no BOS token")
            prompt, tokens = 1, tokens if tokens[:1] == [bos] else [bos, *tokens]
        return [*tokens[:prompt], *map(int, self._sample_x0(tokens[prompt:]))], tokens


@dataclass(kw_only=True)
class EditCorruptingCollator(MDLMCollator):
    """Makes pairs by `base`, then texts x_t between x_0 and x_1, with the edits that are left.

    Each pair is aligned with the fewest edits. A column of the alignment shows x_1 with probability kappa(t) of its
    sample, else x_0 (:mod:`dllm.core.edits`). Draws are those of the run's seed, the tokens of x_1 and the epoch, as
    of :class:`~dllm.core.trainers.collator.MDLMCollator`.

    Args:
        base: a collator that gives `x0_ids` and `x1_ids`; perhaps `times`, float32 [B], and `seeds`, int64 [B].
        max_weight: the largest w(t).
        others: as of MDLMCollator; `scheduler` is kappa(t), and masks play no part.

    A batch has `input_ids` [B, L], x_t; `attention_mask`, if a row is padded; and "corruption":
        sub_rows, del_rows, ins_rows, sub_targets, ins_targets: as :class:`~dllm.fast.training.edit_loss.EditTargets`.
        rows: int64 [E], those of sub_rows and ins_rows, whose edits have a token.
        weight: float32 [B], w(t).
        maskable: int64 [B], tokens of x_1.
        lengths: int64 [B], tokens of x_t.

    Raises:
        TypeError, ValueError: the base collator gives no pairs; a token is outside the vocabulary; an x_1 or x_t has
            more tokens than positions; an x_t is empty, because x_0 and x_1 have no token in common to begin with.

    Example:
        >>> from dllm.core.schedulers import LinearKappaScheduler
        >>> def pairs(samples):
        ...     return {"x0_ids": [[1, 3]] * len(samples), "x1_ids": samples}
        >>> collate = EditCorruptingCollator(
        ...     base=pairs, scheduler=LinearKappaScheduler(), mask_id=3, pad_id=0, vocab_size=10, seed=0, low=0,
        ...     high=1e-6,
        ... )
        >>> batch = collate([[1, 7, 8]])
        >>> batch["input_ids"], batch["corruption"]["ins_targets"], batch["corruption"]["sub_targets"]
        (tensor([[1, 3]]), tensor([7]), tensor([8]))
    """

    max_weight: float = 20.0

    def clean(self, samples: Sequence[Any]) -> dict[str, Any]:
        """The pairs, not corrupted."""
        batch = dict(self.base(samples))
        if not ("x0_ids" in batch and "x1_ids" in batch):
            raise TypeError(
                f"data_collator must give x0_ids and x1_ids, as EditFlowCollator does, got {', '.join(batch)}"
            )
        return batch

    def corrupt(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """x_t of pairs on the CPU, as :meth:`clean` gives them, with the edits that are left."""
        (x0, x0_length), (x1, x1_length) = (self._stacked(name, batch[name]) for name in ("x0_ids", "x1_ids"))
        times, seeds = batch.get("times"), batch.get("seeds")
        check_draws(times, seeds, len(x1))
        seeds = philox.sample_seeds(x1, x1_length, self.seed) if seeds is None else seeds
        times = self._times(seeds, x1.shape[1]) if times is None else times
        aligned = align_tokens(x0, x0_length, x1, x1_length)
        zt = noised_columns(aligned, times, seeds=seeds, epoch=self._draw_number, scheduler=self.scheduler)
        tokens, lengths = without_blanks(zt, self.pad_id or 0)
        if not bool((lengths > 0).all()):
            row = int((lengths == 0).nonzero()[0])
            raise ValueError(f"x_0 and x_1 must begin with a common token, BOS or a prompt; x_t is empty in row {row}")
        check_fits(tokens, None, self.positions)
        rows = rows_of(remaining_edits(zt, aligned.z1), tokens.shape[1])
        with_token = torch.cat([rows["sub_rows"], rows["ins_rows"]])
        weight = edit_weight(self.scheduler, times, self.max_weight).float()
        counts = dict(weight=weight, maskable=x1_length, lengths=lengths)
        self._batch_count += 1
        real = torch.arange(tokens.shape[1]) < lengths[:, None]
        padding = {} if bool(real.all()) else {"attention_mask": real.long()}
        return {"input_ids": tokens, **padding, CORRUPTION: rows | counts | dict(rows=with_token)}

    def _stacked(self, name: str, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Rows as a tensor [B, L] with their lengths, checked against the vocabulary and the positions."""
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = torch.as_tensor(row, dtype=torch.int64)
        outside = (tokens < 0) | (tokens >= self.vocab_size)
        if bool(outside.any()):
            row, position = outside.nonzero()[0].tolist()
            raise ValueError(
                f"{name} must lie in the vocabulary [0, {self.vocab_size}), got {int(tokens[row, position])} at row "
                f"{row}, position {position}"
            )
        check_fits(tokens, None, self.positions)
        return tokens, lengths
