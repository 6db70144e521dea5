"""Compile every Triton kernel for GPUs that are not there, and print what each takes of one.

    python -m dllm_kernels.offline [--target sm_90 ...] [--named 'head, 64 rows' ...] [--json]

The launchers themselves run, on meta tensors: a stand-in for Triton's driver names the target, and a launch compiles
instead of running. So what is compiled is what a call with such arguments would launch, flag for flag.

Configurations: every flag of every kernel on and off, every dtype, rows aligned to 16 elements and not, every rule, the
narrowest and widest window of every number of warps. Not every combination of them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple
from unittest import mock

import torch

from dllm_kernels import _impl

TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}


class Compiled(NamedTuple):
    """One kernel in one configuration: registers per thread (AMD: vector registers), bytes of spills per thread, bytes
    of shared memory per program, the matrix instructions it uses (wgmma, tcgen05, mma or mfma; empty where none)."""

    kernel: str
    configuration: str
    target: str
    warps: int
    registers: int
    spills: int
    shared: int
    matrix: str


def configurations() -> Iterator[tuple[str, Callable[[], object]]]:
    """Name and call of every configuration; the calls launch on meta tensors.

    Example:
        >>> next(configurations())[0]
        'float32'
    """
    from dllm_kernels.block_schedule import triton as block_schedule
    from dllm_kernels.block_schedule.tables import BlockSchedule
    from dllm_kernels.gumbel_argmax import triton as gumbel_argmax
    from dllm_kernels.int8_linear import triton as int8_linear
    from dllm_kernels.linear_expected_embedding import triton as linear_expected_embedding
    from dllm_kernels.linear_gumbel_argmax import triton as linear_gumbel_argmax
    from dllm_kernels.masked_cross_entropy import triton as masked_cross_entropy
    from dllm_kernels.position_noise import triton as position_noise
    from dllm_kernels.transfer_tokens import triton as transfer_tokens
    from dllm_kernels.truncation_floor import triton as truncation_floor

    def meta(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def gumbel(vocab_size: int, dtype: torch.dtype, **options: object) -> Callable[[], object]:
        return partial(gumbel_argmax.gumbel_argmax, meta(8, vocab_size, dtype=dtype), **options)

    def cut(vocab_size: int, dtype: torch.dtype, **options: object) -> Callable[[], object]:
        return partial(truncation_floor.truncation_floor, meta(8, vocab_size, dtype=dtype), **options)

    def transfer(window: int, mask_id: int = 126336, **rule) -> Callable[[], object]:
        per_row, size = meta(1).expand(8), (8, window)
        rule = {"k": per_row, "threshold": None, "factor": None, "budget": None, **rule}
        return partial(
            transfer_tokens.transfer_tokens,
            *(meta(*size), meta(*size), meta(*size, dtype=torch.float32)),
            **dict(mask_id=mask_id, start=per_row, length=per_row, **rule),
        )

    def entropy(vocab_size: int, dtype: torch.dtype, gradient: bool = True, *options: float) -> Callable[[], object]:
        logits, per_row = meta(8, vocab_size, dtype=dtype), meta(8, dtype=torch.float32)
        arguments = (logits, meta(8), per_row, per_row, logits if gradient else None)
        return partial(masked_cross_entropy.masked_cross_entropy, *arguments, *(options or (0.0, 0.0, None)))

    def head(n: int, width: int, vocab_size: int, dtype: torch.dtype, bias: bool, **options) -> Callable[[], object]:
        of_weight, of_bias = (dtype, dtype) if options.get("weight_scale") is None else (torch.int8, torch.float32)
        operands = (meta(n, width, dtype=dtype), meta(vocab_size, width, dtype=of_weight))
        arguments = (*operands, meta(vocab_size, dtype=of_bias) if bias else None, options.pop("rows", None))
        return partial(linear_gumbel_argmax.fused_head, *arguments, options.pop("count", None), **options)

    def layer(n: int, width: int, outputs: int, dtype: torch.dtype, bias: bool) -> Callable[[], object]:
        float32 = dict(dtype=torch.float32)
        of_weight = (meta(outputs, width, dtype=torch.int8), meta(outputs, **float32))
        given = (meta(n, width, dtype=dtype), *of_weight, meta(outputs, **float32) if bias else None)
        return partial(int8_linear.int8_linear, *given)

    def weights(vocab_size: int, dtype: torch.dtype, *options: object) -> Callable[[], object]:
        logits, top = meta(8, vocab_size, dtype=dtype), meta(8, dtype=torch.float32)
        return partial(linear_expected_embedding.weigh, logits, top, *options)

    def step(window: int, every: bool = False) -> Iterator[tuple[str, Callable[[], object]]]:
        rows, table, cells, name = meta(8), meta(8, 4), meta(8, window), f"window {window}{', every option' * every}"
        amount = meta(8, 4, 32, dtype=torch.float32 if every else torch.int64)
        schedule, sure = BlockSchedule(rows, rows, rows, table, table, table, amount), cells.float()
        where = dict(mask_id=126336, block_only=every)
        listed = dict(start=rows, overflow=meta(1), window=window, hidden_offset=rows, hidden_rows=8192, room=512)
        listed |= dict(right_shift=every, editable=meta(8, 8192, dtype=torch.bool) if every else None, multiple=64)
        listed |= dict(temperature=meta(8, dtype=torch.float32) if every else None)
        placed = dict(proposals=cells, confidence=sure, row_steps=rows, failed=rows)
        moved = dict(first=rows, row_steps=rows, unmasked_steps=rows, adapts=every, stops_between_blocks=every)
        moved |= dict(edit_threshold=0.9 if every else None, edit_steps=16, ends=(126081, 126348) if every else None)
        canvas, noise = meta(8, 8192), meta(512, dtype=torch.float32)
        yield f"list, {name}", partial(block_schedule.list_candidates, canvas, schedule, rows, **where, **listed)
        place = partial(block_schedule.place_proposals, cells, meta(512), noise, noise if every else None, schedule)
        yield f"proposals, {name}", partial(place, **placed)
        move = partial(block_schedule.advance_rows, canvas, schedule, cells, sure, rows, **where)
        yield f"move, {name}", partial(move, **moved)

    llada, bert = 126464, 30522  # rows aligned to 16 elements; rows that are not
    noise = dict(temperature=meta(1, dtype=torch.float32).expand(8), seeds=meta(8), positions=meta(8), step=meta(8))
    chosen = dict(rows=meta(4), count=meta(1))
    suppress = {vocab_size: dict(suppress=meta(vocab_size, dtype=torch.bool)) for vocab_size in (llada, bert)}
    begin = {vocab_size: dict(begin_suppress=meta(vocab_size, dtype=torch.bool)) for vocab_size in (llada, bert)}
    floor = dict(floor=meta(8, dtype=torch.float32))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        yield name, gumbel(llada, dtype)
        yield f"{name} noise", gumbel(llada, dtype, **noise)
    bf16 = torch.bfloat16
    yield "bfloat16 ragged", gumbel(bert, bf16)
    yield "bfloat16 noise ragged", gumbel(bert, bf16, **noise)
    yield "bfloat16 suppress", gumbel(llada, bf16, **suppress[llada])
    yield "bfloat16 rows", gumbel(llada, bf16, rows=meta(4))
    yield "bfloat16 count", gumbel(llada, bf16, count=meta(1))
    yield "bfloat16 noise suppress rows count", gumbel(llada, bf16, **noise, **chosen, **suppress[llada])
    yield "float32 noise ragged suppress rows count", gumbel(bert, torch.float32, **noise, **chosen, **suppress[bert])
    yield "float32 one token", gumbel(1, torch.float32)
    yield "float32 most chunks", gumbel(2**22, torch.float32)
    yield "bfloat16 begin-suppress", gumbel(llada, bf16, **begin[llada])
    yield "bfloat16 noise begin-suppress", gumbel(llada, bf16, **noise, **begin[llada])
    yield "bfloat16 noise tempered", gumbel(llada, bf16, **noise, tempered=True)
    yield "bfloat16 noise tempered floor", gumbel(llada, bf16, **noise, **floor, tempered=True)
    yield "bfloat16 floor", gumbel(llada, bf16, **floor)
    yield "bfloat16 noise tempered softcap", gumbel(llada, bf16, **noise, tempered=True, softcap=30.0)
    every = dict(**noise, **chosen, **floor, tempered=True)
    yield "bfloat16 every option", gumbel(llada, bf16, **every, **suppress[llada], **begin[llada])
    yield "float32 every option ragged", gumbel(bert, torch.float32, **every, **suppress[bert], **begin[bert])
    tempered = dict(temperature=noise["temperature"])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        yield f"{name} top_p", cut(llada, dtype, top_p=0.9)
        yield f"{name} top_p tempered ragged", cut(bert, dtype, top_p=0.9, **tempered)
        yield f"{name} top_k", cut(llada, dtype, top_k=50)
    every = dict(top_k=50, top_p=0.95, **tempered, **chosen)
    yield "bfloat16 top_k top_p every option", cut(llada, bf16, **every, **suppress[llada])
    yield "float32 top_k top_p every option ragged", cut(bert, torch.float32, **every, **suppress[bert])
    drawn = {n: {name: meta(1, dtype=x.dtype).expand(n) for name, x in noise.items()} for n in (16, 32)}
    bert_large = (1024, 50368)
    flags = {name: meta(50368, dtype=torch.bool) for name in ("suppress", "begin_suppress")}
    yield "bfloat16 head, 16 rows", head(16, 4096, llada, bf16, False)
    yield "bfloat16 head, 16 rows noise", head(16, 4096, llada, bf16, False, **drawn[16])
    yield "bfloat16 head, 16 rows noise ragged", head(16, 100, 997, bf16, True, **drawn[16])
    yield "bfloat16 head, 32 rows noise", head(32, 4096, llada, bf16, False, **drawn[32])
    yield "bfloat16 head, 32 rows count", head(32, 3584, 152064, bf16, True, count=meta(1))
    listed = dict(rows=meta(32), count=meta(1))
    yield "bfloat16 head, 32 rows noise rows count", head(32, 4096, llada, bf16, False, **drawn[32], **listed)
    for dtype, capped in ((bf16, 30.0), (torch.float16, None), (torch.float32, 30.0)):
        name = str(dtype).removeprefix("torch.")
        yield f"{name} weights", weights(llada, dtype, noise["temperature"], None, True, capped)
    yield "bfloat16 weights, suppress ragged", weights(bert, bf16, None, suppress[bert]["suppress"], False, None)
    yield "bfloat16 head, 32 rows noise bias", head(32, *bert_large, bf16, True, **drawn[32])
    yield "float16 head, 32 rows noise suppress", head(32, *bert_large, torch.float16, True, **drawn[32], **flags)
    yield "float32 head, 16 rows noise", head(16, *bert_large, torch.float32, False, **drawn[16])
    yield "float32 head, 32 rows noise", head(32, *bert_large, torch.float32, True, **drawn[32])
    yield (
        "float32 head, 32 rows noise suppress tempered",
        head(32, *bert_large, torch.float32, True, **drawn[32], **flags, tempered=True),
    )
    for n in (16, 32, 64, 4096):
        yield f"int8 layer, {n} rows", layer(n, 4096, 12288, bf16, False)
        yield f"int8 layer, {n} rows ragged bias", layer(n, 112, 997, torch.float32, True)
    scaled = {vocab_size: dict(weight_scale=meta(vocab_size, dtype=torch.float32)) for vocab_size in (llada, 50368)}
    yield "int8 head, 16 rows noise", head(16, 4096, llada, bf16, False, **drawn[16], **scaled[llada])
    yield "int8 head, 32 rows noise bias", head(32, *bert_large, torch.float32, True, **drawn[32], **scaled[50368])
    scale = meta(1, dtype=torch.float32).expand(8)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        yield f"{name} loss", entropy(llada, dtype, False)
        yield f"{name} loss and gradient", entropy(llada, dtype)
        yield f"{name} loss and gradient, every option", entropy(llada, dtype, True, 0.1, 1e-4, 30.0)
        yield f"{name} loss and gradient ragged", entropy(bert, dtype)
        yield f"{name} scaled", partial(masked_cross_entropy.scale_rows, meta(8, llada, dtype=dtype), scale)
    yield "bfloat16 loss and gradient, smoothing", entropy(llada, bf16, True, 0.1, 0.0, None)
    yield "bfloat16 loss and gradient, z-loss, short rows", entropy(50368, bf16, True, 0.0, 1e-4, None)
    yield "bfloat16 loss and gradient, softcap", entropy(llada, bf16, True, 0.0, 0.0, 30.0)
    yield "float32 loss and gradient, one token", entropy(1, torch.float32)
    for law in ("uniform", "gumbel"):
        yield f"noise of positions, {law}", partial(position_noise.position_noise, meta(200), meta(200), meta(200), law)
    for window in (1, 64, 128, 256, 512, 1024, 2048, 4096, 8192):
        yield f"k window {window}", transfer(window, k=meta(8))
    for window in (64, 8192):
        yield f"threshold window {window}", transfer(window, threshold=0.9)
        yield f"factor window {window}", transfer(window, factor=1.0)
        yield f"budget window {window}", transfer(window, budget=2**31)
    for window in (64, 1024, 8192):
        yield from step(window)
        yield from step(window, every=True)
    yield "k window 64, 64-bit mask_id", transfer(64, mask_id=2**40, k=meta(8))


def compile_all(target: str, named: Sequence[str] = ()) -> list[Compiled]:
    """Compile every configuration for one target, or those whose name contains one of `named`.

    Raises:
        RuntimeError: Triton's interpreter is on (TRITON_INTERPRET=1): then there is nothing to compile.
    """
    if _impl.interpreting():
        raise RuntimeError("TRITON_INTERPRET=1 turns kernels into Python functions: unset it to compile them")
    rows = {}
    for configuration, call in configurations():
        if not named or any(text in configuration for text in named):
            for key, row in compile_call(call, target, configuration).items():
                rows.setdefault(key, row)  # a kernel that another configuration had compiled already
    return list(rows.values())


def compile_call(call: Callable[[], object], target: str, configuration: str = "") -> dict[str, Compiled]:
    """Compile what a call on meta tensors launches; by the hash of each kernel."""
    with _compiling_for(target) as compiled:
        call()
    rows = {}
    for kernel in compiled:
        registers, spills = _nvidia(kernel) if "cubin" in kernel.asm else _amd(kernel)
        name, meta = kernel.metadata.name.strip("_"), kernel.metadata
        used = (meta.num_warps, registers, spills, meta.shared, _matrix(kernel))
        rows[kernel.hash] = Compiled(name, configuration, target, *used)
    return rows


class StandInDriver:
    """What Triton asks its driver while it compiles, and :mod:`dllm_kernels._tuning` before it launches."""

    def __init__(self, target: str):
        from triton.backends.compiler import GPUTarget

        self._name, self._target = target, GPUTarget(*TARGETS[target])

    def get_current_device(self) -> str:
        return self._name  # the key under which kernels are kept

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_current_target(self):
        return self._target


@contextmanager
def _compiling_for(target: str) -> Iterator[list]:
    """Within, launches compile for `target` and run nothing; yields the list of what they compiled."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from dllm_kernels import _tuning

    compiled = []

    def compile_instead(kernel, grid):
        return lambda **arguments: compiled.append(kernel.warmup(grid=grid, **arguments))

    before = driver._active
    driver.set_active(StandInDriver(target))
    try:
        with mock.patch.object(JITFunction, "__getitem__", compile_instead), _tuning.using():
            yield compiled
    finally:
        driver.set_active(before)


