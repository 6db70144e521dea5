"""What `edit_flows` measures: a training step and a batch of texts, by the published code and by dllm, and the floor.

Both programs train and sample one :class:`~benchmarks.edit_toy.Toy` with the same random numbers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.baselines import edit_flows as published
from benchmarks.edit_toy import FITTED, MAX_W, PROMPT, TIME_EPSILON, Toy, collator_draws, sampler_draws
from dllm.core.samplers import EditFlowSampler
from dllm.fast.training.edit_loss import NAMES, EditTargets
from dllm.models import EditFlowModel
from dllm_kernels._linear import by_library

PROGRAMS = ("published", "ours")
LEARNING_RATE = 1e-4
WIDEST = 1024  # columns for which the sampler's uniform numbers are drawn beforehand


class Run(NamedTuple):
    """Seconds of a run on the clock, of the process on all its cores, and of its parts on the clock."""

    seconds: float
    cpu_seconds: float
    parts: dict[str, float]


class Timed:
    """Times a run of a program and its parts. The body is a part, and what comes before it belongs to `before`."""

    def __init__(self, name: str, model: EditFlowModel, before: str):
        self.watch = timing.Stopwatch(torch.device("cpu"))
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        self.hooks = [
            model.backbone.register_forward_pre_hook(lambda module, args: self.watch.mark(before)),
            model.backbone.register_forward_hook(lambda module, args, output: self.watch.mark("body")),
        ]
        if name == "published":
            self.hooks.append(published.compute_unused_logits(model.backbone, self.watch.mark))

    def end(self) -> Run:
        """The seconds since the beginning."""
        for hook in self.hooks:
            hook.remove()
        return Run(time.perf_counter() - self.wall, time.process_time() - self.cpu, self.watch.seconds())


class Training:
    """Training steps of both programs: pairs, x_t and edits, forward, loss, backward and AdamW."""

    def __init__(self, toy: Toy, batch: int, batches: int):
        self.toy, self.model = toy, toy.model
        self.batches = [toy.samples(batch, FITTED + number) for number in range(batches)]
        self.draws = [collator_draws(toy.pairs(samples), toy.seed) for samples in self.batches]
        self.collated = [toy.collate(samples) for samples in self.batches]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, fused=True)

    def published(self, number: int, mark: published.Mark = lambda part: None) -> Tensor:
        """The published loss of batch `number`."""
        return published.loss(
            self.model,
            self.toy.pairs(self.batches[number]),
            scheduler=self.toy.scheduler,
            pad_id=self.toy.tokens.pad_token_id,
            time_epsilon=TIME_EPSILON,
            max_w=MAX_W,
            draws=self.draws[number],
            mark=mark,
        )

    def ours(self, number: int, mark: published.Mark = lambda part: None) -> Tensor:
        """The loss of batch `number` as EditFlowTrainer computes it."""
        batch = self.toy.collate(self.batches[number])
        corruption = batch.pop("corruption")
        mark("edits")
        names = ("lengths", "sub_rows", "del_rows", "ins_rows", "sub_targets", "ins_targets")
        weight = corruption["weight"] / corruption["maskable"] / len(corruption["weight"])
        edits = EditTargets(sample_weight=weight, **{name: corruption[name] for name in names})
        loss = self.model(**batch, edits=edits).loss
        mark("heads")
        return loss

    def losses(self) -> dict[str, float]:
        """The loss of the first batch by both programs."""
        with torch.no_grad():
            return {name: float(getattr(self, name)(0)) for name in PROGRAMS}

    def step(self, name: str, number: int) -> Run:
        """A whole step of a program on a batch."""
        self.model.train()
        timed = Timed(name, self.model, before="rest")
        getattr(self, name)(number, timed.watch.mark).backward()
        timed.watch.mark("backward")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        timed.watch.mark("optimizer")
        return timed.end()

    def floor(self, number: int) -> Run:
        """The least that a step on a batch consists of: the body forward and backward, and three products per head.

        The products are those of the positions with an edit: logits, and the gradients of hidden states and weights.
        """
        self.model.train()
        batch = dict(self.collated[number])
        edits = batch.pop("corruption")
        timed = Timed("floor", self.model, before="rest")
        hidden = self.model.hidden_states(**batch)
        with torch.no_grad():
            for head, rows in ((self.model.sub_logits, edits["sub_rows"]), (self.model.ins_logits, edits["ins_rows"])):
                edited = hidden.flatten(0, 1)[rows]
                logits = by_library(edited, head.weight, head.bias)
                _ = logits @ head.weight, logits.T @ edited
        timed.watch.mark("heads")
        hidden.backward(torch.ones_like(hidden))
        timed.watch.mark("backward")
        run = timed.end()
        self.model.zero_grad(set_to_none=True)
        return run

    def shape(self) -> dict[str, float]:
        """Means over the batches: tokens of x_t with and without padding, and edits by their kind."""
        found: dict[str, float] = {}
        for batch in self.collated:
            counts = {f"{kind}_edits": len(batch["corruption"][f"{kind}_rows"]) for kind in NAMES.values()}
            counts |= dict(tokens=int(batch["corruption"]["lengths"].sum()), padded_tokens=batch["input_ids"].numel())
            for name, count in counts.items():
                found[name] = found.get(name, 0.0) + count / len(self.collated)
        return found


class Texts(NamedTuple):
    """Texts of a batch, with forwards of the model and the sum of texts in these forwards."""

    rows: list[list[int]]
    forwards: int
    row_forwards: int


class Sampling:
    """Texts of both programs: one after the other by the published one, in a batch by dllm."""

    def __init__(self, toy: Toy, batch: int, tau: float):
        self.toy, self.tau, self.model = toy, tau, toy.model
        self.prompts = [sample["input_ids"][:PROMPT] for sample in toy.samples(batch, -1)]
        self.sampler = EditFlowSampler(self.model, toy.tokens, toy.scheduler)
        self.draws = [sampler_draws(toy.seed + row, math.ceil(1 / tau), WIDEST) for row in range(batch)]
        self.texts: dict[str, Texts] = {}

    def run(self, name: str) -> Run:
        """All texts by a program."""
        self.model.eval()
        timed = Timed(name, self.model, before="edits")
        self.texts[name] = getattr(self, name)(timed.watch.mark)
        timed.watch.mark("edits")
        return timed.end()

    def published(self, mark: Callable[[str], None]) -> Texts:
        """One text after the other."""
        found = [
            published.sample(
                self.model,
                prompt,
                mask_id=self.toy.tokens.mask_token_id,
                mask_length=self.toy.masks,
                tau=self.tau,
                time_epsilon=TIME_EPSILON,
                noise=lambda step, n, draws=draws: draws[step, :, :n],
                mark=mark,
            )
            for prompt, draws in zip(self.prompts, self.draws, strict=True)
        ]
        forwards = sum(text.forwards for text in found)
        return Texts([text.tokens.tolist() for text in found], forwards, forwards)

    def ours(self, mark: Callable[[str], None]) -> Texts:
        """All texts in a batch. Heads run at edits alone, and count with them."""
        options = dict(mask_length=self.toy.masks, tau=self.tau, time_epsilon=TIME_EPSILON, return_dict=True)
        output = self.sampler.sample(self.prompts, seed=self.toy.seed, **options)
        rows = [self._trimmed(row) for row in output.sequences.tolist()]
        return Texts(rows, output.stats.forwards, sum(output.stats.row_forwards))

    def same(self) -> float:
        """The share of texts that both programs made alike."""
        pairs = zip(*(self.texts[name].rows for name in PROGRAMS), strict=True)
        return sum(self._trimmed(a) == self._trimmed(b) for a, b in pairs) / len(self.prompts)

    def _trimmed(self, row: list[int]) -> list[int]:
        """A text without EOS at its end, with which rows of a batch are padded."""
        while row and row[-1] == self.toy.tokens.eos_token_id:
            row = row[:-1]
        return row


def summary(runs: list[Run]) -> dict[str, Any]:
    """Medians of runs, with their spread."""
    parts = {part for run in runs for part in run.parts}
    return {
        "seconds": timing.summary([run.seconds for run in runs]),
        "cpu_seconds": timing.summary([run.cpu_seconds for run in runs]),
        "split_seconds": {
            part: timing.summary([run.parts.get(part, 0.0) for run in runs])["median"] for part in sorted(parts)
        },
    }
