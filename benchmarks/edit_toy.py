"""A small model of Edit Flows, samples for it, and the random numbers that dllm draws for them.

The published code gets these numbers, so both programs see the same texts x_t and make the same edits: their losses are
equal, and so are their texts but for ties.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import models
from benchmarks.baselines.edit_flows import SMALLEST_RATE, Draws
from dllm.core.schedulers import LinearKappaScheduler
from dllm.core.trainers.edit_collator import EditCorruptingCollator, EditFlowCollator
from dllm.fast.training.edit_loss import NAMES
from dllm.models import EditFlowModel
from dllm_kernels import philox

MAX_W, TIME_EPSILON = 20.0, 1e-3
PROMPT = 64  # tokens of a prompt, BOS included
FITTED = 8  # batches on which rates are trained
FEW = 3  # different tokens of an answer in half of them

Sample = dict[str, Any]


class Toy:
    """A model of Edit Flows on a backbone of :mod:`benchmarks.models`, and samples of random tokens.

    Args:
        loaded: the backbone. Its head is taken away.
        answers: the fewest and the most tokens of an answer.
        masks: that an answer begins with.
        seed: of samples and draws.
    """

    def __init__(self, loaded: models.Loaded, answers: tuple[int, int], masks: int, seed: int):
        self.masks, self.answers, self.seed, config = masks, answers, seed, loaded.model.config
        config.mask_token_id, vocab_size = loaded.mask_id, loaded.vocab_size
        named = {f"{name}_token_id": getattr(config, f"{name}_token_id", None) for name in ("bos", "eos", "pad")}
        self.tokens = SimpleNamespace(mask_token_id=loaded.mask_id, **named)
        special = {token for token in vars(self.tokens).values() if token is not None}
        self.words = torch.tensor([token for token in range(vocab_size) if token not in special])
        self.model = EditFlowModel.from_backbone(loaded.model).requires_grad_(True)
        self.scheduler = LinearKappaScheduler()
        self.pairs = EditFlowCollator(self.tokens, f"masks[length:{masks}]")
        self.collate = EditCorruptingCollator(
            base=self.pairs,
            scheduler=self.scheduler,
            mask_id=loaded.mask_id,
            pad_id=self.tokens.pad_token_id,
            vocab_size=vocab_size,
            seed=seed,
            low=0.0,
            high=1 - TIME_EPSILON,
            max_weight=MAX_W,
            positions=getattr(config, "max_position_embeddings", None),
        )

    def samples(self, count: int, number: int, different: int | None = None) -> list[Sample]:
        """Batch `number` of samples: BOS and a prompt, then an answer, of so many different tokens or of any."""
        draw = torch.Generator().manual_seed(self.seed + number)

        def drawn(tokens: Tensor, n: int) -> Tensor:
            return tokens[torch.randint(len(tokens), (n,), generator=draw)]

        fewest, most = self.answers
        found = []
        for length in torch.randint(fewest, most + 1, (count,), generator=draw).tolist():
            prompt = [self.tokens.bos_token_id, *drawn(self.words, PROMPT - 1).tolist()]
            answer = drawn(self.words if different is None else drawn(self.words, different), length)
            found.append(dict(input_ids=prompt + answer.tolist(), prompt_len=PROMPT))
        return found

    def fit_rates(self, steps: int = 300) -> None:
        """Train the rates alone, so that texts are edited about as often as by a trained model.

        The body and the heads of tokens stay random, and such heads fill a text with a few tokens. So half of the
        batches have answers of a few tokens.
        """
        batches = [self._hidden_and_edits(number, FEW if number % 2 else None) for number in range(FITTED)]
        hidden, counts = (torch.cat(parts) for parts in zip(*batches, strict=True))
        optimizer = torch.optim.Adam(self.model.rate_heads.parameters(), lr=0.05)
        for _ in range(steps):
            rates = nn.functional.softplus(self.model.rate_heads(hidden))
            loss = (rates - counts * rates.clamp(min=SMALLEST_RATE).log()).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.model.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _hidden_and_edits(self, number: int, different: int | None) -> tuple[Tensor, Tensor]:
        """Hidden states [n, H] of all tokens of a batch, and how many edits of each kind they have, [n, 3]."""
        batch = self.collate(self.samples(8, number, different))
        edits = batch.pop("corruption")
        hidden = self.model.hidden_states(**batch)
        real = (torch.arange(hidden.shape[1]) < edits["lengths"][:, None]).flatten()
        each = [torch.bincount(edits[f"{name}_rows"], minlength=len(real)) for name in NAMES.values()]
        return hidden.flatten(0, 1)[real], torch.stack(each, dim=1)[real].float()


def collator_draws(pairs: Mapping[str, Sequence[Sequence[int]]], seed: int) -> Draws:
    """What dllm's collator with this seed draws for these pairs in epoch 0."""
    x1 = [torch.tensor(row) for row in pairs["x1_ids"]]
    tokens, lengths = nn.utils.rnn.pad_sequence(x1, batch_first=True), torch.tensor([len(row) for row in x1])
    seeds, zero = philox.sample_seeds(tokens, lengths, seed)[:, None], torch.tensor([0])
    columns = torch.arange(max(map(len, pairs["x0_ids"])) + tokens.shape[1])  # no alignment has more
    return Draws(
        philox.uniform(seeds, zero, zero, philox.DIFFUSION_TIME)[:, 0],
        philox.uniform(seeds, columns, torch.zeros_like(columns), philox.TRAINING_CORRUPTION),
    )


def sampler_draws(seed: int, steps: int, columns: int) -> Tensor:
    """What dllm's sampler draws for a text with this seed, float32 [steps, 3, columns], as `noise` of the published
    sampler gives it step by step."""
    step, position = torch.arange(steps)[:, None], torch.arange(columns)
    address = torch.broadcast_tensors(torch.tensor(seed), torch.zeros_like(position), position, step)
    words = philox.words(*address, philox.RANDOM_CONFIDENCE)
    return torch.stack([philox.unit_interval(word) for word in words[:3]], dim=1)
