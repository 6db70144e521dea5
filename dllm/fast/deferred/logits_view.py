"""What a deferred tensor shows of the logits: which rows, in which shape and dtype, and whether softmax is
applied."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dllm.fast.deferred.head_inputs import HeadInputs, scattered

TRANSFORMS = {None: None, "softmax": torch.softmax, "log_softmax": torch.log_softmax}


@dataclass(frozen=True, slots=True, eq=False)
class LogitsView:
    """Tensor of shape rows.shape with the vocabulary put in at `axis`: entry (r, v) is logit v of row rows[r].

    rows: int64, of any shape. dtype: at least as wide as the head's. transform: None, "softmax" or "log_softmax" over
    the vocabulary, of logits in `dtype`.
    """

    head_inputs: HeadInputs
    rows: Tensor
    axis: int
    dtype: torch.dtype
    transform: str | None = None

    @property
    def shape(self) -> torch.Size:
        """Of the tensor."""
        shape = list(self.rows.shape)
        return torch.Size([*shape[: self.axis], len(self.head_inputs.weight), *shape[self.axis :]])

    def logits(self) -> Tensor:
        """Logits [n, V] of the rows, one after the other."""
        return self.head_inputs.check().logits(self.rows.flatten())

    def finish(self, logits: Tensor) -> Tensor:
        """From logits [n, V] to this tensor."""
        logits = logits.view(*self.rows.shape, logits.shape[-1]).to(self.dtype)
        if self.axis != self.rows.dim():
            logits = logits.movedim(-1, self.axis)
        transform = TRANSFORMS[self.transform]
        return logits if transform is None else transform(logits, self.axis)

    def d_logits(self, gradient: Tensor) -> Tensor:
        """From a gradient of this tensor to one of the logits [n, V]."""
        if self.transform is not None:
            output = self.finish(self.logits())
            moved, share = (gradient * output, output) if self.transform == "softmax" else (gradient, output.exp())
            gradient = moved - share * moved.sum(self.axis, keepdim=True)
        d_logits = gradient.movedim(self.axis, -1).to(self.head_inputs.dtype)
        return d_logits.reshape(self.rows.numel(), len(self.head_inputs.weight))

    def scatter(self, d_logits: Tensor) -> Tensor:
        """From a gradient of the logits [n, V] of the rows to one of all logits, [N, V]."""
        rows = self.rows.flatten()
        return d_logits if self.head_inputs.is_all(rows) else scattered(d_logits, rows, len(self.head_inputs.hidden))

    def gather(self, d_logits: Tensor) -> Tensor:
        """From a gradient of all logits [N, V] to one of this tensor.

        Raises:
            RuntimeError: this tensor holds a row twice, whose shares of the gradient are not known any more, or it is
                a softmax of the logits.
        """
        rows = self.rows.flatten()
        if self.transform or len(rows.unique()) != len(rows):
            raise RuntimeError(
                "the gradient of a softmax of deferred logits, or of rows of which one comes twice, cannot be looked "
                "at: unpatch the model to see it"
            )
        return self.finish(d_logits.index_select(0, rows))
