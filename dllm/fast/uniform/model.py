"""DiffusionGemma as a sampling loop runs it: an encoder that writes a cache, and a decoder that reads it.

The encoder is causal and reads what is final: the prompt, and each finished canvas. The decoder sees the cache and all
of its canvas. They share their weights, but they are two functions. The decoder takes the embedding that the step
before expects (self-conditioning); transformers computes it from stored logits, here it is put in their place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dllm.fast.attention import attention_of, is_flash
from dllm.fast.deferred import no_deferral
from dllm.fast.head.use import hooks_of, is_linear
from dllm.fast.model import is_diffusion_gemma
from dllm.fast.sampling.cache import KeyValueCache
from dllm.fast.sampling.cache_layout import CacheLayout, Layer


class DiffusionGemma:
    """The parts of a model.

    Args:
        model: a `DiffusionGemmaForBlockDiffusion` of transformers, perhaps inside an adapter.

    Raises:
        TypeError: it is another model, or its LM head is no plain nn.Linear.
        ValueError: it attends by flash attention, which takes no masks of four dimensions.
    """

    def __init__(self, model: nn.Module):
        if not is_diffusion_gemma(model):
            raise TypeError(
                f"the model must be a DiffusionGemmaForBlockDiffusion (transformers 5.12 or later), "
                f"got {type(model).__name__}"
            )
        # an adapter answers for the modules of its model, too; this one holds its head itself
        inner = next(module for module in model.modules() if "lm_head" in module._modules)
        self.model, self.head = inner, inner.lm_head
        if not (is_linear(self.head) and not hooks_of(self.head)):
            raise TypeError(f"the LM head must be a plain nn.Linear, got {type(self.head).__name__}")
        if is_flash(inner):
            raise ValueError(f"attention must take masks of four dimensions, got {attention_of(inner)}: load the model "
                             'with attn_implementation="sdpa"')  # fmt: skip
        self.encoder, self.decoder = inner.model.encoder, inner.model.decoder
        self.text_config = text = inner.config.get_text_config()
        self.softcap: float | None = text.final_logit_softcapping
        self.window: int = text.sliding_window
        self._is_causal = text.use_bidirectional_attention != "all"
        self.vocab_size: int = text.vocab_size
        self.canvas_length: int = inner.config.canvas_length
        self.image_token_id: int | None = inner.config.image_token_id

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def embedding_of(self, expected: Tensor) -> Tensor:
        """The signal of an expected embedding [..., H]: scaled as the model scales its embeddings."""
        scale = self.decoder.embed_tokens.embed_scale
        return expected * scale.to(expected.device, expected.dtype)

    def layout(self) -> CacheLayout:
        """What the attention layers store, found by encoding one token."""
        recorder = _Recorder()
        token = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        masks = {"full_attention": None, "sliding_attention": None}
        with no_deferral(), torch.no_grad():
            self.encoder(input_ids=token, attention_mask=masks, position_ids=token, past_key_values=recorder)
        return tuple(recorder.layers[index] for index in sorted(recorder.layers))

    def encode(self, cache: KeyValueCache, rows: Tensor, tokens: Tensor, column: Tensor, real: Tensor) -> None:
        """Write the keys and values of tokens [r, W] at columns [r, W] of the rows [r] of the cache, where `real`."""
        visible = int(torch.where(real, column, -1).max()) + 1
        target = torch.where(real, column, cache.columns)
        cache.set_write_columns(rows, target, visible=visible, first_rows=False)
        key, query = torch.arange(visible, device=column.device), column[:, None, :, None]
        seen = key <= query
        masks = self._masks(seen, seen & (key > query - self.window))
        with no_deferral():
            self.encoder(input_ids=tokens, attention_mask=masks, position_ids=column, past_key_values=cache)
        cache.clear_write_columns()

    def decode(self, cache: KeyValueCache, length: Tensor, canvas: Tensor, signal: Tensor | None) -> Tensor:
        """The head's input [B, L, H] for canvases [B, L] of the first B rows of the cache, each with `length` [B]
        columns before it."""
        columns, visible = canvas.shape[1], int(length.max())
        masks = self.canvas_masks(length, visible, columns)
        position = length[:, None] + torch.arange(columns, device=canvas.device)
        with no_deferral(), cache.reading(len(canvas), visible), self.conditioned(signal):
            return self.decoder(
                decoder_input_ids=canvas,
                past_key_values=cache,
                decoder_attention_mask=masks,
                decoder_position_ids=position,
            ).last_hidden_state

    def canvas_masks(self, length: Tensor, visible: int, columns: int) -> dict[str, Tensor | None]:
        """Masks by type of layer for canvases of so many columns behind `visible` columns of context, of which each
        row's canvas sees the first `length` [B], and sliding layers the nearest of these."""
        key = torch.arange(visible + columns, device=length.device)
        own, before = key >= visible, length[:, None, None, None]
        seen = own | (key < before)
        near = own | ((key < before) & (key >= before - self.window + 1))
        return self._masks(seen.expand(-1, -1, columns, -1), near.expand(-1, -1, columns, -1))

    def causal_masks(self, columns: int) -> dict[str, Tensor | None]:
        """Masks by type of layer for the encoder of rows of so many columns, all of which begin at the first."""
        key = torch.arange(columns, device=self.device)
        seen = (key <= key[:, None])[None, None]
        masks = self._masks(seen, seen & (key > key[:, None] - self.window))
        if attention_of(self.model) == "sdpa" and self._is_causal:  # what None means there, without reading a mask
            masks["full_attention"] = None
            if columns <= self.window:
                masks["sliding_attention"] = None
        return masks

    @contextmanager
    def conditioned(self, signal: Tensor | None) -> Iterator[None]:
        """Let the decoder take this signal [B, L, H] in place of the one of stored logits; None: of zeros."""
        if signal is None:
            yield
            return
        hook = self.decoder.self_conditioning.register_forward_pre_hook(
            lambda module, arguments: (arguments[0], signal.to(arguments[0].dtype))
        )
        try:
            yield
        finally:
            hook.remove()

    def _masks(self, full: Tensor, sliding: Tensor) -> dict[str, Tensor | None]:
        """Masks bool [r, 1, W, K] by type of layer, as the layers take them; None where nothing is hidden."""
        return {"full_attention": self._mask(full), "sliding_attention": self._mask(sliding)}

    def _mask(self, seen: Tensor) -> Tensor | None:
        if bool(seen.all()):
            return None
        if attention_of(self.model) != "eager":
            return seen
        dtype = self.model.dtype
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


class _Recorder:
    """In place of a cache: notes what each layer hands over."""

    is_compileable = False

    def __init__(self):
        self.layers: dict[int, Layer] = {}

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        self.layers[layer_idx] = Layer(keys.shape[1], keys.shape[3], values.shape[3], keys.dtype, values.dtype)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0
