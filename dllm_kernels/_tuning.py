"""Block shapes, warps and stages of the Triton kernels, per architecture.

Nothing here depends on the number of rows: the result of a row must not depend on its batch. Nothing is searched at run
time either: what suits an architecture is written down here, with its origin.
"""

from typing import NamedTuple

import torch
import triton

from dllm_kernels import _impl


class GumbelArgmaxShape(NamedTuple):
    """How a row of logits is cut: chunks of BLOCK_V tokens, one program each, whose tokens lie in COLUMNS columns.

    A column is one thread's, so that nothing is exchanged between threads inside the pass.
    """

    BLOCK_V: int
    COLUMNS: int
    num_stages: int


# 8192 tokens in 128 columns are 64 tokens a thread: enough to pay for the reductions at the end of a chunk, and a
# vocabulary of 126464 tokens still has 16 programs a row.
_GUMBEL_ARGMAX = {
    "default": GumbelArgmaxShape(BLOCK_V=8192, COLUMNS=128, num_stages=1),  # origin: default, unmeasured
}
# One program combines all chunks of a row. Beyond so many of them (2 million tokens) the chunks widen.
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
# The most rows for which the head is fused. Each tile reads all hidden states from L2, half of what it reads of the
# weight at 64 rows; and the noise of 64 rows costs what the second pass over logits in L2 does.
_FUSED_ROWS = {
    "default": 64,  # origin: default, unmeasured
    "sm_100": 32,  # 64 spill; with twice the threads its matrix units are not used
}
# (most rows, threads, stages): at most 128 registers a thread, or two programs of few rows do not fit a multiprocessor;
# as many stages as fit its shared memory (with 64 rows for one program), of which unknown devices are taken to have
# 99 KiB.
_FUSED_HEAD = {
    "default": ((16, 256, 4), (32, 256, 4), (64, 512, 4)),  # origin: default, unmeasured
    "sm_80": ((16, 256, 4), (32, 256, 4), (64, 512, 6)),  # origin: default, unmeasured
    "sm_90": ((16, 256, 6), (32, 256, 5), (64, 512, 8)),  # origin: default, unmeasured
    "sm_100": ((16, 256, 6), (32, 256, 5)),  # origin: default, unmeasured
    "gfx942": ((16, 256, 2), (32, 256, 2), (64, 512, 2)),  # origin: default, unmeasured
}

# (widest window, warps): up to 128 columns are sorted within one warp, then it is 8 to 16 keys a thread.
_TRANSFER_TOKENS = {
    "default": ((128, 1), (512, 2), (2048, 4), (4096, 8), (8192, 16)),  # origin: default, unmeasured
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


def masked_cross_entropy(dtype: torch.dtype, plain: bool) -> MaskedCrossEntropyShape:
    """The shape for logits of `dtype` on the current device. What is not plain, a softcap or rows that are not aligned,
    needs the registers of the second half of 16."""
    architecture, warp_size = _target()
    threads, loaded = _MASKED_CROSS_ENTROPY.get(architecture, _MASKED_CROSS_ENTROPY["default"])
    vector = min(loaded // dtype.itemsize, 16 if plain else 8)
    return MaskedCrossEntropyShape(threads, vector, threads // warp_size)


def gumbel_argmax(vocab_size: int) -> tuple[GumbelArgmaxShape, int]:
    """The shape for a vocabulary on the current device, and the number of warps that gives every column a thread."""
    architecture, warp_size = _target()
    shape = _GUMBEL_ARGMAX.get(architecture, _GUMBEL_ARGMAX["default"])
    while triton.cdiv(vocab_size, shape.BLOCK_V) > MAX_CHUNKS:
        shape = shape._replace(BLOCK_V=2 * shape.BLOCK_V)
    return shape, shape.COLUMNS // warp_size


def truncation_floor() -> tuple[int, int]:
    """Threads and warps per row on the current device."""
    architecture, warp_size = _target()
    threads = _TRUNCATION_FLOOR.get(architecture, _TRUNCATION_FLOOR["default"])
    return threads, threads // warp_size


def fuses_head(rows: int, vocab_size: int) -> bool:
    """Whether so many rows get the fused head on the current device."""
    architecture, _ = _target()
    most = _FUSED_ROWS.get(architecture, _FUSED_ROWS["default"])
    return rows <= most and vocab_size <= HEAD_TILE * _MAX_TILES


def fused_head(rows: int, dtype: torch.dtype) -> tuple[FusedHeadShape, dict[str, int]]:
    """The shape of the fused head for so many rows on the current device, and launch options."""
    architecture, warp_size = _target()
    table = _FUSED_HEAD.get(architecture, _FUSED_HEAD["default"])
    BLOCK_R, threads, stages = next((entry for entry in table if rows <= entry[0]), table[-1])
    launch = {"num_warps": threads // warp_size, "num_stages": stages}
    if architecture.startswith("gfx"):
        launch["matrix_instr_nonkdim"] = 16  # the other size, which it would take for 32 rows and more, sums otherwise
    return FusedHeadShape(HEAD_TILE, BLOCK_R, _HEAD_COLUMN_BYTES // dtype.itemsize), launch


def transfer_tokens(window: int) -> tuple[int, int]:
    """BLOCK_W and the number of warps for a window on the current device."""
    architecture, _ = _target()
    BLOCK_W = max(32, triton.next_power_of_2(window))
    table = _TRANSFER_TOKENS.get(architecture, _TRANSFER_TOKENS["default"])
    return BLOCK_W, next(warps for widest, warps in table if BLOCK_W <= widest)


def _target() -> tuple[str, int]:
    """The current device's architecture (sm_90, gfx942, ...) and the number of threads in a warp."""
    if _impl.interpreting():
        return "default", 32
    target = triton.runtime.driver.active.get_current_target()
    return f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch), target.warp_size
