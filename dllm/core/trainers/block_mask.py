"""Who sees whom when blocks are denoised side by side, x_t and x_0 in one row, and how a model is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from dllm.fast.head.tap import logits_of
from dllm.fast.model import evaluation_mode, input_embedding, unwrapped
from dllm.fast.visibility import probe_rows, rounding_error

ATTENTION = ("eager", "sdpa")


def block_mask(
    length: int, block_size: int, *, device: torch.device | str = "cpu", attention_mask: Tensor | None = None
) -> Tensor:
    """bool [B or 1, 2 L, 2 L]: which key (last dimension) a query sees in a row [x_t ; x_0] of two halves of L tokens.

    Query q sees key k if both are in the same block of the same half, or if k is in x_0 and its block is an earlier
    one. So a block of x_t sees itself and what came before it without noise: what a sampler that goes from block to
    block will have in front of it. Of padded rows nothing else sees the padding; each token of it sees itself, since a
    softmax over nothing is undefined.

    Args:
        length: L.
        block_size: tokens of a block; the last may be shorter.
        device: of the mask. Nothing there is waited for.
        attention_mask: [B, L], 0 where a row is padded; None where no row is.

    Source: BD3-LM (arXiv:2503.09573).

    Example:
        >>> block_mask(2, 1).int()
        tensor([[[1, 0, 0, 0],
                 [0, 1, 1, 0],
                 [0, 0, 1, 0],
                 [0, 0, 1, 1]]], dtype=torch.int32)
    """
    place = torch.arange(2 * length, device=device)
    block, clean = place % length // block_size, place >= length
    same = (block[:, None] == block) & (clean[:, None] == clean)
    seen = (same | (clean & (block[:, None] > block)))[None]
    if attention_mask is None:
        return seen
    real = (attention_mask != 0).repeat(1, 2)
    return seen & real[:, None, :] | torch.eye(2 * length, dtype=torch.bool, device=device)


@dataclass(frozen=True, slots=True)
class BlockInputs:
    """What a model is called with so that rows [x_t ; x_0] are seen block by block.

    rank: of the mask: 4, or 3 where the model gives it the dimension of heads itself.
    additive: the mask is 0 and -inf, to be added to scores, instead of True and False.
    window: local layers see so far to either side; None where all layers see everything, and share one mask.
    first_position: the number of a text's first position.
    token_types: the model has types of tokens; all are of type 0 where the batch names none.
    """

    rank: int = 4
    additive: bool = False
    window: int | None = None
    first_position: int = 0
    token_types: bool = False

    @classmethod
    def of(cls, model: nn.Module) -> BlockInputs:
        """As the model's family and the installed transformers take it.

        Raises:
            ValueError: an attention other than sdpa and eager, ModernBERT under transformers 4, local layers of a
                family whose masks are not known.

        Example:
            >>> from transformers import RobertaConfig, RobertaForMaskedLM
            >>> tiny = dict(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8)
            >>> BlockInputs.of(RobertaForMaskedLM(RobertaConfig(**tiny, pad_token_id=1))).first_position
            2
        """
        model = unwrapped(model)
        config = getattr(model, "config", None)
        attention = getattr(config, "_attn_implementation", None) or "sdpa"
        if attention not in ATTENTION:
            raise ValueError(
                f"block diffusion needs attn_implementation {' or '.join(ATTENTION)}, whose masks say who sees whom, "
                f"got {attention!r}"
            )
        three = _encodes_under_transformers_4(model)
        return cls(
            rank=3 if three else 4,
            additive=attention == "eager" and not three,
            window=_window(config),
            first_position=_first_position(model),
            token_types=bool(getattr(config, "type_vocab_size", 0)),
        )

    def __call__(
        self, tokens: Tensor, block_size: int, *, dtype: torch.dtype, attention_mask: Tensor | None = None
    ) -> dict[str, Any]:
        """The model's inputs besides those that the batch has.

        Args:
            tokens: int64 [B, 2 L].
            block_size: tokens of a block.
            dtype: of the model, for additive masks.
            attention_mask: [B, L], 0 where a row is padded.
        """
        length = tokens.shape[1] // 2
        place = torch.arange(2 * length, device=tokens.device)[None] % length
        seen = block_mask(length, block_size, device=tokens.device, attention_mask=attention_mask)
        mask = self._as_taken(seen, dtype)
        if self.window is not None:
            near = (place[0, :, None] - place[0]).abs() <= self.window
            mask = {"full_attention": mask, "sliding_attention": self._as_taken(seen & near, dtype)}
        inputs = {"attention_mask": mask, "position_ids": place + self.first_position}
        return inputs | ({"token_type_ids": torch.zeros_like(tokens)} if self.token_types else {})

    def _as_taken(self, seen: Tensor, dtype: torch.dtype) -> Tensor:
        if self.rank == 4:
            seen = seen[:, None]
        if self.additive:
            return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, -torch.inf)
        return seen


@torch.no_grad()
def check_sees_blocks(model: nn.Module, block_inputs: BlockInputs) -> None:
    """Try on a few tokens whether the model sees exactly what it is shown, at the positions that it is told.

    A position sees another if another token there changes its logits. One that sees too much would learn to copy the
    answer and be useless in sampling, and nothing else would tell.

    Args:
        model: wrapped or not; under FSDP every rank calls this.
        block_inputs: how the model is told.

    Raises:
        ValueError: it sees more, or less, or numbers its positions otherwise.
        TypeError: its forward does not take the inputs.
    """
    inner = unwrapped(model)
    weight = input_embedding(inner)
    eager = getattr(model, "_orig_mod", model)  # not to be compiled for these few tokens
    text, others = (torch.tensor(row, device=weight.device) for row in probe_rows(inner))
    if (length := len(text)) < 2:
        return
    block_size = length // 2
    same = text.repeat(2).expand(2 * length, -1)  # x_t = x_0
    other = same.clone()
    other.diagonal().copy_(others.repeat(2))  # row i: another token at i
    inputs = block_inputs(same, block_size, dtype=weight.dtype)
    with evaluation_mode(inner):
        before, after = (logits_of(eager(input_ids=tokens, **inputs)) for tokens in (same, other))
    name = type(inner).__name__
    # same shapes and same rows: what is not seen leaves every bit as it was
    sees = (before != after).any(-1).T
    wrong = (sees != block_mask(length, block_size, device=sees.device)[0]).nonzero().tolist()
    if wrong:
        query, key = wrong[0]
        found = "sees" if sees[query, key] else "does not see"
        raise ValueError(
            f"block diffusion needs a model that sees what attention_mask shows it and nothing else; of [x_t ; x_0] "
            f"with {length} tokens each, in blocks of {block_size}, position {query} of {name} {found} {key}"
        )
    # where x_t = x_0 both halves are the same text in the same context; they differ by rounding, far from its root
    halves = before[0].double().chunk(2)
    apart = (halves[0] - halves[1]).abs().max()
    if not bool(apart <= rounding_error(inner, before) ** 0.5 * before.abs().max()):
        raise ValueError(
            f"block diffusion needs a model that takes position_ids: both halves of [x_t ; x_0] have the same; where "
            f"x_t = x_0, logits of {name} differ by {float(apart):.3g}"
        )


def _encodes_under_transformers_4(model: nn.Module) -> bool:
    """Encoders there add the dimension of heads to masks themselves; decoders let those of four dimensions pass."""
    can_generate: Callable[[], bool] = getattr(model, "can_generate", lambda: True)
    return transformers.__version__.startswith("4.") and not can_generate()


def _window(config: Any) -> int | None:
    if getattr(config, "model_type", None) == "modernbert":
        if transformers.__version__.startswith("4."):
            raise ValueError(
                f"block diffusion with ModernBERT needs transformers 5, whose forward takes masks of query and key, "
                f"got {transformers.__version__}"
            )
        return config.local_attention // 2
    kinds = getattr(config, "layer_types", None) or ()
    local = [layer for layer, kind in enumerate(kinds) if kind != "full_attention"]
    if local:
        raise ValueError(f"block diffusion needs layers that attend to everything, got a window in layers {local}")
    return None


def _first_position(model: nn.Module) -> int:
    """RoBERTa-like models number positions from padding_idx + 1 on."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0
