"""Keys and values that a model's attention has computed before: memory for all columns of all rows, written in place.

Nothing is appended and nothing is moved. The memory is sized once per call and kept for the next call of the same size.
Attention modules of transformers take a :class:`KeyValueCache` as `past_key_values`: they hand it new keys and values
and attend to what it hands back.
"""

from __future__ import annotations

import copy
import threading
import weakref
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dllm.fast.attention import attention_of, is_flash
from dllm.fast.deferred import undeferred
from dllm.fast.head import HeadTap

COLUMN_MULTIPLE = 64  # memory serves calls of about the same length
_NOISE = 16  # so many times that of a row which stays as it is, and a change is none of noise: both are largest of few
MAX_FREE = 2  # how much of it waits for another call

_layouts: weakref.WeakKeyDictionary[nn.Module, tuple[tuple, tuple]] = weakref.WeakKeyDictionary()


class Layer(NamedTuple):
    """What one attention layer keeps of a column. Under autocast keys and values may be of different dtypes."""

    heads: int
    key_size: int
    value_size: int
    key_dtype: torch.dtype
    value_dtype: torch.dtype


Layout = tuple[Layer, ...]


class KeyValueCache:
    """Keys and values [rows, heads, columns, size] of every layer.

    Before each forward :meth:`aim` says where its columns go. The last column is nobody's: what is not to be kept goes
    there. Columns that were not written hold zeros, or what an earlier forward left; a mask has to hide them.

    Args:
        layout: one :class:`Layer` for each attention layer, as :func:`layout_of` finds it.
        rows: of the batch.
        columns: of a row, without the one that is nobody's.
        before: size and dtype of what the body says of a column, where that of the column before a block is kept too.

    Example:
        >>> layout = (Layer(2, 4, 4, torch.float32, torch.float32),)
        >>> cache = KeyValueCache(layout, rows=1, columns=6, device=torch.device("cpu"))
        >>> cache.aim(torch.tensor([0]), torch.tensor([[4, 5]]), seen=6)
        >>> keys, values = cache.update(torch.ones(1, 2, 2, 4), torch.ones(1, 2, 2, 4), layer_idx=0)
        >>> keys[0, 0, :, 0].tolist()
        [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    """

    def __init__(self, layout: Layout, *, rows: int, columns: int, device: torch.device, before: tuple | None = None):
        self.layout, self.rows, self.columns = layout, rows, columns
        self.keys, self.values = [], []
        for heads, key_size, value_size, key_dtype, value_dtype in layout:
            self.keys.append(torch.zeros(rows, heads, columns + 1, key_size, dtype=key_dtype, device=device))
            self.values.append(torch.zeros(rows, heads, columns + 1, value_size, dtype=value_dtype, device=device))
        self.before = None if before is None else torch.zeros(rows, before[0], dtype=before[1], device=device)
        self._nowhere = torch.zeros(0, 0, dtype=torch.int64, device=device)
        self.unaim()

    @property
    def kind(self) -> tuple:
        """What another cache must have in common with this one to take its place; torch forbids to write tensors of
        inference mode outside of it."""
        memory, before = self.keys[0], None if self.before is None else (self.before.shape[1], self.before.dtype)
        return self.layout, self.rows, self.columns, memory.device, before, memory.is_inference()

    @property
    def memory(self) -> list[Tensor]:
        """All that it keeps, each [rows, ...]."""
        return [*self.keys, *self.values] + ([] if self.before is None else [self.before])

    @property
    def bytes(self) -> int:
        """Its memory, in bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.memory)

    def aim(self, row: Tensor, column: Tensor, *, seen: int | None) -> None:
        """Where the columns of the next forward go.

        Args:
            row: int64 [b], the rows of the cache that it runs.
            column: int64 [b, W], where their columns go.
            seen: so many of the first columns of these rows are handed back to attention; the rows are then the first b
                of the cache. None: attention sees what it has just computed, and nothing else.

        Raises:
            ValueError: the cache is too small.
        """
        if len(row) > self.rows or (seen is not None and seen > self.columns):
            raise ValueError(
                f"a cache of {self.rows} rows of {self.columns} columns cannot hold {len(row)} rows of {seen}"
            )
        self._row, self._column, self._seen = row[:, None], column, seen

    def unaim(self) -> None:
        """No forward comes next. What one was aimed by may lie in memory of a CUDA graph, to be freed with it."""
        self._row, self._column = self._nowhere, self._nowhere
        self._seen: int | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """What attention calls: keep keys and values [b, heads, W, size], and hand out those that it may see.

        Raises:
            TypeError: they have another dtype than the cache.
            ValueError: they have another shape than the cache was aimed for.
        """
        rows, columns = self._column.shape
        memory = self.keys[layer_idx], self.values[layer_idx]
        for name, kept, states in zip(("keys", "values"), memory, (key_states, value_states), strict=True):
            if states.dtype != kept.dtype:
                raise TypeError(f"{name} of layer {layer_idx} must be {kept.dtype} as the cache, got {states.dtype}")
            expected = [rows, kept.shape[1], columns, kept.shape[3]]
            if list(states.shape) != expected:
                raise ValueError(f"{name} of layer {layer_idx} must be {expected}, got {list(states.shape)}")
            kept[self._row, :, self._column] = states.transpose(1, 2)
        if self._seen is None:
            return key_states, value_states
        return memory[0][:rows, :, : self._seen], memory[1][:rows, :, : self._seen]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many columns precede the ones that run: none, as far as a model that numbers them itself is concerned."""
        return 0

    def note_before(self, hidden: Tensor, begin: Tensor, opening: Tensor) -> None:
        """Keep what the body says of the column before a block, of the rows that it was aimed for: under a right shift
        the block's first token is read there, also in the steps in which that column does not run.

        Args:
            hidden: [b, W, H], the body's output, from column 0 on.
            begin: int64 [b], the first column of each row's block.
            opening: bool [b], the rows that begin it; the others keep what they have.
        """
        row = self._row[:, 0]
        new = hidden[torch.arange(len(row), device=row.device), (begin - 1).clamp(min=0)]
        self.before[row] = torch.where(opening[:, None], new, self.before[row])

    def with_before(self, hidden: Tensor) -> Tensor:
        """Windows [b, W, H] that begin at their blocks, with what was noted of the column before: [b, 1 + W, H]."""
        return torch.cat([self.before[self._row[:, 0], None], hidden], dim=1)

    def keep(self, rows: list[int]) -> None:
        """Move some rows (ascending) to the front, where others have left; a row that is in its place stays there."""
        for new, old in enumerate(rows):
            if new != old:
                for tensor in self.memory:
                    tensor[new].copy_(tensor[old])

    def clear(self) -> None:
        """Zeros everywhere: a column that is hidden has no weight, but nothing times NaN is NaN."""
        for tensor in self.memory:
            tensor.zero_()


