"""The denoising loop of one call: its rows join, and steps run until every row is finished."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dllm.fast.sampling import live
from dllm.fast.sampling.batch import DenoisingBatch
from dllm.fast.sampling.ends import EarlyEnds
from dllm.fast.sampling.live import Step
from dllm.fast.sampling.rows import FinishedRow, NoFiniteLogit
from dllm.fast.sampling.running import Running
from dllm.fast.sampling.state import Policy

_log = logging.getLogger("dllm.fast")


class Denoiser:
    """One call: it denoises a batch of rows. Finished rows leave the batch (eager) and cost nothing more.

    After :meth:`run`:

    running: what ran them, with what it counted (:class:`Running`).
    row_steps: int64 [B], how many of its forwards each row took part in.
    masks_left: masks that are left in the canvases.

    Args:
        model: as :func:`dllm.fast.generate` takes it.
        policy: the settings.
        cuda_graph: None captures steps as CUDA graphs where that works and pays, True insists, False never does.
        compile_body: None compiles the model's body where that works and pays, True insists, False never does.
        on_step: called with a :class:`Step` after each step.
        timed: whether the parts of each step are timed.
        early_ends: asked, where the host looks for finished rows, which others end; None: no others do.
    """

    def __init__(
        self,
        model: nn.Module,
        policy: Policy,
        *,
        cuda_graph: bool | None = None,
        compile_body: bool | None = None,
        on_step: Callable[[Step], object] | None = None,
        timed: bool = False,
        early_ends: EarlyEnds | None = None,
    ):
        self.policy, self.on_step, self.masks_left = policy, on_step, 0
        self.running = Running(
            model,
            policy,
            cuda_graph=cuda_graph,
            compile_body=compile_body,
            timed=timed,
            early_ends=early_ends,
            watched=on_step is not None,
        )

    def run(self, batch: DenoisingBatch) -> Tensor:
        """Denoise a batch.

        Returns:
            The finished canvases, int64 [B, L], packed as the batch's were.

        Raises:
            ValueError: the model is causal, does not follow a block-causal mask, or attends by blocks and the policy
                does not.
            NoFiniteLogit: a row's logits had no finite number; a FloatingPointError and a RuntimeError. The others
                have run to their ends then.
            RuntimeError: cuda_graph=True and the step cannot be captured, or compile_body=True and the body cannot be
                compiled.
        """
        self.canvas, self.row_steps = batch.tokens.clone(), torch.zeros_like(batch.first)
        if not bool(batch.schedule.steps.any()):
            return self.canvas
        try:
            self.running.join(batch)
            finished = self._denoise()
        finally:
            self.running.close()
        self._raise_if_failed(finished)
        self._count_masks(batch)
        return self.canvas

    def _denoise(self) -> list[FinishedRow]:
        """Run steps until no row is left; returns them all."""
        finished = []
        while self.running:
            progress = live.Progress.of(self.running.state) if self.on_step is not None else None
            self.running.advance()
            if progress is not None:
                rows = torch.tensor(self.running.ids, device=self.canvas.device)
                self.on_step(live.show(self.canvas, self.running.state, self.policy, rows, progress))
            for row in self.running.collect():
                self.canvas[row.id, : len(row.tokens)], self.row_steps[row.id] = row.tokens, row.forwards
                finished.append(row)
        return finished

    def _raise_if_failed(self, finished: list[FinishedRow]) -> None:
        """Raise the error of the first row that has one, and tell of positions that had to wait."""
        for row in sorted(finished, key=lambda row: row.id):
            if row.error is not None:
                raise NoFiniteLogit(f"row {row.id}: {row.error}")
        warn_of_waiting(self.running.overflow)

    def _count_masks(self, batch: DenoisingBatch) -> None:
        """Count the masks left in the canvases."""
        column = torch.arange(self.canvas.shape[1], device=self.canvas.device)
        left = (self.canvas == self.policy.mask_id) & (column < batch.length[:, None])
        self.masks_left = int(left.sum())
        if self.masks_left:
            warn_of_masks(self.masks_left, int(left.any(1).int().argmax()))


def warn_of_waiting(times: int) -> None:
    """Log that masked positions had to wait for the head, if they had."""
    if times:
        _log.warning(
            "the model chooses its mask token so often that masked positions had to wait for the head %d times; "
            "on a CPU none waits, and the tokens may differ",
            times,
        )


def warn_of_masks(masks: int, row: int) -> None:
    """Log that masks are left: the model chose the mask token, or steps were too few."""
    _log.warning(
        "%d of the generated tokens are still the mask token, the first in row %d: the model chose it, or the "
        "steps were too few; suppress_tokens of a sampler keeps it from being chosen",
        masks,
        row,
    )
