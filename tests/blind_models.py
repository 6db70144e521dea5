"""Tiny models that do not do what their class or the signature of their forward promises."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import transformers
from torch import Tensor, nn

from tests.models import MASK_ID, tiny


class Deaf(transformers.BertForMaskedLM):
    """Takes `attention_mask` and ignores it, as a published file of LLaDA does."""

    family = "bert"

    def forward(self, input_ids, attention_mask=None):
        return super().forward(input_ids=input_ids)


class Maskless(transformers.BertForMaskedLM):
    """Takes no `attention_mask`."""

    family = "bert"

    def forward(self, input_ids):
        return super().forward(input_ids=input_ids)


class Averaging(nn.Module):
    """Each token beside the mean over some dimensions of [B, L, H], padding counted as zeros."""

    def __init__(self, dims: tuple[int, ...], scale: float = 3.0):
        super().__init__()
        self.table, self.head = nn.Embedding(97, 16), nn.Linear(16, 97)
        self.dims, self.scale = dims, scale
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in (self.table.weight, self.head.weight):
                weight.copy_(torch.randn(weight.shape, generator=generator))
            self.head.bias.zero_()
            self.head.bias[MASK_ID] = -30.0

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def context(self, hidden: Tensor) -> Tensor:
        return hidden.mean(self.dims, keepdim=True)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        hidden = self.table(input_ids)
        seen = hidden if attention_mask is None else hidden * attention_mask[..., None]
        return SimpleNamespace(logits=self.head(torch.tanh(hidden + self.scale * self.context(seen))))


class Leftward(Averaging):
    """Causal, with rounding noise between the rows of a batch, as experts of a mixture have."""

    def context(self, hidden: Tensor) -> Tensor:
        return hidden.cumsum(1) / (1 + torch.arange(hidden.shape[1])[:, None]) + 1e-7 * hidden.sum()


def blind(kind: type[nn.Module]) -> nn.Module:
    """A tiny BERT of that class."""
    model = tiny("bert")
    model.__class__ = kind
    return model


def causal_llama(**options) -> nn.Module:
    """A Llama as transformers makes it."""
    size = dict(vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**size | options)).eval()
