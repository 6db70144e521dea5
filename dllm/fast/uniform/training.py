"""The loss of uniform diffusion for DiffusionGemma: a canvas behind its clean context, self-conditioned in two passes.

One call of the model runs its encoder over the clean text, which gives the context of the canvas and the next-token
loss, then the decoder over the corrupted canvas, perhaps twice: the first time without gradient, for the embedding that
each position expects. The logits of a canvas, [B, L, V], never exist. Both losses are one call of
:func:`dllm_kernels.linear_cross_entropy` on the tied head, and the first pass is one of
:func:`dllm_kernels.linear_expected_embedding`.

All of it happens inside the model's own forward, under the wrappers of DDP, autocast and peft, and the loss
leaves through the model's own output, as they expect of a tensor that is differentiated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dllm.fast.deferred import no_deferral
from dllm.fast.head.interception import replaced_forward
from dllm.fast.model import logits_of
from dllm.fast.training.dropout import fast_dropout
from dllm.fast.training.loss import with_exact_value
from dllm.fast.uniform.model import DiffusionGemma
from dllm_kernels import linear_cross_entropy, linear_expected_embedding


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvases:
    """Corrupted canvases behind clean texts.

    tokens: int64 [B, S], the clean texts, each from column 0 on; what stands behind a text is not seen.
    canvas: int64 [B, L], corrupted.
    begin: int64 [B], the column of `tokens` before which the context of a canvas ends. It is the position of the
        canvas's first token.
    conditioned: int64 [C], the rows that are told what the first pass expects. The others are told zero, exactly.
    """

    tokens: Tensor
    canvas: Tensor
    begin: Tensor
    conditioned: Tensor


class Targets(NamedTuple):
    """What positions should have predicted.

    rows: int64 [N], index b L + p of positions of canvases, or b S + p of texts.
    targets: int64 [N], tokens.
    row_weight: float32 [N], with all normalisers.
    """

    rows: Tensor
    targets: Tensor
    row_weight: Tensor


class CanvasLoss(NamedTuple):
    """What :func:`canvas_loss` returns.

    loss: float32 []. Differentiable.
    nll: float32 [N], -log softmax(l)[target] of each target of the canvases. Not differentiable.
    next_nll: float32 [M], of each target of the texts.
    """

    loss: Tensor
    nll: Tensor
    next_nll: Tensor


def canvas_loss(
    model: nn.Module,
    parts: DiffusionGemma,
    batch: Canvases,
    of_canvas: Targets,
    of_text: Targets,
) -> CanvasLoss:
    r"""Weighted cross-entropy of canvases, and of the next tokens of the clean texts before them.

    .. math::
        loss = \sum_r w_r \, (-\log \mathrm{softmax}(l_r)_{target_r}), \qquad l = c \tanh(a / c)

    with a the tied head's output, c the model's softcap, and r the positions of both kinds of targets.

    Args:
        model: as it is called, perhaps wrapped.
        parts: of that model.
        batch: the texts and canvases.
        of_canvas: targets of the canvases.
        of_text: targets of the encoder's output: the token behind each position.

    Returns:
        :class:`CanvasLoss`.

    Source: the training of DiffusionGemma (google-deepmind/gemma, `gemma/diffusion`); transformers' model.

    Example:
        >>> import transformers
        >>> if hasattr(transformers, "DiffusionGemmaConfig"):
        ...     layers = dict(num_hidden_layers=1, layer_types=["full_attention"], num_experts=2, top_k_experts=1)
        ...     heads = dict(num_attention_heads=1, num_key_value_heads=1, head_dim=8, global_head_dim=8)
        ...     size = dict(vocab_size=50, hidden_size=8, intermediate_size=8, moe_intermediate_size=8)
        ...     text = transformers.DiffusionGemmaTextConfig(**layers, **heads, **size)
        ...     small = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, head_dim=8)
        ...     vision = transformers.AutoConfig.for_model("gemma4_vision", **small)
        ...     parts = dict(text_config=text, vision_config=vision)
        ...     config = transformers.DiffusionGemmaConfig(**parts, canvas_length=4, image_token_id=49)
        ...     model = transformers.DiffusionGemmaForBlockDiffusion(config)
        ...     token, row = torch.tensor([[5, 6, 7]]), torch.tensor([0])
        ...     batch = Canvases(tokens=token, canvas=torch.full((1, 4), 9), begin=torch.tensor([2]), conditioned=row)
        ...     target = Targets(row, row + 7, torch.ones(1))
        ...     result = canvas_loss(model, DiffusionGemma(model), batch, target, target)
        ...     result.loss.backward()
        ...     assert result.nll.shape == result.next_nll.shape == (1,)
    """
    call = _Call(parts, batch, of_canvas, of_text)
    with no_deferral(), fast_dropout(batch.tokens.device):
        with replaced_forward(parts.model.model, call.body), replaced_forward(parts.head, call.head):
            output = logits_of(model(input_ids=batch.tokens, decoder_input_ids=batch.canvas))
    if call.loss is None or output.numel() != 1:
        raise RuntimeError(f"{type(model).__name__} did not hand out what its head returned")
    loss = with_exact_value(output.reshape(()), call.loss)
    return CanvasLoss(loss, *call.nll.split([len(of_canvas.rows), len(of_text.rows)]))


@dataclass(slots=True)
class _Call:
    """One forward of the model: its body and its head, and the results, for which the model's output has no place."""

    parts: DiffusionGemma
    batch: Canvases
    of_canvas: Targets
    of_text: Targets
    encoded: Tensor | None = None
    expects: bool = False  # the head is asked for what the first pass expects
    loss: Tensor | None = None
    nll: Tensor | None = None

    def body(self, original: Callable[..., object], **_: object) -> object:
        """The forward of the model below its head, whose result has the decoder's hidden states."""
        tokens, begin = self.batch.tokens, self.batch.begin
        width = tokens.shape[1]
        context = _Context()
        self.encoded = self.parts.encoder(
            input_ids=tokens,
            attention_mask=self.parts.causal_masks(width),
            position_ids=torch.arange(width, device=tokens.device)[None],
            past_key_values=context,
        ).last_hidden_state
        canvas = {
            "decoder_input_ids": self.batch.canvas,
            "decoder_position_ids": begin[:, None] + torch.arange(self.batch.canvas.shape[1], device=begin.device),
        }
        signal = self._signal(context, canvas)
        masks = self.parts.canvas_masks(begin, width, self.batch.canvas.shape[1])
        with self.parts.conditioned(signal):
            return original(past_key_values=context, decoder_attention_mask=masks, **canvas)

    @torch.no_grad()
    def _signal(self, context: _Context, canvas: dict[str, Tensor]) -> Tensor | None:
        """What conditioned rows expect after a pass without a signal, and zero for others, [B, L, H]; None where all
        is zero."""
        rows = self.batch.conditioned
        if not len(rows):
            return None
        masks = self.parts.canvas_masks(self.batch.begin[rows], self.batch.tokens.shape[1], self.batch.canvas.shape[1])
        hidden = self.parts.decoder(
            past_key_values=context.of_rows(rows),
            decoder_attention_mask=masks,
            **{name: given[rows] for name, given in canvas.items()},
        ).last_hidden_state
        self.expects = True
        try:
            signal = self.parts.embedding_of(self.parts.head(hidden))
        finally:
            self.expects = False
        everywhere = signal.new_zeros(*self.batch.canvas.shape, signal.shape[-1])
        return everywhere.index_copy_(0, rows, signal)

    def head(self, original: Callable[..., Tensor], hidden: Tensor) -> Tensor:
        """The forward of the head: the loss of its rows, or the embedding that the first pass expects."""
        head, softcap = self.parts.head, self.parts.softcap
        if self.expects:
            rows = hidden.flatten(0, 1)
            return linear_expected_embedding(rows, head.weight, head.bias, softcap=softcap).embedding.view_as(hidden)
        states, at = [hidden.flatten(0, 1)], [self.of_canvas.rows]
        if len(self.of_text.rows):
            at.append(self.of_text.rows + len(states[0]))
            states.append(self.encoded.flatten(0, 1))
        both = (torch.cat(pair) for pair in zip(self.of_canvas[1:], self.of_text[1:], strict=True))
        loss, nll = linear_cross_entropy(
            torch.cat(states), head.weight, *both, bias=head.bias, rows=torch.cat(at), softcap=softcap
        )
        self.loss, self.nll = loss.detach(), nll.detach()
        # The model applies its softcap to what its head returns. At 0 the softcap is 0 and its derivative 1, so the
        # gradient passes unchanged; the value goes its own way.
        return (loss - loss.detach()).view(1, 1, 1)


@dataclass(slots=True)
class _Context:
    """In the place of a cache: the keys and values of each layer of the encoder, in its graph, never copied.

    transformers' caches copy them, and keep of a sliding layer only what a canvas at the end would see.
    """

    layers: list[SimpleNamespace] = field(default_factory=list)
    is_compileable: bool = False

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        if layer_idx != len(self.layers):
            raise RuntimeError(f"layer {len(self.layers)} must write its keys next, got layer {layer_idx}")
        self.layers.append(SimpleNamespace(keys=keys, values=values))
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.layers[layer_idx].keys.shape[2] if self.layers else 0

    def of_rows(self, rows: Tensor) -> _Context:
        """The context of some rows."""
        kept = [SimpleNamespace(keys=layer.keys[rows], values=layer.values[rows]) for layer in self.layers]
        return _Context(kept)
