"""Cases of single operations: an operation on a shape of a known model, for pytest-benchmark and the GPU report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

HEADS = {  # hidden, vocabulary
    "modernbert-base": (768, 50368),
    "modernbert-large": (1024, 50368),
    "llada-8b": (4096, 126464),
    "dream-7b": (3584, 152064),
    "llada2": (2048, 157184),
    "qwen3-0.6b": (1024, 151936),
    "minilm": (384, 30522),
    "tiny": (64, 300),
}
WITH_HIDDEN = ("linear_gumbel_argmax", "linear_cross_entropy")
LOSSES = ("masked_cross_entropy", "linear_cross_entropy")
FIRST = ("llada-8b", "modernbert-large", "dream-7b")  # measured first, in case time runs out
OTHERS = ("llada2", "qwen3-0.6b", "modernbert-base")


@dataclass(frozen=True, slots=True)
class Case:
    """One operation on one shape.

    rows: R; the batch of transfer_tokens, the number of positions of position_noise. head: a name of HEADS; None for
    operations without a vocabulary. window: columns of transfer_tokens.
    """

    op: str
    rows: int
    head: str | None = None
    dtype: str = "bfloat16"
    temperature: float = 0.0
    window: int | None = None

    @property
    def hidden(self) -> int | None:
        return HEADS[self.head][0] if self.op in WITH_HIDDEN else None

    @property
    def vocab(self) -> int | None:
        return HEADS[self.head][1] if self.head else None

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def key(self) -> tuple[object, ...]:
        """The key of a stored prediction: (op, rows, hidden, vocab, dtype, temperature)."""
        columns = self.vocab if self.window is None else self.window
        return (self.op, self.rows, self.hidden, columns, self.dtype, self.temperature)

    @property
    def title(self) -> str:
        """The case without its operation, for tables.

        Example:
            >>> Case("gumbel_argmax", 64, "llada-8b", temperature=1.0).title
            'llada-8b, 64 x 126464 bfloat16, T 1'
        """
        if self.head is None:
            return f"{self.rows} x {self.window}" if self.window else f"{self.rows}"
        noise = "" if self.op in LOSSES or self.op == "truncation_floor" else f", T {self.temperature:g}"
        width = f" x {self.hidden}" if self.hidden else ""
        return f"{self.head}, {self.rows}{width} x {self.vocab} {self.dtype}{noise}"

    @property
    def bytes(self) -> int:
        """Least bytes to read and write, without intermediate results."""
        size = self.torch_dtype.itemsize
        if self.op == "transfer_tokens":
            return self.rows * (self.window * (8 + 8 + 4) + 2 * 8)  # canvas, proposals, confidence; two commits a row
        if self.op == "position_noise":
            return self.rows * (8 + 8 + 4)  # seeds, positions; noise
        if self.op in ("gumbel_argmax", "truncation_floor"):
            return self.rows * self.vocab * size
        if self.op == "masked_cross_entropy":
            return 2 * self.rows * self.vocab * size  # logits; their gradients
        operands = (self.rows + self.vocab) * self.hidden * size
        return operands if self.op == "linear_gumbel_argmax" else 2 * operands  # and their gradients

    @property
    def flops(self) -> float:
        """FLOPs of the matrix products: 2 R H V forward, and twice that backward."""
        if self.hidden is None:
            return 0.0
        return (6.0 if self.op == "linear_cross_entropy" else 2.0) * self.rows * self.hidden * self.vocab

    def floor_seconds(self, bytes_per_second: float, flops_per_second: float) -> float:
        """The least time at measured ceilings: the larger of bytes / copy speed and FLOPs / speed of a product."""
        return max(self.bytes / bytes_per_second, self.flops / flops_per_second)


def on_gpus() -> Iterator[Case]:
    """The cases of the GPU report; of each operation the most important first."""
    for rows in (1024, 64):
        for dtype in ("bfloat16", "float32"):
            for temperature in (0.0, 1.0):
                yield Case("gumbel_argmax", rows, "llada-8b", dtype, temperature)
    for head in (*FIRST[1:], *OTHERS):
        yield from (Case("gumbel_argmax", 64, head, temperature=t) for t in (0.0, 1.0))
    yield Case("gumbel_argmax", 1, "llada-8b", temperature=1.0)
    for rows in (64, 1, 32, 256, 1024, 16, 128):
        for head in FIRST:
            yield from (Case("linear_gumbel_argmax", rows, head, temperature=t) for t in (0.0, 1.0))
    yield from (Case("linear_gumbel_argmax", 64, head, temperature=1.0) for head in OTHERS)
    yield from (Case("truncation_floor", rows, head) for rows in (64, 1024) for head in FIRST)
    for batch, window in ((1, 32), (8, 64), (64, 64), (64, 512)):
        yield Case("transfer_tokens", batch, dtype="float32", window=window)
    yield from (Case("position_noise", rows, dtype="float32") for rows in (512, 65536))
    yield Case("linear_cross_entropy", 4096, "llada-8b")
    yield Case("linear_cross_entropy", 8192, "modernbert-large")
    yield Case("linear_cross_entropy", 1024, "llada-8b")
    yield from (Case("linear_cross_entropy", 4096, head) for head in ("dream-7b", "llada2", "qwen3-0.6b"))
    yield Case("linear_cross_entropy", 8192, "modernbert-base")
    yield Case("masked_cross_entropy", 1024, "llada-8b")
    yield Case("masked_cross_entropy", 8192, "modernbert-large")


def tiny(case: Case) -> Case:
    """The same operation on a tiny shape, in float32, which Triton's interpreter multiplies correctly."""
    window = case.window and 8
    return replace(case, rows=2, head=case.head and "tiny", dtype="float32", window=window)
