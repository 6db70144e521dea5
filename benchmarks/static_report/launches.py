"""What a call asks of a GPU, counted from its launches on a machine that has none.

The operation runs on meta tensors. Every Triton launch is recorded instead of run, with its grid and arguments, and so
is every operation that torch would launch, matrix products foremost. Of each:

    bytes     of device memory: every tensor that is read and every one that is written counts once, a tensor that is
              both counts twice. What a kernel does with a pointer is read off its source: `tl.store` writes there, any
              other call reads. A tensor that was repeated by `expand` counts its own elements.
    l2_bytes  the same for what is found in the L2 cache: tensors of up to 32 MiB that the call makes for itself, or has
              met before; and the passes over a row after the first, by those kernels that document them.
    flops     of matrix products, by their shapes, those of the fused head by its grid: 2 m n k.
    slots     issue slots, threads times instructions: those of the random numbers, 16 for each logit that gets noise;
              or all of a Triton kernel's, from its disassembly, where launches are compiled too.

A launch is taken to touch all of every tensor it is given; with `rows` or `count` it touches less. Upstream gradients
are taken to be 1, so that no gradient is rescaled.
"""

from __future__ import annotations

import ast
import functools
import inspect
import math
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import zip_longest
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.static_report.disassembly import Code, disassemble
from dllm_kernels import _impl, offline

IN_CACHE = 2**25  # bytes: what a slice of logits is cut to, and what stays in an L2 of 40 or 50 MB
# ten rounds of two 32 x 32 -> 64 bit products, two three-way exclusive ors and their keys make four words
PHILOX_SLOTS = 16
_LEFT_FACTOR = {"mm": 0, "addmm": 1, "bmm": 0, "baddbmm": 1}  # argument number of the left factor of a product


class Launch(NamedTuple):
    """One launch: the kernel's or operation's name, its grid (empty where a library chooses it), and its counts."""

    name: str
    grid: tuple[int, ...]
    bytes: int
    l2_bytes: int
    flops: int
    slots: int


class _Touch(NamedTuple):
    """So many bytes of a storage, read or written."""

    storage: torch.UntypedStorage  # kept, so that no other storage gets its number
    n_bytes: int


class _Seen(NamedTuple):
    name: str
    grid: tuple[int, ...]
    touched: list[_Touch]
    again: int
    flops: int
    slots: int


def record(call: Callable[[], object], target: str = "sm_90", *, compiled: bool = False) -> list[Launch]:
    """The launches of `call` on a GPU of that architecture; it runs on meta tensors and returns what outlives it.

    Args:
        call: runs the operation on meta tensors that were made before; what it makes counts as temporary.
        target: "sm_90" or another of :data:`dllm_kernels.offline.TARGETS`.
        compiled: compile what is launched, seconds the first time, and count its instructions; NVIDIA only.

    Raises:
        RuntimeError: `compiled` under Triton's interpreter (TRITON_INTERPRET=1), which has nothing to compile.

    Example:
        >>> from dllm_kernels import gumbel_argmax
        >>> logits = torch.empty(8, 50368, dtype=torch.bfloat16, device="meta")
        >>> [(x.name, x.grid) for x in record(lambda: gumbel_argmax(logits))][:2]
        [('_chunk_kernel', (8, 7)), ('_combine_kernel', (8,))]
    """
    if compiled and _impl.interpreting():
        raise RuntimeError("TRITON_INTERPRET=1 turns kernels into Python functions: unset it to compile them")
    operations = _Operations()
    with _stand_in_for(target, operations.seen, compiled), operations:
        results = call()
    results = {x.untyped_storage()._cdata for x in tree_leaves(results) if isinstance(x, Tensor)}
    met: set[int] = set()
    return [_counted(seen, operations.made - results, met) for seen in operations.seen]


