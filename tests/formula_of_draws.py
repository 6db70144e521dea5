"""The draw of a token in Python floats, tile by tile: what the specification's vectors are compared with."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import torch

from dllm_kernels import philox


def drawn_token(logits: Mapping[int, float], T: float, seed: int, position: int, step: int) -> int:
    """The token of `logits`, token -> logit, which leaves out what is hidden: as dllm_kernels/draw.py describes it."""
    if not T > 0:
        return max(sorted(logits), key=logits.__getitem__)

    def gumbel(block: int, own: int, stream: int) -> float:
        words = philox.words(*(torch.tensor(x) for x in (seed, block, position, step)), stream)
        return float(philox.gumbel_from_words(words[own], words[(own + 1) % 4]))

    tiles = defaultdict(list)
    for v in sorted(logits):
        tiles[v // 512, v // 4 % 32].append(v)

    def tile_score(tile: tuple[int, int]) -> float:
        b, r = tile
        m = max(logits[v] for v in tiles[tile])
        weight = math.fsum(math.exp((logits[v] - m) / T) for v in tiles[tile])
        return m + T * (math.log(weight) + gumbel(256 * (b // 32) + 32 * (b % 8) + r, b // 8 % 4, 5))

    best = max(sorted(tiles), key=tile_score)
    return max(tiles[best], key=lambda v: logits[v] + T * gumbel(v // 4, v % 4, 0))
