"""In bfloat16, too, a row has the same tokens alone and in any batch, where the model's own body computes rows alike.

The body here multiplies and adds element by element, so its bits cannot depend on the batch. What is left is the head
and all that follows. Its size is one at which libraries take other sums for other numbers of rows.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dllm.core import samplers
from dllm.fast import generate

WIDTH, VOCAB, MASK, EOS = 768, 1003, 3, 2
TOKENIZER = SimpleNamespace(mask_token_id=MASK, eos_token_id=EOS, pad_token_id=1)


class Neighbors(nn.Module):
    """A token's hidden state: its embedding, times its position's, and those of the real tokens at both sides."""

    def __init__(self, head: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.tokens, self.positions, self.head = nn.Embedding(VOCAB, WIDTH), nn.Embedding(64, WIDTH), head
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                scale = 3 / WIDTH**0.5 if parameter.shape == (VOCAB, WIDTH) and parameter is head.weight else 1.0
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * scale)
            head.bias[MASK] = -100
        self.to(dtype).eval()

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, attention_mask=None):
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden = self.tokens(input_ids) * real[..., None].to(self.head.weight.dtype)
        positions = self.positions(torch.arange(input_ids.shape[1], device=input_ids.device))
        beside = nn.functional.pad(hidden, (0, 0, 1, 1))
        hidden = hidden * positions + beside[:, :-2] + beside[:, 2:]
        return SimpleNamespace(logits=self.head(hidden * 0.5))


class Scaled(nn.Linear):
    """A head that is called as a module."""

    def forward(self, hidden):
        return super().forward(hidden) * 1.5


@pytest.fixture(scope="module", params=[nn.Linear, Scaled])
def model(request, device):
    return Neighbors(request.param(WIDTH, VOCAB), torch.bfloat16).to(device)


PROMPTS = [[5 + (7 * row + 3 * i) % 900 for i in range(1 + row % 5)] for row in range(13)]
SEEDS = [2**40 + 17 * row for row in range(13)]
BATCHES = ([0, 1], [7, 2, 4], [12, 3, 9, 1, 6, 0, 5, 11, 2, 10, 4, 8, 7])


@pytest.mark.parametrize(("cfg_scale", "n_threads"), [(0.0, 2), (0.8, 1)])
def test_generate(model, device, cfg_scale, n_threads):
    settings = dict(steps=4, gen_length=8, block_length=4, temperature=1.0, remasking="low_confidence", mask_id=MASK)
    lengths = [len(prompt) for prompt in PROMPTS]
    padded = torch.tensor([[1] * (5 - len(prompt)) + prompt for prompt in PROMPTS], device=device)
    real = torch.tensor([[0] * (5 - n) + [1] * n for n in lengths], device=device)

    def run(rows):
        options = dict(attention_mask=real[rows], seed=[SEEDS[row] for row in rows], cfg_scale=cfg_scale)
        return generate(model, padded[rows], **settings, **options)

    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        alone = [run([row])[0] for row in range(len(PROMPTS))]
        assert len({tuple(row[5:].tolist()) for row in alone}) == len(PROMPTS)
        for batch in BATCHES:
            assert torch.equal(run(batch), torch.stack([alone[row] for row in batch]))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (samplers.MDLMSampler, dict(steps=6, remasking="low_confidence")),
        (samplers.DreamSampler, dict(steps=6, alg="entropy", top_p=0.9)),
        (samplers.DreamSampler, dict(steps=6, alg="topk_margin", alg_temp=0.5, top_k=40)),
        (samplers.ThresholdSampler, dict(threshold=0.3)),
        (samplers.EntropyBoundSampler, dict(gamma=2.0)),
    ],
)
def test_samplers(model, kind, settings):
    sampler = kind(model, TOKENIZER)

    def run(rows):
        options = dict(max_new_tokens=10, block_size=5, temperature=0.7, return_dict=True) | settings
        return sampler.sample([PROMPTS[row] for row in rows], seed=[SEEDS[row] for row in rows], **options).sequences

    alone = [run([row])[0] for row in range(len(PROMPTS))]
    for batch in BATCHES:
        for got, row in zip(run(batch), batch, strict=True):
            width = len(alone[row])
            assert torch.equal(got[-width:] if sampler.pads_left else got[:width], alone[row])
