"""The baseline: the sampling loop that model cards of masked-diffusion language models print.

Each step runs the model and its head on the whole canvas, adds float64 Gumbel noise to every logit, takes argmax,
softmax and gather over all positions, and commits the proposals of highest confidence in a Python loop over the rows
with one ``topk`` each. It is not tuned: it is what a user of a model card runs.

`noise` is the source of random numbers: :class:`TorchNoise` draws as the cards do, :class:`PhiloxNoise` as
``dllm_kernels`` does, so that ``dllm.fast.generate`` can be checked token for token at any temperature.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

REMASKING = {"low_confidence": "low_confidence", "confidence": "low_confidence", "random": "random"}


class Noise(Protocol):
    """The source of a loop's random numbers."""

    def choose(self, logits: Tensor, temperature: float, masked: Tensor, step: int) -> Tensor:
        """A token for each `masked` position, drawn from softmax(logits / temperature); the argmax at temperature 0."""

    def draw(self, logits: Tensor, masked: Tensor, step: int) -> Tensor:
        """Tokens [N] drawn from softmax(logits); logits [N, V] are those of the N `masked` positions, in order."""

    def random_confidence(self, masked: Tensor, step: int) -> Tensor:
        """A uniform number in (0, 1) for each position."""

    def place(self, masked: Tensor, step: int) -> Tensor:
        """Gumbel noise for each position: the k largest c + noise are k draws from softmax(c) without replacement."""

    def beginning_at(self, column: int) -> Noise:
        """The same noise for calls that hand in only the columns of the canvas from `column` on."""


class TorchNoise:
    """Noise of torch's generator.

    `choose` is the argmax of exp(l) / (-ln u)^T in float64 at every position, `draw` a multinomial draw.
    """

    def choose(self, logits: Tensor, temperature: float, masked: Tensor, step: int) -> Tensor:
        if temperature == 0:
            return logits.argmax(dim=-1)
        logits = logits.to(torch.float64)
        exponential = (-torch.log(torch.rand_like(logits))) ** temperature
        return (logits.exp() / exponential).argmax(dim=-1)

    def draw(self, logits: Tensor, masked: Tensor, step: int) -> Tensor:
        return torch.multinomial(logits.softmax(dim=-1), num_samples=1)[:, 0]

    def random_confidence(self, masked: Tensor, step: int) -> Tensor:
        return torch.rand(masked.shape, device=masked.device)

    def place(self, masked: Tensor, step: int) -> Tensor:
        return -torch.log(-torch.log(torch.rand(masked.shape, device=masked.device, dtype=torch.float64)))

    def beginning_at(self, column: int) -> TorchNoise:
        return self


