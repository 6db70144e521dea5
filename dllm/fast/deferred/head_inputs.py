"""What deferred logits are computed from: hidden states, the head's weight and bias, and the autocast dtype."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm_kernels._linear import linear


class Parts(NamedTuple):
    """One entry for each tensor that logits are computed from: the tensors, their gradients, or flags."""

    hidden: object
    weight: object
    bias: object


@dataclass(slots=True, eq=False)
class HeadInputs:
    """Logits [N, V] = hidden [N, H] @ weight [V, H].T + bias [V], in the dtype that the head computes in.

    The tensors are detached. `wanted` tells for each whether it needs a gradient; `autocast` is the dtype that the
    head's operands are cast to, or None. Writing to a weight would change the logits, so versions are compared.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    wanted: Parts
    autocast: torch.dtype | None
    all_rows: Tensor = field(init=False)  # int64 [N], all rows in order
    argmax_records: list = field(init=False, default_factory=list)  # written by dllm.fast.deferred.tokens
    versions: list = field(init=False)

    def __post_init__(self):
        self.all_rows = torch.arange(len(self.hidden), device=self.hidden.device)
        self.versions = self._versions()

    @property
    def dtype(self) -> torch.dtype:
        """Of the logits as the head would return them."""
        return self.autocast or self.hidden.dtype

    def check(self) -> HeadInputs:
        """These inputs, after checking that the tensors are unchanged.

        Raises:
            RuntimeError: hidden states or the head have been written to or freed since.
        """
        if self.weight.untyped_storage().size() == 0 < self.weight.numel():
            raise RuntimeError(
                "deferred logits must be used while the head's weight is there; it has been given back (FSDP with "
                "reshard_after_forward=True on the root?): leave that to FSDP's default, or unpatch the model"
            )
        if self.versions != self._versions():
            raise RuntimeError(
                "deferred logits must be used before their hidden states or their head change (an optimizer's step "
                "between the forward and the use of its logits?); unpatch the model around such code"
            )
        return self

    def under_autocast(self) -> torch.autocast:
        """The context that the head was called in."""
        return torch.autocast(self.hidden.device.type, dtype=self.autocast, enabled=self.autocast is not None)

    def logits(self, rows: Tensor) -> Tensor:
        """[..., V] of rows int64 [...], bit for bit the head's where they are all of its rows."""
        with torch.no_grad(), self.under_autocast():
            return F.linear(self._rows(rows.flatten()).view(*rows.shape, self.hidden.shape[-1]), self.weight, self.bias)

    def chunks(self, rows: Tensor, size: int) -> Iterator[Tensor]:
        """Logits [<= size, V] of rows, a chunk at a time; on a CPU a row has the same bits in any chunk."""
        weight, bias = (None if part is None else part.to(self.dtype) for part in (self.weight, self.bias))
        with torch.no_grad(), torch.autocast(self.hidden.device.type, enabled=False):
            for part in rows.split(size):
                yield linear(self.hidden.index_select(0, part).to(self.dtype), weight, bias)

    def leaves(self) -> Parts:
        """The tensors, each a leaf that takes a gradient where one is wanted."""
        parts = (self.hidden, self.weight, self.bias)
        return Parts(
            *(
                part if not want else part.detach().requires_grad_()
                for part, want in zip(parts, self.wanted, strict=True)
            )
        )

    def gradients(self, d_logits: Tensor, rows: Tensor) -> Parts:
        """Gradients of the wanted parts from those of logits [n, V] of rows [n]."""
        d_hidden = d_weight = d_bias = None
        with torch.no_grad(), torch.autocast(self.hidden.device.type, enabled=False):
            d_logits = d_logits.to(self.dtype)
            if self.wanted.hidden:
                d_rows = (d_logits @ self.weight.to(self.dtype)).to(self.hidden.dtype)
                d_hidden = d_rows if self.is_all(rows) else scattered(d_rows, rows, len(self.hidden))
            if self.wanted.weight:
                d_weight = (d_logits.t() @ self._rows(rows).to(self.dtype)).to(self.weight.dtype)
            if self.wanted.bias:
                d_bias = d_logits.sum(0).to(self.bias.dtype)
        return Parts(d_hidden, d_weight, d_bias)

    def is_all(self, rows: Tensor) -> bool:
        """Whether rows are `all_rows`, seen in whatever shape."""
        same = rows.data_ptr() == self.all_rows.data_ptr() and rows.is_contiguous()
        return same and rows.numel() == len(self.hidden)

    def _rows(self, rows: Tensor) -> Tensor:
        return self.hidden if self.is_all(rows) else self.hidden.index_select(0, rows)

    def _versions(self) -> list:
        parts = (self.hidden, self.weight, self.bias)
        return [None if part is None or part.is_inference() else part._version for part in parts]


def scattered(values: Tensor, rows: Tensor, n_rows: int) -> Tensor:
    """[n_rows, H]: values [n, H] added up at their rows, in a fixed order."""
    return values.new_zeros(n_rows, values.shape[1]).index_put_((rows,), values, accumulate=True)
