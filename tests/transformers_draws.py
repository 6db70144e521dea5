"""transformers' own `generate` of DiffusionGemma with this library's random numbers, and what it decided, step by step.

Its module asks `torch` for two kinds of random numbers: `multinomial` draws a token for each position, `randint` the
uniform tokens of a canvas. For the duration of a call the name `torch` of that module, and of no other, is bound to a
stand-in that answers both from the addresses (seed, position, step) of the rows, and notes them.

The order of calls tells what they are for: a randint that does not follow a multinomial begins a canvas; the one after
a multinomial renoises.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dllm_kernels.draw import draw
from dllm_kernels.philox import uniform_token


@dataclass
class Draws:
    """Answers for B rows, and what was asked.

    seeds: of the rows.
    begin: the rows' own positions of the first canvas's first column: the length of each prompt without its padding.
    steps: of each canvas, a dictionary for each step: sampled [B, L], uniform [B, L] (what follows it), entropy [B, L].
    first: the uniform tokens of each canvas's first step, [B, L].
    """

    seeds: list[int]
    begin: list[int]
    steps: list[list[dict[str, Tensor]]] = field(default_factory=list)
    first: list[Tensor] = field(default_factory=list)
    drawn: bool = False  # a multinomial was the last call

    def positions(self, size: int) -> Tensor:
        canvas = len(self.first) - 1
        return torch.tensor(self.begin)[:, None] + canvas * size + torch.arange(size)

    def randint(self, low: int, high: int, size: tuple[int, int], device: object = None) -> Tensor:
        assert low == 0
        if not self.drawn:
            self.steps.append([])
            self.first.append(torch.empty(0))
        step = len(self.steps[-1])
        tokens = uniform_token(torch.tensor(self.seeds)[:, None], self.positions(size[1]), torch.tensor(step), high)
        if self.drawn:
            self.steps[-1][-1]["uniform"] = tokens
        else:
            self.first[-1] = tokens
        self.drawn = False
        return tokens

    def multinomial(self, p: Tensor, num_samples: int) -> Tensor:
        assert num_samples == 1
        rows = len(self.seeds)
        where = self.positions(len(p) // rows)
        seeds = torch.tensor(self.seeds)[:, None].expand_as(where)
        step = torch.tensor([len(self.steps[-1])])
        tokens = draw(p.log(), 1.0, seeds.flatten(), where.flatten(), step)
        self.steps[-1].append({"sampled": tokens.view(where.shape)})
        self.drawn = True
        return tokens[:, None]

    def sort(self, entropy: Tensor, **options: object) -> object:
        self.steps[-1][-1]["entropy"] = entropy
        return torch.sort(entropy, **options, stable=True)


class _Stand:
    """The module torch, but for what `draws` answers."""

    def __init__(self, draws: Draws):
        self.draws = draws

    def __getattr__(self, name: str) -> object:
        return getattr(self.draws if name in ("randint", "multinomial", "sort") else torch, name)


@contextmanager
def _instead_of_torch(draws: Draws) -> object:
    from transformers.models.diffusion_gemma import generation_diffusion_gemma as module

    module.torch = _Stand(draws)
    try:
        yield
    finally:
        module.torch = torch


@dataclass(frozen=True)
class TracedStep:
    """What transformers decided in one step for one row; `frozen`: the row's canvas was over before."""

    before: Tensor
    sampled: Tensor
    argmax: Tensor
    entropy: Tensor
    accepted: Tensor
    frozen: bool
    over: bool


def traced_generate(
    model: nn.Module, inputs: dict[str, Tensor], seeds: list[int], **settings: object
) -> tuple[Tensor, list[list[list[TracedStep]]], Draws]:
    """Call `model.generate`.

    Returns:
        sequences: int64 [B, P + n L].
        traces: of each row the steps of each canvas.
        draws: what was asked for.
    """
    begin = inputs["attention_mask"].sum(1).tolist()
    draws, seen, original = Draws(seeds, begin), [], model._denoising_step

    def noted(*args: object, **arguments: object) -> object:
        frozen = arguments["finished_denoising"].clone()
        before = arguments["current_canvas"].clone()
        result = original(*args, **arguments)
        if len(seen) < len(draws.steps):
            seen.append([])
        seen[-1].append((before, frozen, arguments["sampler"].accepted_token_mask.clone(), *map(torch.clone, result)))
        return result

    model._denoising_step = noted
    try:
        with _instead_of_torch(draws), torch.no_grad():
            sequences = model.generate(**inputs, **settings).sequences
    finally:
        del model._denoising_step
    traces = [
        [
            [_of_row(row, note, *step) for note, step in zip(asked, steps, strict=True)]
            for asked, steps in zip(draws.steps, seen, strict=True)
        ]
        for row in range(len(seeds))
    ]
    return sequences, traces, draws


def _of_row(
    row: int, note: dict[str, Tensor], before: Tensor, frozen: Tensor, accepted: Tensor, *result: Tensor
) -> TracedStep:
    _canvas, argmax, _signal, over = result
    return TracedStep(
        before[row],
        note["sampled"][row],
        argmax[row],
        note["entropy"][row],
        accepted[row],
        bool(frozen[row]),
        bool(over[row]),
    )
