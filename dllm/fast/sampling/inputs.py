"""The arguments of `generate`, checked before anything runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dllm.fast.model import check_positions, input_embedding
from dllm_kernels import _checks, philox
from dllm_kernels.transfer_tokens.api import MAX_WINDOW

# The model card's table and its code use different words for the same thing.
REMASKING = {
    "low_confidence": "low_confidence",
    "confidence": "low_confidence",
    "random": "random",
    "none": "none",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one call to `generate`, checked."""

    steps: int
    gen_length: int
    block_length: int
    temperature: float
    cfg_scale: float
    remasking: str

    def __post_init__(self):
        for name in ("steps", "gen_length", "block_length"):
            value = _checks.int64(name, getattr(self, name))
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
            object.__setattr__(self, name, value)
        for name in ("temperature", "cfg_scale"):
            object.__setattr__(self, name, _checks.finite_at_least_zero(name, getattr(self, name)))
        if self.block_length > MAX_WINDOW:
            raise ValueError(f"block_length must be at most {MAX_WINDOW}, got {self.block_length}")
        if self.gen_length % self.block_length:
            raise ValueError(
                f"gen_length must be a multiple of block_length, got {self.gen_length} and {self.block_length}"
            )
        if self.steps % self.blocks:
            raise ValueError(f"steps must be a multiple of the {self.blocks} blocks, got {self.steps}")
        if not isinstance(self.remasking, str) or self.remasking not in REMASKING:
            raise ValueError(f"remasking must be one of {', '.join(REMASKING)}, got {self.remasking!r}")

    @property
    def blocks(self) -> int:
        return self.gen_length // self.block_length

    @property
    def order(self) -> str:
        """What ranks the proposals: "low_confidence", "random" or "none" (all are committed at once)."""
        return REMASKING[self.remasking]

    @property
    def draws(self) -> bool:
        """Whether the call uses random numbers."""
        return self.temperature > 0 or self.order == "random"

    def transfers(self) -> list[int]:
        """Tokens committed at each step of a block: m // S, and one more at the first m mod S of S steps.

        Zeros at the end are left out: nothing more is committed in the block.
        """
        if self.order == "none":
            return [self.gen_length]  # all there are
        steps = self.steps // self.blocks
        share, rest = divmod(self.block_length, steps)
        return [share + (i < rest) for i in range(steps if share else rest)]


def check_prompt(model: nn.Module, prompt: Tensor, gen_length: int, mask_id: int) -> None:
    """Check the prompt against the model.

    Raises:
        TypeError: not a dense int64 tensor.
        ValueError: wrong rank or device, a token outside the vocabulary, or more positions than the model has.
    """
    if not isinstance(prompt, Tensor):
        raise TypeError(f"prompt must be a tensor of token ids [B, P], got {type(prompt).__name__}")
    if prompt.dtype != torch.int64:
        raise TypeError(f"prompt must be int64, got {str(prompt.dtype).removeprefix('torch.')}")
    if prompt.is_nested or prompt.layout != torch.strided:
        raise TypeError("prompt must be a dense tensor, padded on the left, got a nested or sparse one")
    if prompt.dim() != 2:
        raise ValueError(f"prompt must have shape [B, P], got {list(prompt.shape)}")
    embedding = input_embedding(model)
    # weights that accelerate keeps elsewhere are "meta" until its hooks bring them; those move the prompt too
    if prompt.device != embedding.device and embedding.device.type != "meta":
        raise ValueError(f"prompt must be on the model's device {embedding.device}, got {prompt.device}")
    vocab_size = embedding.shape[0]
    if not 0 <= mask_id < vocab_size:
        raise ValueError(f"the mask token must lie in the vocabulary of {vocab_size} tokens, got {mask_id}")
    if prompt.numel():
        lowest, highest = int(prompt.min()), int(prompt.max())
        if lowest < 0 or highest >= vocab_size:
            raise ValueError(f"prompt tokens must lie in [0, {vocab_size}), got {lowest if lowest < 0 else highest}")
    check_positions(model, prompt.shape[1] + gen_length, "prompt and gen_length must fit")