class PhiloxNoise:
    """The draw and the noise of ``dllm_kernels``, only for positions that can be committed.

    Args:
        seeds: one for each row.
        padding: columns of padding on the left of each row; positions are counted from a row's first token.
        rows_at_once: rows drawn at a time.
    """

    def __init__(self, seeds: list[int], padding: list[int] | None = None, rows_at_once: int = 32):
        self.seeds = torch.tensor(seeds)
        self.padding = torch.tensor(padding or [0] * len(seeds))
        self.rows_at_once = rows_at_once

    def choose(self, logits: Tensor, temperature: float, masked: Tensor, step: int) -> Tensor:
        if temperature == 0:
            return logits.argmax(dim=-1)
        tokens = torch.zeros(masked.shape, dtype=torch.int64, device=logits.device)
        tokens[masked] = self.draw(logits[masked], masked, step, temperature)
        return tokens

    def draw(self, logits: Tensor, masked: Tensor, step: int, temperature: float = 1.0) -> Tensor:
        from dllm_kernels.draw import draw

        row, column = masked.nonzero(as_tuple=True)
        seeds, positions = self.seeds.to(row.device)[row], column - self.padding.to(row.device)[row]
        steps, tokens = torch.tensor([step], device=row.device), []
        for part in torch.arange(len(row), device=row.device).split(self.rows_at_once):
            tokens.append(draw(logits[part], temperature, seeds[part], positions[part], steps))
        return torch.cat(tokens) if tokens else row

    def random_confidence(self, masked: Tensor, step: int) -> Tensor:
        from dllm_kernels import philox

        seeds, positions, steps = self._places(masked, step)
        return philox.uniform(seeds, positions, steps, philox.RANDOM_CONFIDENCE)

    def place(self, masked: Tensor, step: int) -> Tensor:
        from dllm_kernels import philox

        seeds, positions, steps = self._places(masked, step)
        first, second, *_ = philox.words(seeds, torch.zeros_like(seeds), positions, steps, philox.RANDOM_CONFIDENCE)
        return philox.gumbel_from_words(first, second)

    def beginning_at(self, column: int) -> PhiloxNoise:
        padding = [own - column for own in self.padding.tolist()]
        return PhiloxNoise(self.seeds.tolist(), padding, self.rows_at_once)

    def _places(self, masked: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Seeds [B, 1], positions [B, L] and step [] of every position's random number."""
        seeds, padding = (numbers.to(masked.device)[:, None] for numbers in (self.seeds, self.padding))
        positions = torch.arange(masked.shape[1], device=masked.device) - padding
        return seeds, positions, torch.tensor(step, device=masked.device)


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt: Tensor,
    steps: int = 128,
    gen_length: int = 128,
    block_length: int = 64,
    temperature: float = 0.0,
    cfg_scale: float = 0.0,
    remasking: str = "random",
    *,
    mask_id: int,
    noise: Noise | None = None,
    mark: Callable[[str], None] = lambda part: None,
) -> Tensor:
    """Complete `prompt` with the model card's loop.

    Args:
        model: called as ``model(canvas).logits``, [B, L, V].
        prompt: int64 [B, P].
        steps, gen_length, block_length, temperature, cfg_scale, remasking: as on the model card; `remasking` is
            "low_confidence" (or "confidence") or "random".
        mask_id: the mask token.
        noise: the source of random numbers; None: :class:`TorchNoise`.
        mark: called with "head" after the forward pass and the choice of tokens, with "transfer" after the commit.

    Returns:
        int64 [B, P + gen_length].

    Raises:
        ValueError: lengths or steps do not divide, or `remasking` is unknown.
    """
    if gen_length % block_length or steps % (gen_length // block_length):
        raise ValueError(f"gen {gen_length}, block {block_length}, steps {steps}: blocks must divide gen and steps")
    if remasking not in REMASKING:
        raise ValueError(f"remasking must be one of {', '.join(REMASKING)}, got {remasking!r}")
    noise = noise or TorchNoise()
    batch, prompt_length = prompt.shape
    canvas = torch.full((batch, prompt_length + gen_length), mask_id, dtype=torch.int64, device=prompt.device)
    canvas[:, :prompt_length] = prompt
    given = canvas != mask_id
    blocks = gen_length // block_length
    for block in range(blocks):
        block_start = prompt_length + block * block_length
        block_end = block_start + block_length
        left_of_end = torch.arange(canvas.shape[1], device=canvas.device) < block_end
        counts = transfer_counts(canvas[:, block_start:block_end] == mask_id, steps // blocks)
        for step in range(steps // blocks):
            masked = canvas == mask_id
            logits = guided_logits(model, canvas, given, mask_id, cfg_scale)
            tokens = noise.choose(logits, temperature, masked & left_of_end, step)
            if REMASKING[remasking] == "low_confidence":
                confidence = token_probability(logits, tokens)
            else:
                confidence = noise.random_confidence(masked, step)
            mark("head")
            confidence[:, block_end:] = -torch.inf
            confidence = torch.where(masked, confidence, -torch.inf)
            transfer(canvas, torch.where(masked, tokens, canvas), confidence, counts[:, step])
            mark("transfer")
    return canvas


def guided_logits(
    model: nn.Module,
    canvas: Tensor,
    given: Tensor,
    mask_id: int,
    cfg_scale: float,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Logits of the whole canvas; with guidance u + (s + 1)(c - u), where u comes from a canvas with its prompt masked.

    `attention_mask`: [B, L], passed to the model; None: no row is padded.
    """
    padding = {} if attention_mask is None else {"attention_mask": attention_mask}
    if cfg_scale == 0:
        return model(canvas, **padding).logits
    unconditional = torch.where(given, mask_id, canvas)
    twice = {name: torch.cat([mask, mask]) for name, mask in padding.items()}
    conditional, unconditional = model(torch.cat([canvas, unconditional]), **twice).logits.chunk(2)
    return unconditional + (cfg_scale + 1) * (conditional - unconditional)


def token_probability(logits: Tensor, tokens: Tensor) -> Tensor:
    """Probability of each token under the softmax of the raw logits."""
    return logits.softmax(dim=-1).gather(-1, tokens[..., None])[..., 0]


def transfer_counts(masked: Tensor, steps: int) -> Tensor:
    """Tokens that each step commits in each row, [B, steps]: the masks divided evenly, the first steps get one more.

    Example:
        >>> transfer_counts(torch.ones(1, 10, dtype=torch.bool), 4)
        tensor([[3, 3, 2, 2]])
    """
    total = masked.sum(dim=1, keepdim=True)
    return total // steps + (torch.arange(steps, device=masked.device) < total % steps)


def transfer(canvas: Tensor, proposals: Tensor, confidence: Tensor, counts: Tensor) -> None:
    """Commit in each row of `canvas` the `counts` proposals of highest confidence."""
    chosen = torch.zeros_like(canvas, dtype=torch.bool)
    for row in range(len(canvas)):
        _, highest = torch.topk(confidence[row], k=counts[row])
        chosen[row, highest] = True
    canvas[chosen] = proposals[chosen]