def _nvidia(kernel) -> tuple[int, int]:
    """Registers and spilled bytes, from the cubin; our kernels have no other use for a stack."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return found["REG"], found["STACK"] + found["LOCAL"]


def _amd(kernel) -> tuple[int, int]:
    """Vector registers and bytes of scratch memory, from the metadata at the end of the assembly."""
    found = dict(re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s*(\d+)", kernel.asm["amdgcn"]))
    return int(found["vgpr_count"]), int(found["private_segment_fixed_size"])


def _matrix(kernel) -> str:
    """The kind of matrix instructions in a kernel."""
    code = kernel.asm["ptx" if "ptx" in kernel.asm else "amdgcn"]
    found = re.search(r"\b(?:(wgmma)\.mma_async|(tcgen05)\.mma|(mma)\.sync|v_(mfma)_)", code)
    return found[found.lastindex] if found else ""


def _table(rows: list[Compiled]) -> str:
    lines = [Compiled._fields, *(tuple(map(str, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    names = [field in ("kernel", "configuration", "target", "matrix") for field in Compiled._fields]
    return "\n".join(
        "  ".join(c.ljust(w) if name else c.rjust(w) for c, w, name in zip(line, widths, names, strict=True))
        for line in lines
    )


def main(arguments: list[str] | None = None) -> int:
    """The command line; what a target cannot compile ends it with Triton's error."""
    parser = argparse.ArgumentParser(prog="python -m dllm_kernels.offline", description=__doc__.splitlines()[0])
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS), help="default: all of them")
    parser.add_argument(
        "--named", nargs="+", default=[], metavar="TEXT", help="only configurations with one of these in their name"
    )
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    options = parser.parse_args(arguments)
    if missing := _impl.why_not_triton():
        parser.exit(1, f"{missing}\n")
    if _impl.interpreting():  # read when the kernels are defined: start again without it
        environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        return subprocess.run([sys.executable, "-m", "dllm_kernels.offline", *sys.argv[1:]], env=environment).returncode
    rows = []
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:  # starts processes when it is given something
        each = pool.map if len(options.target) > 1 else map
        tables = each(partial(compile_all, named=options.named), options.target)
        for target, compiled in zip(options.target, tables, strict=True):
            print(f"{target}: {len(compiled)} kernels compiled", file=sys.stderr)
            rows += compiled
    print(json.dumps([row._asdict() for row in rows]) if options.json else _table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