def check_no_masks(prompt: Tensor, lengths: Tensor, mask_id: int) -> None:
    """Check that no real token of the left-padded prompts [B, P] is the mask token; `lengths` [B] of them are real.

    Raises:
        ValueError: one is.
    """
    real = torch.arange(prompt.shape[1], device=prompt.device) >= (prompt.shape[1] - lengths)[:, None]
    if bool(((prompt == mask_id) & real).any()):
        raise ValueError(
            f"prompt must not contain the mask token {mask_id}: generate only appends; "
            "to fill masks inside a text use a sampler's infill"
        )


def check_eos(model: nn.Module, eos_token_id: object, mask_id: int) -> int | None:
    """The end-of-text token, checked.

    Raises:
        TypeError: neither None nor an integer.
        ValueError: outside the vocabulary, or the mask token.
    """
    if eos_token_id is None:
        return None
    eos_token_id = _checks.int64("eos_token_id", eos_token_id)
    vocab_size = len(input_embedding(model))
    if not 0 <= eos_token_id < vocab_size:
        raise ValueError(f"eos_token_id must lie in the vocabulary of {vocab_size} tokens, got {eos_token_id}")
    if eos_token_id == mask_id:
        raise ValueError(f"eos_token_id must differ from the mask token, got {mask_id} for both")
    return eos_token_id


def prompt_lengths(prompt: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Real tokens of each row, int64 [B], of left-padded prompts.

    Raises:
        TypeError, ValueError: the mask is no left padding of this prompt.
    """
    batch, columns = prompt.shape
    if attention_mask is None:
        return torch.full((batch,), columns, device=prompt.device)
    if not isinstance(attention_mask, Tensor):
        raise TypeError(f"attention_mask must be a tensor, got {type(attention_mask).__name__}")
    if attention_mask.is_complex():
        raise TypeError("attention_mask must be a tensor of real numbers, got complex ones")
    if attention_mask.shape != prompt.shape:
        raise ValueError(
            f"attention_mask must have the prompt's shape {list(prompt.shape)}, got {list(attention_mask.shape)}"
        )
    if attention_mask.device != prompt.device:
        raise ValueError(f"attention_mask must be on {prompt.device}, got {attention_mask.device}")
    real = attention_mask != 0
    if bool((real != (attention_mask == 1)).any()):
        raise ValueError("attention_mask must hold 0 and 1 only")
    if bool((real[:, :-1] & ~real[:, 1:]).any()):
        raise ValueError("attention_mask must be left padding: in each row zeros, then ones")
    return real.sum(1)


def row_seeds(seed: int | list[int] | Tensor | None, batch: int, device: torch.device) -> Tensor:
    """int64 [B]: an int s gives row i the seed s + i, None draws s from torch's generator, B integers stay as given.

    Raises:
        TypeError, ValueError: neither None, an integer, nor B integers of 64 bits.
    """
    if seed is None:
        seed = int(torch.randint(2**63 - 1, (), device="cpu"))
    if isinstance(seed, Tensor):
        if seed.is_floating_point() or seed.is_complex() or seed.dtype == torch.bool:
            raise TypeError(f"seed must hold integers, got {str(seed.dtype).removeprefix('torch.')}")
        if seed.device.type == "meta":
            raise ValueError("seed must hold numbers, got a tensor on meta")
        seed = seed.tolist()
    if isinstance(seed, (list, tuple)):
        if len(seed) != batch:
            raise ValueError(f"seed must be one integer or one per row, got {len(seed)} for {batch} rows")
        seeds = [philox.as_int64(s) for s in seed]
    else:
        first = philox.as_int64(seed)
        seeds = [philox.as_int64((first + i) % 2**64) for i in range(batch)]
    return torch.tensor(seeds, dtype=torch.int64, device=device)