class Pool:
    """Memory of finished calls, for the next ones.

    Example:
        >>> pool, layout = Pool(), (Layer(1, 2, 2, torch.float32, torch.float32),)
        >>> first = pool.take(layout, rows=1, columns=5, device=torch.device("cpu"))
        >>> pool.give_back(first)
        >>> pool.take(layout, rows=1, columns=9, device=torch.device("cpu")) is first
        True
    """

    def __init__(self, size: int = MAX_FREE):
        self.size = size
        self._free: list[KeyValueCache] = []
        self._lock = threading.Lock()

    def take(
        self, layout: Layout, *, rows: int, columns: int, device: torch.device, before: tuple | None = None
    ) -> KeyValueCache:
        """A cache of zeros with at least so many columns, to be given back."""
        columns = -(-columns // COLUMN_MULTIPLE) * COLUMN_MULTIPLE
        wanted = (layout, rows, columns, device, before, torch.is_inference_mode_enabled())
        with self._lock:
            found = next((cache for cache in self._free if cache.kind == wanted), None)
            if found is not None:
                self._free.remove(found)
        if found is None:
            return KeyValueCache(layout, rows=rows, columns=columns, device=device, before=before)
        found.clear()
        return found

    def give_back(self, cache: KeyValueCache) -> None:
        """Keep it for another call; the one that waited longest has to go where there are too many."""
        with self._lock:
            self._free = [*self._free, cache][-self.size :]

    def clear(self) -> None:
        """Free what waits."""
        with self._lock:
            self._free = []


POOL = Pool()


def layout_of(tap: HeadTap) -> Layout:
    """What the model's attention layers keep, found by small forwards, once per model and its settings.

    Raises:
        ValueError: the model keeps no cache, or does not see exactly what a mask of four dimensions lets it see.
    """
    return _known(tap)[0]


def said_of(tap: HeadTap) -> tuple[int, torch.dtype]:
    """Size and dtype of what the body says of a column; found, and raises, as :func:`layout_of`."""
    return _known(tap)[1]


@torch.no_grad()
def _known(tap: HeadTap) -> tuple[Layout, tuple[int, torch.dtype]]:
    eager = copy.copy(tap)
    eager.model = getattr(tap.model, "_orig_mod", tap.model)  # what torch.compile made of it need not compile for this
    state = tap.kind, settings_of(eager.model)
    known = _layouts.get(eager.model)
    if known is not None and known[0] == state:
        return known[1]
    with undeferred():
        found, meaningful = _inspect(eager)
    if meaningful:
        _layouts[eager.model] = (state, found)
    return found


def settings_of(model: nn.Module) -> tuple:
    """What may change how a model runs, besides its weights' values."""
    weight = next(model.parameters())
    autocast = torch.is_autocast_enabled(weight.device.type) and torch.get_autocast_dtype(weight.device.type)
    hooks = tuple(tuple(module._forward_pre_hooks) for module in model.modules())
    return attention_of(model), weight.dtype, str(weight.device), autocast, hooks, _checkpoints(model)


def _checkpoints(model: nn.Module) -> bool:
    """Whether layers compute their activations twice: those of transformers then drop `past_key_values`, with a word in
    the log."""
    return any(module.training and getattr(module, "gradient_checkpointing", False) for module in model.modules())


class _Recorder:
    """A cache that keeps nothing, and notes what it is handed."""

    def __init__(self):
        self.layers: list[tuple[int, Layer]] = []

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object):
        sizes = key_states.shape[1], key_states.shape[-1], value_states.shape[-1]
        self.layers.append((layer_idx, Layer(*sizes, key_states.dtype, value_states.dtype)))
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


