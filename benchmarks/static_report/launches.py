"""The launches of a call on a GPU with their bytes, FLOPs and instructions, counted without a GPU.

The operation runs on meta tensors. Every Triton launch is recorded with its grid and arguments instead of run, and so
is every operation that torch would launch, such as a matrix product. A launch has these counts:

    bytes     of device memory. A tensor counts once if it is read, once if it is written, twice if both. A kernel
              writes to a pointer that it passes to `tl.store` and reads those that it passes to other calls, according
              to its source. A tensor repeated by `expand` counts its own elements once.
    l2_bytes  the same for the L2 cache. It holds tensors of up to 32 MiB that the call itself made or an earlier launch
              used, and serves the passes over a row after the first, in kernels that document several passes.
    flops     2 m n k of matrix products, by their shapes; those of the fused head by its grid.
    slots     issue slots, that is threads times instructions. Without compiling, only those of the random numbers: 16
              for each logit that gets noise. With compiling, all of a Triton kernel's, from its disassembly.

It assumes that a launch uses all elements of its tensors (with `rows` or `count` it uses fewer), and that upstream
gradients are 1, so that no gradient is rescaled.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.static_report.disassembly import Code, disassemble
from dllm_kernels import _impl, offline

IN_CACHE = 2**25  # bytes of a tensor that stays in an L2 cache of 40 or 50 MB
# per word: ten rounds of two 32 x 32 -> 64 bit products, two three-way XORs and the keys make four words
PHILOX_SLOTS = 16
_LEFT_FACTOR = {"mm": 0, "addmm": 1, "bmm": 0, "baddbmm": 1}  # argument number of the left factor of a product


class Launch(NamedTuple):
    """One launch: the kernel's or operation's name, its grid (empty where a library chooses it), and its counts. Of
    a Triton kernel its constants by name, and where it was compiled its code."""

    name: str
    grid: tuple[int, ...]
    bytes: int
    l2_bytes: int
    flops: int
    slots: int
    constants: dict[str, object]
    code: Code | None


class _Touch(NamedTuple):
    """Bytes of a storage that a launch reads or writes."""

    storage: torch.UntypedStorage  # kept alive, so that no other storage gets its number
    n_bytes: int


class _Recorded(NamedTuple):
    """A launch before its bytes are divided between memory and L2. again: bytes of passes after the first."""

    name: str
    grid: tuple[int, ...]
    touched: list[_Touch]
    again: int
    flops: int
    slots: int
    constants: dict[str, object]
    code: Code | None


def record(call: Callable[[], object], target: str = "sm_90", *, compiled: bool = False) -> list[Launch]:
    """The launches of `call` on a GPU of the architecture `target`.

    Args:
        call: runs the operation on existing meta tensors and returns the results. Other tensors that it makes are
            temporary.
        target: "sm_90" or another of :data:`dllm_kernels.offline.TARGETS`.
        compiled: also compile the kernels, which takes seconds the first time, and count their instructions; NVIDIA
            only.

    Raises:
        RuntimeError: `compiled` under Triton's interpreter (TRITON_INTERPRET=1), which has nothing to compile.

    Example:
        >>> from dllm_kernels import gumbel_argmax
        >>> logits = torch.empty(8, 50368, dtype=torch.bfloat16, device="meta")
        >>> [(x.name, x.grid) for x in record(lambda: gumbel_argmax(logits))][:2]
        [('_chunk_kernel', (8, 4)), ('_combine_kernel', (8,))]
    """
    if compiled and _impl.interpreting():
        raise RuntimeError("TRITON_INTERPRET=1 turns kernels into Python functions: unset it to compile them")
    operations = _Operations()
    with _stand_in_for(target, operations.seen, compiled), operations:
        results = call()
    results = {x.untyped_storage()._cdata for x in tree_leaves(results) if isinstance(x, Tensor)}
    met: set[int] = set()
    return [_counted(seen, operations.made - results, met) for seen in operations.seen]


def _counted(seen: _Recorded, temporary: set[int], met: set[int]) -> Launch:
    """A launch with its bytes divided between memory and L2; `met`: the storages that earlier launches used."""
    n_bytes, l2_bytes = 0, seen.again
    for storage, touched in seen.touched:
        number = storage._cdata
        cached = storage.nbytes() <= IN_CACHE and (number in temporary or number in met)
        n_bytes, l2_bytes = n_bytes + touched * (not cached), l2_bytes + touched * cached
    met.update(storage._cdata for storage, _ in seen.touched)
    return Launch(seen.name, seen.grid, n_bytes, l2_bytes, seen.flops, seen.slots, seen.constants, seen.code)


@contextmanager
def _stand_in_for(target: str, seen: list[_Recorded], compiled: bool) -> Iterator[None]:
    """A context in which meta tensors count as CUDA tensors and Triton's launches are recorded in `seen`."""
    from triton.runtime import driver
    from triton.runtime.jit import KernelInterface

    from dllm_kernels import _tuning

    def note_instead(kernel, grid):
        def launch(**arguments):
            code = disassemble(kernel.warmup(grid=grid, **arguments)) if compiled else None
            seen.append(_triton_launch(kernel, grid, arguments, code))

        return launch

    # on its first import the compiler notes torch's functions for good, and those below are replaced only for now
    importlib.import_module("torch._dynamo.variables.torch")
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
                (torch, "is_autocast_enabled", lambda *device: False),  # neither supports meta tensors
                (torch, "autocast", lambda *_, **__: nullcontext()),
            ):
                patches.enter_context(mock.patch.object(owner, name, stand_in))
            patches.enter_context(_tuning.using())
            yield
    finally:
        driver.set_active(before)


