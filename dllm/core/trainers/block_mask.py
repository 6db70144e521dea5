"""The attention mask of block diffusion over rows [x_t ; x_0], in the form that a model takes, and its check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from dllm.fast.head.split import logits_of
from dllm.fast.model import evaluation_mode, input_embedding, unwrapped
from dllm.fast.visibility import probe_rows, rounding_error

ATTENTION = ("eager", "sdpa")


def block_mask(
    length: int, block_size: int, *, device: torch.device | str = "cpu", attention_mask: Tensor | None = None
) -> Tensor:
    """The attention mask of rows [x_t ; x_0], bool [B or 1, 2 L, 2 L]: queries, then keys.

    Query q attends to key k if both are in the same block of the same half, or if k is in x_0 and in an earlier block.
    So a block of x_t attends to itself and to the clean text before it, which is its context in sampling. No token
    attends to padding, but padding attends to itself, because a softmax over no key is undefined.

    Args:
        length: L.
        block_size: tokens of a block; the last may be shorter.
        device: of the mask. The host does not wait for it.
        attention_mask: [B, L], 0 where a row is padded; None where no row is.

    Source: BD3-LM (arXiv:2503.09573).

    Example:
        >>> block_mask(2, 1).int()
        tensor([[[1, 0, 0, 0],
                 [0, 1, 1, 0],
                 [0, 0, 1, 0],
                 [0, 0, 1, 1]]], dtype=torch.int32)
    """
    column = torch.arange(2 * length, device=device)
    block, clean = column % length // block_size, column >= length
    same = (block[:, None] == block) & (clean[:, None] == clean)
    visible = (same | (clean & (block[:, None] > block)))[None]
    if attention_mask is None:
        return visible
    real = (attention_mask != 0).repeat(1, 2)
    return visible & real[:, None, :] | torch.eye(2 * length, dtype=torch.bool, device=device)


@dataclass(frozen=True, slots=True)
class BlockInputs:
    """Makes the model inputs for rows [x_t ; x_0]: block mask, position ids, token types.

    rank: dimensions of the mask: 4, or 3 where the model itself adds the dimension of heads.
    additive: the mask is 0 and -inf, to be added to scores, instead of True and False.
    window: reach of local layers to either side; None where all layers attend to everything and share one mask.
    first_position: position id of a text's first token.
    token_types: the model takes `token_type_ids`; they are 0 unless the batch gives them.
    """

    rank: int = 4
    additive: bool = False
    window: int | None = None
    first_position: int = 0
    token_types: bool = False

    @classmethod
    def of(cls, model: nn.Module) -> BlockInputs:
        """The inputs that this model takes under the installed transformers.

        Raises:
            ValueError: the attention is not sdpa or eager; ModernBERT under transformers 4; a family with local layers
                that is not supported.

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
                f"block diffusion needs attn_implementation {' or '.join(ATTENTION)}, which take masks of queries and "
                f"keys, got {attention!r}"
            )
        adds_heads = _is_encoder_of_transformers_4(model)
        return cls(
            rank=3 if adds_heads else 4,
            additive=attention == "eager" and not adds_heads,
            window=_window(config),
            first_position=_first_position(model),
            token_types=bool(getattr(config, "type_vocab_size", 0)),
        )

    def __call__(
        self, tokens: Tensor, block_size: int, *, dtype: torch.dtype, attention_mask: Tensor | None = None
    ) -> dict[str, Any]:
        """The inputs to add to those of the batch.

        Args:
            tokens: int64 [B, 2 L].
            block_size: tokens of a block.
            dtype: of the model, for additive masks.
            attention_mask: [B, L], 0 where a row is padded.
        """
        length = tokens.shape[1] // 2
        position = torch.arange(2 * length, device=tokens.device)[None] % length
        visible = block_mask(length, block_size, device=tokens.device, attention_mask=attention_mask)
        mask = self._in_model_format(visible, dtype)
        if self.window is not None:
            near = (position[0, :, None] - position[0]).abs() <= self.window
            mask = {"full_attention": mask, "sliding_attention": self._in_model_format(visible & near, dtype)}
        inputs = {"attention_mask": mask, "position_ids": position + self.first_position}
        return inputs | ({"token_type_ids": torch.zeros_like(tokens)} if self.token_types else {})

    def _in_model_format(self, visible: Tensor, dtype: torch.dtype) -> Tensor:
        if self.rank == 4:
            visible = visible[:, None]
        if self.additive:
            return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, -torch.inf)
        return visible


@torch.no_grad()
def check_sees_blocks(model: nn.Module, block_inputs: BlockInputs) -> None:
    """Check on a few tokens that the model follows the block mask and the position ids.

    A query attends to a key if another token at the key changes the query's logits. A model that attends to more than
    the mask allows would learn to copy the answer, and its training loss would not show that.

    Args:
        model: wrapped or not; under FSDP every rank calls this.
        block_inputs: the inputs of the model.

    Raises:
        ValueError: the model attends to more or less than the mask says, or ignores the position ids.
        TypeError: its forward does not take the inputs.
    """
    inner = unwrapped(model)
    weight = input_embedding(inner)
    eager = getattr(model, "_orig_mod", model)  # do not compile for these few tokens
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
    # With equal shapes and row order, a key that is not attended to leaves every bit of the logits unchanged.
    sees = (before != after).any(-1).T
    wrong = (sees != block_mask(length, block_size, device=sees.device)[0]).nonzero().tolist()
    if wrong:
        query, key = wrong[0]
        found = "sees" if sees[query, key] else "does not see"
        raise ValueError(
            f"block diffusion needs a model that sees what attention_mask shows it and nothing else; of [x_t ; x_0] "
            f"with {length} tokens each, in blocks of {block_size}, position {query} of {name} {found} {key}"
        )
    # Where x_t = x_0, both halves are the same text in the same context. Their logits then differ by rounding only.
    # The bound, the root of the rounding error, is far above that and far below the effect of other positions.
    halves = before[0].double().chunk(2)
    apart = (halves[0] - halves[1]).abs().max()
    if not bool(apart <= rounding_error(inner, before) ** 0.5 * before.abs().max()):
        raise ValueError(
            f"block diffusion needs a model that takes position_ids: both halves of [x_t ; x_0] have the same; where "
            f"x_t = x_0, logits of {name} differ by {float(apart):.3g}"
        )


def _is_encoder_of_transformers_4(model: nn.Module) -> bool:
    """Whether the model adds the dimension of heads to masks itself, as encoders of transformers 4 do."""
    can_generate: Callable[[], bool] = getattr(model, "can_generate", lambda: True)
    return transformers.__version__.startswith("4.") and not can_generate()


def _window(config: Any) -> int | None:
    """How far local layers reach to either side; None if there are none."""
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
    """The position id of a text's first token: padding_idx + 1 in RoBERTa-like models, else 0."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0
