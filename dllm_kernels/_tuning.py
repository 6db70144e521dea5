"""Block shapes, warps and stages of the Triton kernels, per architecture.

Nothing here depends on the number of rows: the result of a row must not depend on its batch. Nothing is searched at run
time either: what suits an architecture is written down here, with its origin, and :mod:`dllm_kernels.tune` measures on
demand. What it kept for this GPU goes before the tables.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
import triton

from dllm_kernels import _impl, _tuning_cache


class GumbelArgmaxShape(NamedTuple):
    """How a row of logits is cut: chunks of BLOCK_V tokens, one program each, whose tokens lie in COLUMNS columns.

    A column is one thread's, so that nothing is exchanged between threads inside the pass. A pass reads 64 bytes of
    each column, and a chunk is whole passes: BLOCK_V is a multiple of 32 COLUMNS.
    """

    BLOCK_V: int
    COLUMNS: int
    num_stages: int


# 16384 tokens in 128 columns are 128 tokens a thread. What a chunk costs besides its passes is 600 instructions a
# thread at temperature 1: a fifth of all here, a third with 8192 tokens, a seventh with 32768. But 64 rows of 126464
# tokens are 512 programs here, four warps on each of an H200's schedulers, which hide the latency of memory; with 32768
# tokens, or with 64 columns, they are two.
_GUMBEL_ARGMAX = {
    "default": GumbelArgmaxShape(BLOCK_V=16384, COLUMNS=128, num_stages=1),  # origin: default, unmeasured
}
# One program combines all chunks of a row. Beyond so many of them (4 million tokens) the chunks widen.
MAX_CHUNKS = 256

# Threads of the program that searches a row for what top-k and top-p keep: few rows fill few multiprocessors, so each
# row gets as many threads as have 64 registers and more.
_TRUNCATION_FLOOR = {"default": 1024}  # origin: default, unmeasured


class FusedHeadShape(NamedTuple):
    """A program of the fused head: BLOCK_V tokens times BLOCK_R rows, multiplied BLOCK_K columns at a time."""

    BLOCK_V: int
    BLOCK_R: int
    BLOCK_K: int


# Tokens of a tile, and bytes of a row that are multiplied at a time: a row's bits depend on them.
HEAD_TILE = 128
_HEAD_COLUMN_BYTES = 128
# One program combines all tiles of a row, at most so many.
_MAX_TILES = 4096
# The most rows for which the head is fused. Each tile reads all hidden states from L2, at 32 rows a quarter of what it
# reads of the weight. A program of more rows would fill a multiprocessor, and nothing would run beside its epilogue: a
# library's product and the second pass over its logits are predicted to be as fast there.
_FUSED_ROWS = {"default": 32}  # origin: default, unmeasured
# (most rows, threads, stages): at most 128 registers a thread, or two programs do not fit a multiprocessor; as many
# stages as fit its shared memory, of which unknown devices are taken to have 99 KiB.
_FUSED_HEAD = {
    "default": ((16, 256, 4), (32, 256, 4)),  # origin: default, unmeasured
    "sm_90": ((16, 256, 6), (32, 256, 5)),  # origin: default, unmeasured
    "sm_100": ((16, 256, 6), (32, 256, 5)),  # origin: default, unmeasured
    "gfx942": ((16, 256, 2), (32, 256, 2)),  # origin: default, unmeasured
}

# (widest window, warps): up to 128 columns are sorted within one warp, then it is 8 to 16 keys a thread.
_TRANSFER_TOKENS = {
    "default": ((128, 1), (512, 2), (2048, 4), (4096, 8), (8192, 16)),  # origin: default, unmeasured
}


class Int8LinearShape(NamedTuple):
    """A program of the product in 8 bits: BLOCK_R rows times BLOCK_V outputs, multiplied BLOCK_K columns at a time."""

    BLOCK_R: int
    BLOCK_V: int
    BLOCK_K: int


# (BLOCK_R, warps, stages): few rows wait for the weight, so many of its tiles are on their way. Sums are exact
# integers, whatever the shape.
_INT8_LINEAR = {
    "default": ((16, 4, 5), (32, 4, 5), (64, 4, 4), (128, 8, 3)),  # origin: default, unmeasured
    "gfx942": ((16, 4, 2), (32, 4, 2), (64, 4, 2), (128, 8, 2)),  # origin: default, unmeasured
}


class MaskedCrossEntropyShape(NamedTuple):
    """How a program reads a row of logits: THREADS threads, VECTOR neighbouring tokens each at a time."""

    THREADS: int
    VECTOR: int
    num_warps: int


# (threads, bytes a thread loads at a time). As many threads as a program may have, with more than 32 registers each:
# one program fills a multiprocessor, few rows are under way, and their second reading finds them in L2.
_MASKED_CROSS_ENTROPY = {
    "default": (1024, 32),  # origin: default, unmeasured
    "gfx942": (1024, 16),  # 32 spill
}
# Rows of at most so many bytes stay in L2 even if two programs run on each multiprocessor (35 MB on 132 of them). So
# a thread loads 16 bytes at a time there, with 32 registers. Half as many tokens at a time also leave fewer threads
# without any at the end of a row: of 50368 tokens, 7 x 8192 instead of 4 x 16384.
_SHORT_ROW = 2**17


def masked_cross_entropy(dtype: torch.dtype, vocab_size: int, plain: bool) -> MaskedCrossEntropyShape:
    """The shape for logits [R, vocab_size] of `dtype` on the current device. What is not plain, a softcap or rows that
    are not aligned, needs the registers of the second half of 16."""
    (threads, loaded), warp_size = _choose("masked_cross_entropy", _MASKED_CROSS_ENTROPY)
    if vocab_size * dtype.itemsize <= _SHORT_ROW:
        loaded = min(loaded, 16)
    vector = min(loaded // dtype.itemsize, 16 if plain else 8)
    return MaskedCrossEntropyShape(threads, vector, threads // warp_size)


def gumbel_argmax(vocab_size: int) -> tuple[GumbelArgmaxShape, int]:
    """The shape for a vocabulary on the current device, and the number of warps that gives every column a thread."""
    shape, warp_size = _choose("gumbel_argmax", _GUMBEL_ARGMAX)
    while triton.cdiv(vocab_size, shape.BLOCK_V) > MAX_CHUNKS:
        shape = shape._replace(BLOCK_V=2 * shape.BLOCK_V)
    return shape, shape.COLUMNS // warp_size


def truncation_floor() -> tuple[int, int]:
    """Threads and warps per row on the current device."""
    threads, warp_size = _choose("truncation_floor", _TRUNCATION_FLOOR)
    return threads, threads // warp_size


def fuses_head(rows: int, vocab_size: int) -> bool:
    """Whether so many rows get the fused head on the current device."""
    most, _ = _choose("fused_rows", _FUSED_ROWS)
    return rows <= most and vocab_size <= HEAD_TILE * _MAX_TILES


def fused_head(rows: int, dtype: torch.dtype) -> tuple[FusedHeadShape, dict[str, int]]:
    """The shape of the fused head for so many rows on the current device, and launch options."""
    architecture, warp_size = _target()
    table = _FUSED_HEAD.get(architecture, _FUSED_HEAD["default"])
    BLOCK_R, *written = next((entry for entry in table if rows <= entry[0]), table[-1])
    (threads, stages), _ = _choose(f"fused_head_{BLOCK_R}", {"default": tuple(written)})
    launch = {"num_warps": threads // warp_size, "num_stages": stages}
    if architecture.startswith("gfx"):
        launch["matrix_instr_nonkdim"] = 16  # the other size, which it would take for 32 rows and more, sums otherwise
    return FusedHeadShape(HEAD_TILE, BLOCK_R, _HEAD_COLUMN_BYTES // dtype.itemsize), launch


def int8_linear(rows: int) -> tuple[Int8LinearShape, dict[str, int]]:
    """The shape of the product in 8 bits for so many rows on the current device, and launch options."""
    table, warp_size = _choose("int8_linear", _INT8_LINEAR)
    BLOCK_R, warps, stages = next((entry for entry in table if rows <= entry[0]), table[-1])
    return Int8LinearShape(BLOCK_R, 128, 64), {"num_warps": warps * 32 // warp_size, "num_stages": stages}


def transfer_tokens(window: int) -> tuple[int, int]:
    """BLOCK_W and the number of warps for a window on the current device."""
    BLOCK_W = max(32, triton.next_power_of_2(window))
    table, _ = _choose("transfer_tokens", _TRANSFER_TOKENS)
    return BLOCK_W, next(warps for widest, warps in table if BLOCK_W <= widest)


def block_schedule(window: int, threads: int = 1024) -> tuple[int, int]:
    """BLOCK_W and the number of warps for a window on the current device: 4 columns a thread, as far as `threads`
    suffice."""
    BLOCK_W, (_, warp_size) = max(32, triton.next_power_of_2(window)), _target()
    return BLOCK_W, max(min(BLOCK_W // 4, threads) // warp_size, 1)


# Beside what is written down: what is worth measuring. None of it lets a row's result depend on its batch, and of the
# fused head none changes a bit. A kept choice that is not among them is ignored.
_TRANSFER_WARPS = ((1, 2, 4, 8, 16), (1, 4, 8, 16, 16), (2, 4, 8, 16, 16), (1, 1, 2, 4, 8))
CANDIDATES: dict[str, tuple] = {
    "gumbel_argmax": tuple(
        GumbelArgmaxShape(BLOCK_V, COLUMNS, 1) for BLOCK_V in (8192, 16384, 32768) for COLUMNS in (64, 128)
    ),
    "truncation_floor": (256, 512, 1024),
    "masked_cross_entropy": tuple((threads, loaded) for threads in (512, 1024) for loaded in (16, 32)),
    "fused_head_16": tuple((threads, stages) for threads in (128, 256) for stages in (3, 4, 5, 6, 8)),
    "fused_head_32": tuple((threads, stages) for threads in (128, 256) for stages in (3, 4, 5, 6)),
    "fused_rows": (0, 16, 32),
    "transfer_tokens": tuple(tuple(zip((128, 512, 2048, 4096, 8192), warps, strict=True)) for warps in _TRANSFER_WARPS),
}
_instead: Mapping[str, object] | None = None  # set within `using` only


@contextmanager
def using(choices: Mapping[str, object] | None = None) -> Iterator[None]:
    """Within, these choices {table: choice} go before the tables, and nothing that was kept does; None for what an
    outer `using` says, if there is one, and else the tables alone."""
    global _instead
    before = _instead
    _instead = (before or {}) if choices is None else choices
    try:
        yield
    finally:
        _instead = before


def _choose(name: str, table: Mapping[str, object]) -> tuple[object, int]:
    """A table's entry for the current device, or what was found better there; and the number of threads in a warp."""
    architecture, warp_size = _target()
    found = _found().get(name)
    if found is not None:
        found = _tupled(found)
        if (known := next((choice for choice in CANDIDATES[name] if choice == found), None)) is not None:
            return known, warp_size
        _impl.log_once(f"the kept choice {found} for {name} is none that would be measured, and is ignored")
    return table.get(architecture, table["default"]), warp_size


def _found() -> Mapping[str, object]:
    if _instead is not None:
        return _instead
    return {} if _impl.interpreting() else _kept(torch.cuda.current_device())


@functools.cache
def _kept(device: int) -> Mapping[str, object]:
    """Read once in a process: the shapes of a captured graph and of what runs beside it are the same."""
    return _tuning_cache.read(torch.cuda.get_device_name(device))


def _tupled(value: object) -> object:
    return tuple(map(_tupled, value)) if isinstance(value, list | tuple) else value


def architecture() -> str:
    """Of the current device: sm_90, gfx942, ...; "default" in Triton's interpreter."""
    return _target()[0]


def _target() -> tuple[str, int]:
    """The current device's architecture (sm_90, gfx942, ...) and the number of threads in a warp."""
    if _impl.interpreting():
        return "default", 32
    target = triton.runtime.driver.active.get_current_target()
    return f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch), target.warp_size