class _Operations(TorchDispatchMode):
    """Records the operations of torch in `seen`; `made`: the storages that operations created."""

    def __init__(self):
        super().__init__()
        self.seen: list[_Recorded] = []
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
            touched = [*map(_touch, read), *map(_touch, written)]
            self.seen.append(_Recorded(name, (), touched, 0, flops, 0, {}, None))
        return out


def _triton_launch(kernel, grid: tuple[int, ...], arguments: dict[str, object], code: Code | None) -> _Recorded:
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
    constants = {argument: value for argument, value in arguments.items() if argument.isupper()}
    return _Recorded(name, grid, touched, again, _flops(name, grid, arguments), slots, constants, code)


def _passes_in_cache(name: str, arguments: dict[str, object]) -> int:
    """Number of passes over the logits after the first, according to the kernels' documentation."""
    if name == "_row_kernel":
        return int(arguments["HAS_GRADIENT"])
    if name == "_floor_kernel":
        return 11 if arguments["x_ptr"].dtype == torch.float32 else 6
    return 0


def _flops(name: str, grid: tuple[int, ...], arguments: dict[str, object]) -> int:
    """FLOPs of the matrix product in a Triton kernel; only the fused head has one."""
    if name != "_tile_kernel":
        return 0
    columns = -(-arguments["H"] // arguments["BLOCK_K"]) * arguments["BLOCK_K"]
    return 2 * grid[0] * arguments["BLOCK_V"] * arguments["BLOCK_R"] * columns


def _noise_slots(name: str, grid: tuple[int, ...], arguments: dict[str, object]) -> int:
    if name == "_noise_kernel":
        return 4 * PHILOX_SLOTS * arguments["N"]  # each position uses a whole block of four words
    if not arguments.get("HAS_NOISE"):
        return 0
    if name == "_tile_kernel":  # a block for each tile of 16 tokens
        return 4 * PHILOX_SLOTS * grid[0] * arguments["BLOCK_V"] // 16 * arguments["BLOCK_R"]
    # a block for four tiles; and in the second kernel one for each of the 16 tokens of one tile
    return 4 * PHILOX_SLOTS * (arguments["x_ptr"].numel() // 64 if name == "_chunk_kernel" else 16 * grid[0])


def _all_slots(name: str, grid: tuple[int, ...], arguments: dict[str, object], code: Code) -> int:
    if name == "_scale_kernel":  # returns at once where the scale is 1
        return 0
    turns = _turns(name, grid, arguments, code.loops)
    each = code.straight + sum(length * n for length, n in zip(code.loops, turns, strict=True))
    each += sum(length * min(n, 1) for length, n in zip(code.setups, turns, strict=True))
    return round(math.prod(grid) * 32 * arguments["num_warps"] * each)


def _turns(name: str, grid: tuple[int, ...], arguments: dict[str, object], loops: tuple[int, ...]) -> Sequence[float]:
    """The number of turns of each loop, on average over the programs of a launch.

    The longest loop of most kernels is their pass over the logits. Others count one turn, since their number is only
    known at run time.
    """
    if name == "_chunk_kernel":
        return chunk_turns(grid[1], arguments)
    if name == "_row_kernel":  # a further loop clears the gradient of rows of weight 0
        each = arguments["THREADS"] * arguments["VECTOR"]
        turns = [-(-arguments["V"] // each)] * (1 + arguments["HAS_GRADIENT"]) + [0]
    elif name == "_floor_kernel":
        each = -(-arguments["V"] // (4 * arguments["COLUMNS"]))
        passes = 1 + _passes_in_cache(name, arguments)
        # the first finds minimum and maximum, the last searches
        return [each] * (len(loops) - 1) + [each * (passes - len(loops) + 1)]
    elif name == "_tile_kernel":
        turns = [-(-arguments["H"] // arguments["BLOCK_K"])]
    else:
        turns = []
    by_length = sorted(range(len(loops)), key=lambda loop: -loops[loop])
    longest = dict(zip(by_length, turns, strict=False))
    return [longest.get(loop, 1) for loop in range(len(loops))]


def chunk_turns(chunks: int, arguments: dict[str, object]) -> list[float]:
    """Of a launch of so many chunks a row: whole passes, a partial one, the searches of columns, and the second reading
    of chunks with logits far from 0, which is not counted.

    Of normal logits 1.1 columns are searched for the draw. One more is for the argmax where columns share their peak:
    in 3 % of chunks in bfloat16.
    """
    plain = arguments["EVEN_V"] and not any(
        arguments[flag] for flag in ("HAS_SUPPRESS", "HAS_BEGIN_SUPPRESS", "HAS_FLOOR", "HAS_SOFTCAP")
    )
    width = 4 * (8 if plain and arguments["x_ptr"].itemsize == 2 else 4) * arguments["COLUMNS"]
    tokens = min(arguments["V"] - arguments["first_chunk"] * arguments["BLOCK_V"], chunks * arguments["BLOCK_V"])
    searches = [0.03, 1.1] if arguments["HAS_NOISE"] else [0.03]
    return [tokens // width / chunks, bool(tokens % width) / chunks, *searches, 0]


@functools.cache
def _pointers(function: Callable) -> tuple[frozenset[str], frozenset[str]]:
    """Names of the pointers that a kernel reads, and of those that it writes."""
    reads, writes = set(), set()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if isinstance(node, ast.Call):
            stores = ast.unparse(node.func) == "tl.store"
            for number, argument in enumerate(node.args):
                (writes if stores and number == 0 else reads).update(_named(argument))
    return frozenset(reads), frozenset(writes)


def _named(expression: ast.expr) -> Iterator[str]:
    """Names of the pointers in an expression.

    Attributes (`x_ptr.dtype`) are left out, and so are calls inside it, which are looked at separately.
    """
    if isinstance(expression, ast.Name) and expression.id.endswith("_ptr"):
        yield expression.id
    elif not isinstance(expression, ast.Attribute | ast.Call):
        for part in ast.iter_child_nodes(expression):
            yield from _named(part)


def _touch(x: Tensor) -> _Touch:
    return _Touch(x.untyped_storage(), _extent(x))


def _extent(x: Tensor) -> int:
    """Bytes of a tensor's elements; those repeated by `expand` count once."""
    elements = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        elements *= size if stride else min(size, 1)
    return elements * x.itemsize
