"""The KV cache: keys and values of all columns of all rows, in memory that is written in place.

Nothing is appended and nothing is moved. The memory is sized once per call, and kept for the next call of that size.
Attention modules of transformers take a :class:`KeyValueCache` as `past_key_values`: they pass their new keys and
values to it and attend to what it returns.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch import Tensor

from dllm.fast.sampling.cache_layout import CacheLayout

COLUMN_MULTIPLE = 64  # calls of about the same length share memory
MAX_SPARE = 2  # caches of finished calls that are kept for later ones


class KeyValueCache:
    """Keys and values of every attention layer, [rows, heads, columns + 1, size] each.

    Before each forward :meth:`set_write_columns` sets where its keys and values are written. The last column belongs
    to no position: what need not be kept is written there. Columns that were never written hold zeros, or what an
    earlier forward left; a mask has to hide them.

    Args:
        layout: one :class:`Layer` per attention layer, from :func:`~dllm.fast.sampling.cache_layout.find_layout`.
        rows: of the batch.
        columns: of a row, without the last one.
        shift_column: size and dtype of a hidden state, where that of the column before each block is stored too; else
            None.

    Example:
        >>> from dllm.fast.sampling.cache_layout import Layer
        >>> layout = (Layer(2, 4, 4, torch.float32, torch.float32),)
        >>> cache = KeyValueCache(layout, rows=1, columns=6, device=torch.device("cpu"))
        >>> cache.set_write_columns(torch.tensor([0]), torch.tensor([[4, 5]]), visible=6)
        >>> keys, values = cache.update(torch.ones(1, 2, 2, 4), torch.ones(1, 2, 2, 4), layer_idx=0)
        >>> keys[0, 0, :, 0].tolist()
        [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    """

    is_compileable = False  # what transformers asks: its keys are the whole of what is kept

    def __init__(
        self, layout: CacheLayout, *, rows: int, columns: int, device: torch.device, shift_column: tuple | None = None
    ):
        self.layers: list[SimpleNamespace] = []
        self.layout, self.rows, self.columns = layout, rows, columns
        self.keys, self.values = [], []
        for heads, key_size, value_size, key_dtype, value_dtype in layout:
            self.keys.append(torch.zeros(rows, heads, columns + 1, key_size, dtype=key_dtype, device=device))
            self.values.append(torch.zeros(rows, heads, columns + 1, value_size, dtype=value_dtype, device=device))
        self.shift_column = None
        if shift_column is not None:
            size, dtype = shift_column
            self.shift_column = torch.zeros(rows, size, dtype=dtype, device=device)
        self._nowhere = torch.zeros(0, 0, dtype=torch.int64, device=device)
        self.clear_write_columns()

    @property
    def kind(self) -> tuple:
        """What another cache must equal to take the place of this one. torch forbids writes to tensors of inference
        mode outside of it."""
        kept = self.shift_column
        shift_column = None if kept is None else (kept.shape[1], kept.dtype)
        return self.layout, self.rows, self.columns, self.keys[0].device, shift_column, self.keys[0].is_inference()

    @property
    def memory(self) -> list[Tensor]:
        """All tensors that it keeps, each [rows, ...]."""
        return [*self.keys, *self.values] + ([] if self.shift_column is None else [self.shift_column])

    @property
    def bytes(self) -> int:
        """Its memory, in bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.memory)

    def set_write_columns(self, row: Tensor, column: Tensor, *, visible: int | None, first_rows: bool = True) -> None:
        """Set where the columns of the next forward are written, and what its attention reads.

        Args:
            row: int64 [b], the rows of the cache that run.
            column: int64 [b, W], where their columns are written.
            visible: attention reads this many first columns of the cache. None: attention reads the keys and values
                that it has just computed, and nothing else.
            first_rows: `row` is 0 ... b - 1, so that attention reads them in place; else it reads a copy.

        Raises:
            ValueError: the cache is too small.
        """
        if len(row) > self.rows or (visible is not None and visible > self.columns):
            raise ValueError(
                f"a cache of {self.rows} rows of {self.columns} columns cannot hold {len(row)} rows of {visible}"
            )
        self._row, self._column, self._visible, self._in_place = row[:, None], column, visible, first_rows

    def clear_write_columns(self) -> None:
        """Forget the last :meth:`set_write_columns`: its tensors may lie in memory of a CUDA graph, which is freed with
        the graph."""
        self._row, self._column = self._nowhere, self._nowhere
        self._visible: int | None = None
        self._in_place = True

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Store keys and values [b, heads, W, size] of a layer, and return those that attention may read.

        This is what attention modules call.

        Raises:
            TypeError: they have another dtype than the cache.
            ValueError: they have another shape than the columns that were set.
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
        if self._visible is None:
            return key_states, value_states
        if not self._in_place:
            memory = tuple(kept.index_select(0, self._row[:, 0]) for kept in memory)
        return memory[0][:rows, :, : self._visible], memory[1][:rows, :, : self._visible]

    @contextmanager
    def reading(self, rows: int, visible: int) -> Iterator[None]:
        """Let a model that writes nothing read this many first rows and columns of each layer, as `layers`."""
        pairs = zip(self.keys, self.values, strict=True)
        self.layers = [SimpleNamespace(keys=k[:rows, :, :visible], values=v[:rows, :, :visible]) for k, v in pairs]
        try:
            yield
        finally:
            self.layers = []

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: models that number positions themselves are given `position_ids`, and must not add to them."""
        return 0

    def store_shift_column(self, hidden: Tensor, begin: Tensor, starts: Tensor) -> None:
        """Store the hidden state of the column before each block, for the rows whose columns were set.

        Under a right shift the block's first token is read there, also in steps in which that column does not run.

        Args:
            hidden: [b, W, H], from column 0 on.
            begin: int64 [b], the first column of each row's block.
            starts: bool [b], the rows that start their block; the others keep what is stored.
        """
        row = self._row[:, 0]
        new = hidden[torch.arange(len(row), device=row.device), (begin - 1).clamp(min=0)]
        self.shift_column[row] = torch.where(starts[:, None], new, self.shift_column[row])

    def prepend_shift_column(self, hidden: Tensor) -> Tensor:
        """Hidden states [b, 1 + W, H]: those of windows [b, W, H] that start at their blocks, after the stored one."""
        return torch.cat([self.shift_column[self._row[:, 0], None], hidden], dim=1)

    def keep(self, rows: list[int]) -> None:
        """Move the rows `rows` (ascending) to the front; the others are given up."""
        for new, old in enumerate(rows):
            if new != old:
                for tensor in self.memory:
                    tensor[new].copy_(tensor[old])

    def clear(self) -> None:
        """Write zeros everywhere: a hidden column has weight 0, but 0 times NaN is NaN."""
        for tensor in self.memory:
            tensor.zero_()


class SpareCaches:
    """Caches of finished calls, which later calls take again.

    Example:
        >>> from dllm.fast.sampling.cache_layout import Layer
        >>> spare, layout = SpareCaches(), (Layer(1, 2, 2, torch.float32, torch.float32),)
        >>> first = spare.take(layout, rows=1, columns=5, device=torch.device("cpu"))
        >>> spare.give_back(first)
        >>> spare.take(layout, rows=1, columns=9, device=torch.device("cpu")) is first
        True
    """

    def __init__(self, size: int = MAX_SPARE):
        self.size = size
        self._free: list[KeyValueCache] = []
        self._lock = threading.Lock()

    def take(
        self, layout: CacheLayout, *, rows: int, columns: int, device: torch.device, shift_column: tuple | None = None
    ) -> KeyValueCache:
        """A cache of zeros with at least this many columns, to be given back."""
        columns = -(-columns // COLUMN_MULTIPLE) * COLUMN_MULTIPLE
        wanted = (layout, rows, columns, device, shift_column, torch.is_inference_mode_enabled())
        with self._lock:
            found = next((cache for cache in self._free if cache.kind == wanted), None)
            if found is not None:
                self._free.remove(found)
        if found is None:
            return KeyValueCache(layout, rows=rows, columns=columns, device=device, shift_column=shift_column)
        found.clear()
        return found

    def give_back(self, cache: KeyValueCache) -> None:
        """Keep it for another call; the oldest is given up where there are too many."""
        with self._lock:
            self._free = [*self._free, cache][-self.size :]

    def clear(self) -> None:
        """Free all of them."""
        with self._lock:
            self._free = []


SPARE = SpareCaches()