def _counted(seen: _Seen, temporary: set[int], met: set[int]) -> Launch:
    """A launch's bytes, split between memory and L2; `met` are the storages that launches before it touched."""
    n_bytes, l2_bytes = 0, seen.again
    for storage, touched in seen.touched:
        number = storage._cdata
        cached = storage.nbytes() <= IN_CACHE and (number in temporary or number in met)
        n_bytes, l2_bytes = n_bytes + touched * (not cached), l2_bytes + touched * cached
    met.update(storage._cdata for storage, _ in seen.touched)
    return Launch(seen.name, seen.grid, n_bytes, l2_bytes, seen.flops, seen.slots)


@contextmanager
def _stand_in_for(target: str, seen: list[_Seen], compiled: bool) -> Iterator[None]:
    """Within, meta tensors pass for those of a GPU, and Triton's launches are noted down in `seen`."""
    from triton.runtime import driver
    from triton.runtime.jit import KernelInterface

    from dllm_kernels import _tuning

    def note_instead(kernel, grid):
        def launch(**arguments):
            code = disassemble(kernel.warmup(grid=grid, **arguments)) if compiled else None
            seen.append(_triton_launch(kernel, grid, arguments, code))

        return launch

    before = driver._active
    driver.set_active(offline.StandInDriver(target))
    try:
        with ExitStack() as patches:
            for owner, name, stand_in in (
                (KernelInterface, "__getitem__", note_instead),
                (_impl, "interpreting", lambda: False),
                (_impl, "choose", lambda impl, device: "triton"),
                (torch.Tensor, "is_cuda", True),
                (torch.version, "cuda", torch.version.cuda or "13.0"),
                (torch.cuda, "device_of", nullcontext),
                (torch, "is_autocast_enabled", lambda *device: False),  # neither knows of meta tensors
                (torch, "autocast", lambda *_, **__: nullcontext()),
            ):
                patches.enter_context(mock.patch.object(owner, name, stand_in))
            patches.enter_context(_tuning.using())
            yield
    finally:
        driver.set_active(before)


class _Operations(TorchDispatchMode):
    """Notes down what torch launches; `made` are the storages that appear as an operation's result."""

    def __init__(self):
        super().__init__()
        self.seen: list[_Seen] = []
        self.made: set[int] = set()
        self._alive: list[torch.UntypedStorage] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = operation(*args, **kwargs)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        read = [x for x in given if x is not kwargs.get("out")]
        results = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        given = {x.untyped_storage()._cdata for x in given}
        fresh = [x for x in results if x.untyped_storage()._cdata not in given]
        self.made.update(x.untyped_storage()._cdata for x in fresh)
        self._alive += [x.untyped_storage() for x in fresh]
        name = operation._overloadpacket.__name__
        written = fresh if not operation._schema.is_mutable else results
        if written and not name.startswith(("empty", "new_empty")):
            flops = 2 * out.numel() * args[_LEFT_FACTOR[name]].shape[-1] if name in _LEFT_FACTOR else 0
            self.seen.append(_Seen(name, (), [*map(_touch, read), *map(_touch, written)], 0, flops, 0))
        return out


def _triton_launch(kernel, grid: tuple[int, ...], arguments: dict[str, object], code: Code | None) -> _Seen:
    reads, writes = _pointers(kernel.fn)
    name = kernel.fn.__name__
    if name == "_scale_kernel":  # rows whose scale is 1 are not touched
        reads, writes = frozenset({"scale_ptr"}), frozenset()
    touched = [
        _touch(x)
        for pointer, x in arguments.items()
        if isinstance(x, Tensor)
        for _ in range((pointer in reads) + (pointer in writes))
    ]
    again = _passes_in_cache(name, arguments) * _extent(arguments["x_ptr"]) if "x_ptr" in arguments else 0
    slots = _noise_slots(name, grid, arguments) if code is None else _all_slots(name, grid, arguments, code)
    return _Seen(name, grid, touched, again, _flops(name, grid, arguments), slots)


def _passes_in_cache(name: str, arguments: dict[str, object]) -> int:
    """Passes over the logits after the first, as the kernels' own documentation counts them."""
    if name == "_row_kernel":
        return int(arguments["HAS_GRADIENT"])
    if name == "_floor_kernel":
        return 11 if arguments["x_ptr"].dtype == torch.float32 else 6
    return 0


