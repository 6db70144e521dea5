"""The objective of DiffusionGemmaTrainer in plain PyTorch, a sample at a time, with full logits: its judge.

The model is transformers' own and is called as its `generate` calls it: the encoder reads the context of a canvas, and
nothing more, into transformers' cache; the decoder makes its own masks and positions; the signal is computed from
logits, and no gradient passes through it. Of the library it uses the Philox words only, which have tests of their own.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from dllm_kernels import philox

CORRUPTED, TIME, TOKENS = 2, 3, 7


class Rules(NamedTuple):
    """How a run is trained."""

    length: int = 8
    vocab: int = 512
    ends: tuple[int, ...] = (1,)
    norm: str = "token"
    reweighted: bool = False
    corrupted_only: bool = False
    encoder: float = 1.0
    twice: float = 0.5
    low: float = 1e-4
    high: float = 1 - 1e-4


class Example(NamedTuple):
    """A sample with its draws."""

    tokens: list[int]
    begin: int
    clean: list[int]
    canvas: list[int]
    losses: list[int]  # positions of the canvas
    weight: float
    twice: bool


class Sums(NamedTuple):
    """Of one optimizer step: the loss, and the means over all tokens of canvases and of next tokens."""

    loss: Tensor
    nll: Tensor
    next_nll: Tensor


def words(key: int, position: int, epoch: int, stream: int) -> list[int]:
    return [int(w) for w in philox.words(*(torch.tensor(x) for x in (key, 0, position, epoch)), stream)]


def uniform(key: int, position: int, epoch: int, stream: int) -> float:
    return ((words(key, position, epoch, stream)[0] >> 9) + 0.5) / 2**23


def drawn(tokens: Sequence[int], labels: Sequence[int], seed: int, epoch: int, rules: Rules) -> Example:
    """A sample with the draws that its seed, its tokens and the epoch give."""
    content = b"".join(token.to_bytes(8, "little") for token in tokens)
    key = int.from_bytes(hashlib.blake2b(content, digest_size=8, key=seed.to_bytes(8, "little")).digest(), "little")
    key -= 2**64 if key >= 2**63 else 0
    t = float(rules.low + (rules.high - rules.low) * torch.tensor(uniform(key, 0, epoch, TIME)))  # a float32
    starts = [p for p, label in enumerate(labels) if label != -100 and (p == 0 or labels[p - 1] == -100)]
    pieces = []
    for start in starts:
        end = next((p for p in range(start, len(labels)) if labels[p] == -100), len(labels))
        pieces += [(start, begin, end) for begin in range(start, end, rules.length)]
    start, begin, end = pieces[int(uniform(key, 1, epoch, TIME) * len(pieces))]
    answer = list(tokens[begin:end])[: rules.length]
    whole = bool(set(tokens[start:end]) & set(rules.ends))
    clean = answer + [rules.ends[0]] * (rules.length - len(answer))
    learnt = range(rules.length if whole else len(answer))
    canvas, replaced = list(clean), []
    for index in range(rules.length):
        if uniform(key, begin + index, epoch, CORRUPTED) < t:
            w, partner, *_ = words(key, begin + index, epoch, TOKENS)
            canvas[index] = (w * 2**32 + partner) * rules.vocab >> 64
            replaced.append(index)
    losses = [index for index in learnt if index in replaced or not rules.corrupted_only]
    twice = uniform(key, 2, epoch, TIME) < rules.twice
    return Example(list(tokens), begin, clean, canvas, losses, 1 / (1 - t) if rules.reweighted else 1.0, twice)


def plain_loss(model: nn.Module, examples: Sequence[Example], rules: Rules) -> Sums:
    """The loss of all examples as one optimizer step."""
    canvases, texts, n_canvas, n_text = [], [], [], []
    for example in examples:
        nll, next_nll = _of_canvas(model, example), _of_text(model, example.tokens)
        chosen = nll[example.losses]
        canvases.append(example.weight * chosen.sum())
        texts.append(next_nll.sum())
        n_canvas.append(len(example.losses))
        n_text.append(len(next_nll))
    nll, next_nll = torch.stack(canvases), torch.stack(texts)
    means = [sums.detach().sum() / sum(counts) for sums, counts in ((nll, n_canvas), (next_nll, n_text))]
    count, next_count = torch.tensor(n_canvas), torch.tensor(n_text)
    if rules.norm == "token":
        loss = nll.sum() / count.sum() + rules.encoder * next_nll.sum() / next_count.sum()
    elif rules.norm == "sequence":
        loss = (nll / count.clamp(min=1) + rules.encoder * next_nll / next_count).mean()
    else:
        loss = (nll + rules.encoder * next_nll).mean()
    return Sums(loss, *means)


def exact(model: nn.Module) -> nn.Module:
    """A copy in float64 whose norms are, too: transformers computes them in float32. Routing and rotary angles are
    float32 still."""
    model = copy.deepcopy(model).double()
    model.set_experts_implementation("eager")  # the others take no float64
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = _norm_of(module)
    return model


def _norm_of(norm: nn.Module) -> object:
    def forward(x: Tensor) -> Tensor:
        scaled = x * (x.square().mean(-1, keepdim=True) + norm.eps) ** -0.5
        return scaled * norm.weight if norm.with_scale else scaled

    return forward


def _of_text(model: nn.Module, tokens: Sequence[int]) -> Tensor:
    """-log p of each token behind the first, by the encoder."""
    text = torch.tensor([tokens])
    logits = _capped(model, model.model.encoder(input_ids=text).last_hidden_state)
    return F.cross_entropy(logits[:-1], text[0, 1:], reduction="none")


def _of_canvas(model: nn.Module, example: Example) -> Tensor:
    """-log p of each clean token of the canvas."""
    cache = DynamicCache(config=model.config.get_text_config())
    model.model.encoder(input_ids=torch.tensor([example.tokens[: example.begin]]), past_key_values=cache)
    given = dict(decoder_input_ids=torch.tensor([example.canvas]), past_key_values=cache)
    signal = None
    if example.twice:
        with torch.no_grad():
            signal = _capped(model, model.model.decoder(**given).last_hidden_state)[None]
    hook = model.model.decoder.self_conditioning.register_forward_pre_hook(lambda _, args: (args[0], args[1].detach()))
    hidden = model.model.decoder(**given, self_conditioning_logits=signal).last_hidden_state
    hook.remove()
    return F.cross_entropy(_capped(model, hidden), torch.tensor(example.clean), reduction="none")


def _capped(model: nn.Module, hidden: Tensor) -> Tensor:
    cap = model.config.text_config.final_logit_softcapping
    return torch.tanh(model.lm_head(hidden)[0] / cap) * cap
