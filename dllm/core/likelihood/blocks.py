"""The head's input where a model attends block by block: the text before a block is run once for many masks.

No column sees a later block, so keys and values of the columns before one do not depend on what is masked in it.
They are computed once for each different text, kept while rows ask for it, and read by all rows. A row then runs only
the columns of its block. Under a right shift it also runs the column before, whose hidden state is read for the block's
first column; the kept keys of that column are hidden then, as it has its own.

Source: block diffusion, BD3-LM (arXiv:2503.09573).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm.core.likelihood.rows import Row, Tokens
from dllm.fast import visibility
from dllm.fast.attention import check_attention
from dllm.fast.head.split import SplitModel
from dllm.fast.sampling.cache_layout import find_layout

_log = logging.getLogger("dllm.core.likelihood")

Prefix = tuple[Tokens, int]  # tokens before a block, and its first column, from which blocks are counted both ways


class BlockBody:
    """Runs rows of a model that attends block by block.

    Args:
        split: of the model.
        size: of a block.
        right_shift: the column before a block is read too.
        cache: keep keys and values of the text before a block. Where the model cannot, that is logged, and rows are run
            whole.
        longest: columns of the longest row.
        device: of the tokens.

    Raises:
        ValueError: the model's attention takes no mask of four dimensions, or does not keep to it, or some layers see
            less than a row.
    """

    def __init__(
        self, split: SplitModel, size: int, *, right_shift: bool, cache: bool, longest: int, device: torch.device
    ):
        self.split, self.size, self.right_shift, self.device = split, size, right_shift, device
        check_attention(split.model, block_causal=size, cache=None, padded=True, columns=longest)
        visibility.check_block_mask(split.model, device)
        self.cached = cache and self._keeps_cache()
        self.one_by_one = visibility.why_not_batched(split.model, device) is not None
        self.kept = PrefixStates()

    def width(self, row: Row) -> int:
        """Columns of a row that run for each mask."""
        return len(row.tokens) - self._first_column(row)

    def run(self, rows: Sequence[Row]) -> tuple[Tensor, list[int]]:
        """Hidden states [B, W, H] of the last columns of each row, and the column of each row that is the first."""
        first = [self._first_column(row) for row in rows]
        tokens = _padded([row.tokens[begin:] for row, begin in zip(rows, first, strict=True)], self.device)
        column = torch.arange(tokens.shape[1], device=self.device) + self._vector(first)[:, None]
        length, block = self._vector([len(row.tokens) for row in rows]), self._vector([row.block for row in rows])
        mask, context = self._mask(column, column, length, block), {"position_ids": column}
        if self.cached and any(row.block for row in rows):
            states = self._prefixes(rows)
            index = self._vector([states.place.get(_prefix(row), 0) for row in rows])
            key = torch.arange(states.columns, device=self.device)
            shown = key < self._vector(first)[:, None]
            shown = shown[:, None, None, :].expand(-1, 1, tokens.shape[1], -1)
            mask = torch.cat([shown, mask], dim=3)
            context["past_key_values"] = _AfterPrefix(states, index)
        return self.split.body(tokens, mask, **context), first

    def _first_column(self, row: Row) -> int:
        """The first column of a row that runs."""
        return max(row.block - self.right_shift, 0) if self.cached else 0

    def _prefixes(self, rows: Sequence[Row]) -> PrefixStates:
        """Keys and values of the text before each row's block."""
        wanted = list(dict.fromkeys(_prefix(row) for row in rows if row.block > 0))
        missing = [prefix for prefix in wanted if prefix not in self.kept.place]
        kept = self.kept.choose([prefix for prefix in wanted if prefix in self.kept.place])
        self.kept = kept.extended(self._compute(missing)) if missing else kept
        return self.kept

    def _compute(self, prefixes: list[Prefix]) -> PrefixStates:
        """Run texts before blocks, and keep the keys and values."""
        tokens = _padded([tokens for tokens, _ in prefixes], self.device)
        length, block = (self._vector(values) for values in zip(*((len(t), b) for t, b in prefixes), strict=True))
        column = torch.arange(tokens.shape[1], device=self.device).expand(len(prefixes), -1)
        recorder = _Recorder()
        mask = self._mask(column, column, length, block)
        self.split.body(tokens, mask, position_ids=column.contiguous(), past_key_values=recorder)
        layers = [recorder.layers[index] for index in sorted(recorder.layers)]
        return PrefixStates(prefixes, [keys for keys, _ in layers], [values for _, values in layers])

    def _mask(self, query: Tensor, key: Tensor, length: Tensor, block: Tensor) -> Tensor:
        """Which keys [B, K] queries [B, Q] see, bool [B, 1, Q, K]: their own block and earlier ones, no padding."""
        number = [(c - block[:, None]).div(self.size, rounding_mode="floor") for c in (query, key)]
        seen = (key < length[:, None])[:, None, :] & (number[1][:, None, :] <= number[0][:, :, None])
        return seen[:, None]

    def _vector(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.int64, device=self.device)

    def _keeps_cache(self) -> bool:
        try:
            find_layout(self.split)
        except ValueError as error:
            _log.warning("the text before a block is run again for each mask, because %s", error)
            return False
        return True