def _flops(name: str, grid: tuple[int, ...], arguments: dict[str, object]) -> int:
    """Of matrix products; only the fused head has one."""
    if name != "_tile_kernel":
        return 0
    columns = -(-arguments["H"] // arguments["BLOCK_K"]) * arguments["BLOCK_K"]
    return 2 * grid[0] * arguments["BLOCK_V"] * arguments["BLOCK_R"] * columns


def _noise_slots(name: str, grid: tuple[int, ...], arguments: dict[str, object]) -> int:
    if name == "_noise_kernel":
        return 4 * PHILOX_SLOTS * arguments["N"]  # a block of four words each
    if name == "_tile_kernel":
        return PHILOX_SLOTS * grid[0] * arguments["BLOCK_V"] * arguments["BLOCK_R"] * arguments["HAS_NOISE"]
    return PHILOX_SLOTS * arguments["x_ptr"].numel() if arguments.get("HAS_NOISE") else 0


def _all_slots(name: str, grid: tuple[int, ...], arguments: dict[str, object], code: Code) -> int:
    if name == "_scale_kernel":  # left at once
        return 0
    each = code.straight + sum(length * turns for length, turns in _turns(name, arguments, code.loops))
    return math.prod(grid) * 32 * arguments["num_warps"] * each


def _turns(name: str, arguments: dict[str, object], loops: tuple[int, ...]) -> list[tuple[int, int]]:
    """(instructions, how often) of each loop. The pass over the logits is a kernel's longest loop; what else loops does
    so once, as far as is known before it runs: the search of columns, of which one is enough more often than not."""
    longest = sorted(loops, reverse=True)
    if name == "_chunk_kernel":
        turns = [-(-min(arguments["BLOCK_V"], arguments["V"]) // (16 * arguments["COLUMNS"]))]
    elif name == "_row_kernel":  # the loop besides clears the gradient of rows without a weight
        each = arguments["THREADS"] * arguments["VECTOR"]
        turns = [-(-arguments["V"] // each)] * (1 + arguments["HAS_GRADIENT"]) + [0]
    elif name == "_floor_kernel":
        each = -(-arguments["V"] // (4 * arguments["COLUMNS"]))
        passes = 1 + _passes_in_cache(name, arguments)
        longest = loops  # the first finds the ends, the last searches
        turns = [each] * (len(loops) - 1) + [each * (passes - len(loops) + 1)]
    elif name == "_tile_kernel":
        turns = [-(-arguments["H"] // arguments["BLOCK_K"])]
    else:
        turns = []
    return list(zip_longest(longest, turns[: len(longest)], fillvalue=1))


@functools.cache
def _pointers(function: Callable) -> tuple[frozenset[str], frozenset[str]]:
    """The pointers through which a kernel reads, and those through which it writes."""
    reads, writes = set(), set()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if isinstance(node, ast.Call):
            stores = ast.unparse(node.func) == "tl.store"
            for number, argument in enumerate(node.args):
                (writes if stores and number == 0 else reads).update(_named(argument))
    return frozenset(reads), frozenset(writes)


def _named(expression: ast.expr) -> Iterator[str]:
    """The pointers that an expression is formed of, those behind a dot (their dtype) left out, and those in calls,
    which are met by themselves."""
    if isinstance(expression, ast.Name) and expression.id.endswith("_ptr"):
        yield expression.id
    elif not isinstance(expression, ast.Attribute | ast.Call):
        for part in ast.iter_child_nodes(expression):
            yield from _named(part)


def _touch(x: Tensor) -> _Touch:
    return _Touch(x.untyped_storage(), _extent(x))


def _extent(x: Tensor) -> int:
    """Bytes of a tensor's own elements: what `expand` repeats counts once."""
    elements = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        elements *= size if stride else min(size, 1)
    return elements * x.itemsize