def _inspect(tap: HeadTap) -> tuple[tuple[Layout, tuple[int, torch.dtype]], bool]:
    """What :func:`_known` tells, and whether it can be relied on: of a model that says NaN nothing is known.

    Tokens 0 1 2 3, of which the first two see each other and the others see all. So the first must tell a change of
    the second, and nothing of a change of the last. Attention that takes no such mask sees all: then the first must
    tell a change of the last. Beside the row runs another that stays as it is: what changes there is noise, of
    activations that are quantised by one scale for all rows.
    """
    name, device = type(tap.model).__name__, next(tap.model.parameters()).device
    block = torch.arange(4, device=device) // 2
    seen = (block[None, :] <= block[:, None]).expand(2, 1, -1, -1)
    if sees_all := is_flash(tap.model):
        seen = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)

    def first(*tokens: int) -> tuple[Tensor, _Recorder]:
        recorder = _Recorder()
        ids = torch.tensor([(0, 1, 2, 3), tokens], device=device)
        positions = torch.arange(4, device=device).repeat(2, 1)
        said = tap.body(ids, seen, position_ids=positions, past_key_values=recorder)
        return said[:, 0], recorder

    def tells(*tokens: int, noise: int) -> bool:
        still, change = (first(*tokens)[0].float() - hidden.float()).abs().amax(1).tolist()
        return change > noise * still

    try:
        hidden, recorder = first(0, 1, 2, 3)
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{name} keeps no cache that could be served: {reason}") from error
    indices = [index for index, _ in recorder.layers]
    if not indices:
        why = "; gradient checkpointing is on, and drops it until eval() is called" if _checkpoints(tap.model) else ""
        raise ValueError(
            f"{name} keeps no cache: no attention layer of it hands keys and values to past_key_values{why}"
        )
    if indices != list(range(len(indices))):
        raise ValueError(
            "every attention layer must hand its keys and values to past_key_values once, in order; "
            f"those of {name} that did: {indices}"
        )
    meaningful = bool(hidden.isfinite().all())
    if meaningful and (tells(0, 1, 2, 1, noise=_NOISE) != sees_all or not tells(0, 2, 2, 3, noise=1)):
        raise ValueError(
            f"a position must see what attention_mask [B, 1, queries, keys] shows it and nothing else, later ones too; "
            f"{name} does not: dllm.models.bidirectional makes causal models do so"
        )
    return (tuple(layer for _, layer in recorder.layers), (hidden.shape[1], hidden.dtype)), meaningful