class PrefixStates:
    """Keys and values of texts before blocks, [P, heads, columns, size] in each layer.

    place: of each text among the P.
    columns: of the longest.

    Example:
        >>> short, long = ((5,), 1), ((5, 6), 2)
        >>> states = PrefixStates([short], [torch.zeros(1, 2, 1, 4)], [torch.zeros(1, 2, 1, 4)])
        >>> both = states.extended(PrefixStates([long], [torch.ones(1, 2, 2, 4)], [torch.ones(1, 2, 2, 4)]))
        >>> both.keys[0].shape, both.choose([long]).place
        (torch.Size([2, 2, 2, 4]), {((5, 6), 2): 0})
    """

    def __init__(self, prefixes: Sequence[Prefix] = (), keys: Sequence[Tensor] = (), values: Sequence[Tensor] = ()):
        self.place = {prefix: number for number, prefix in enumerate(prefixes)}
        self.keys, self.values = list(keys), list(values)
        self.columns = keys[0].shape[2] if keys else 0

    def choose(self, prefixes: list[Prefix]) -> PrefixStates:
        """Those of some of the texts."""
        if not prefixes:
            return PrefixStates()
        if prefixes == list(self.place):
            return self
        longest = max(len(tokens) for tokens, _ in prefixes)
        index = torch.tensor([self.place[prefix] for prefix in prefixes], device=self.keys[0].device)
        keys, values = ([part[index, :, :longest] for part in layers] for layers in (self.keys, self.values))
        return PrefixStates(prefixes, keys, values)

    def extended(self, other: PrefixStates) -> PrefixStates:
        """Those of both."""
        if not self.place:
            return other
        columns = max(self.columns, other.columns)
        both = []
        for ours, theirs in ((self.keys, other.keys), (self.values, other.values)):
            wide = [[F.pad(part, (0, 0, 0, columns - part.shape[2])) for part in layers] for layers in (ours, theirs)]
            both.append([torch.cat(pair) for pair in zip(*wide, strict=True)])
        return PrefixStates([*self.place, *other.place], *both)


class _Recorder:
    """A cache that keeps what it is given, by layer, and adds nothing."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object):
        self.layers[layer_idx] = key_states, value_states
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


class _AfterPrefix:
    """A cache that puts each row's prefix before what it is given, and keeps nothing."""

    def __init__(self, states: PrefixStates, index: Tensor):
        self.states, self.index = states, index

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object):
        kept = self.states.keys[layer_idx], self.states.values[layer_idx]
        before = [part.index_select(0, self.index) for part in kept]
        return torch.cat([before[0], key_states], dim=2), torch.cat([before[1], value_states], dim=2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


def _prefix(row: Row) -> Prefix:
    return row.tokens[: row.block], row.block


def _padded(rows: Sequence[Tokens], device: torch.device) -> Tensor:
    """Rows int64 [B, L], padded on the right with token 0, which nothing sees."""
    longest = max(map(len, rows))
    return torch.tensor([row + (0,) * (longest - len(row)) for row in rows], dtype=torch.int64, device=device)
