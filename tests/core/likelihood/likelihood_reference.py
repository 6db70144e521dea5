"""The log-likelihood by its definition, in plain PyTorch and float64: every mask, one row at a time."""

from __future__ import annotations

import copy
import itertools
import math

import numpy
import torch
from torch import Tensor

from tests.models import MASK_ID


def weight(form: str, n: int, x: int, eps: float = 1e-3) -> float:
    """The weight of a mask of size x; the integral of the form "dream" by Gauss-Legendre quadrature, which is exact for
    its polynomial of degree n - 1."""
    if form == "llada":
        return 1 / (x * math.comb(n, x))
    nodes, weights = numpy.polynomial.legendre.leggauss(n // 2 + 1)
    t = (nodes + 1) / 2
    p = (1 - eps) * t + eps
    return float((weights / 2 * p ** (x - 1) * (1 - p) ** (n - x)).sum())


class Reference:
    """Log-likelihoods of a model, in float64.

    block_size: the model attends block by block, from column 0.
    dtype: float32 for models that have no float64.
    """

    def __init__(
        self, model, *, shift: bool = False, cfg_scale: float = 0.0, block_size: int | None = None, dtype=torch.float64
    ):
        self.model = copy.deepcopy(model).to(dtype)
        self.shift, self.cfg_scale, self.block_size = shift, cfg_scale, block_size

    @torch.no_grad()
    def log_probs(self, tokens: list[int], context: int) -> Tensor:
        """[L, V] of a row whose first `context` tokens guidance masks."""
        logits = self._logits(tokens)
        if self.cfg_scale:
            u = self._logits([MASK_ID] * context + tokens[context:])
            logits = u + (self.cfg_scale + 1) * (logits - u)
        logits = torch.cat([logits[:1], logits[:-1]]) if self.shift else logits
        return logits.double().log_softmax(-1)

    def _logits(self, tokens: list[int]) -> Tensor:
        inputs = {"input_ids": torch.tensor([tokens])}
        if self.block_size is not None:
            block = torch.arange(len(tokens)) // self.block_size
            inputs["attention_mask"] = (block[None, :] <= block[:, None])[None, None]
            inputs["position_ids"] = torch.arange(len(tokens))[None]
        return self.model(**inputs).logits[0]

    def log_likelihood(self, context, target, after=(), form: str = "llada", eps: float = 1e-3) -> float:
        """Of a target after a context."""
        row, start, stop = [*context, *target, *after], len(context), len(context) + len(target)
        places = [c for c in range(start, stop) if c > 0 or form == "llada"]
        if self.block_size is None:
            return self._sum(row, start, places, form, eps)
        total = 0.0
        for _, block in itertools.groupby(places, lambda c: c // self.block_size):
            block = list(block)
            end = (block[0] // self.block_size + 1) * self.block_size
            total += self._sum(row[:end], start, block, form, eps)
        return total

    def _sum(self, row, context, places, form, eps) -> float:
        total, n = 0.0, len(places)
        for x in range(1, n + 1):
            for mask in itertools.combinations(places, x):
                masked = [MASK_ID if c in mask else token for c, token in enumerate(row)]
                log_probs = self.log_probs(masked, context)
                total += weight(form, n, x, eps) * sum(float(log_probs[c, row[c]]) for c in mask)
        return total

    def in_order(self, context, target, after=(), order: str = "ar_ftb", first: int = 0) -> float:
        """Each token from number `first` on, read where it and all later ones are masked, or it and all earlier ones
        ("ar_btf"). A block stands before the later ones, so those are no part of the row."""
        row, start, stop = [*context, *target, *after], len(context), len(context) + len(target)
        total = 0.0
        for c in range(start + first, stop):
            begin, end = start + first, stop
            if self.block_size is not None:
                border = c // self.block_size * self.block_size
                begin, end = max(begin, border), min(end, border + self.block_size)
            masked = range(c, end) if order == "ar_ftb" else range(begin, c + 1)
            seen = row if self.block_size is None else row[: c // self.block_size * self.block_size + self.block_size]
            tokens = [MASK_ID if i in masked else token for i, token in enumerate(seen)]
            total += float(self.log_probs(tokens, start)[c, row[c]])
        return total

    def greedy(self, context, target, after=()) -> bool:
        """Whether the surest masked token, set one at a time, gives the target (of a model that sees whole rows)."""
        row, start, stop = [*context, *target, *after], len(context), len(context) + len(target)
        row[start:stop] = [MASK_ID] * len(target)
        while MASK_ID in row:
            log_prob, token = self.log_probs(row, start).max(-1)
            best = max((c for c in range(start, stop) if row[c] == MASK_ID), key=lambda c: float(log_prob[c]))
            row[best] = int(token[best])
        return row[start:stop] == list(target)
