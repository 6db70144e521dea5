"""One run of the denoising loop over a batch, and what a sampler returns of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dllm.core.samplers.config import BaseSamplerConfig
from dllm.fast.sampling.batch import DenoisingBatch
from dllm.fast.sampling.live import Step
from dllm.fast.sampling.loop import Denoiser
from dllm.fast.sampling.state import Policy
from dllm.fast.sampling.stats import Stats, stats_of


@dataclass
class BaseSamplerOutput:
    """What a sampler returns when asked for more than tokens.

    sequences: int64 [B, L].
    histories: the canvases [B, L] at the start and after every forward pass.
    stats: what the call cost.
    """

    sequences: Tensor
    histories: list[Tensor] | None = None
    stats: Stats | None = None


@torch.no_grad()
def run(
    model: nn.Module,
    work: DenoisingBatch,
    policy: Policy,
    config: BaseSamplerConfig,
    on_step: Callable[[Step], object] | None,
    *,
    pads_left: bool,
    eos_id: int | None,
    began: float,
) -> Tensor | BaseSamplerOutput:
    """Denoise, with canvases as the caller sees them: padded on the side that the sampler pads.

    Args:
        model: as of a sampler.
        work: rows packed to column 0.
        policy: how they are denoised.
        config: of the call.
        on_step: is shown every step.
        pads_left: padding comes before the tokens of a row.
        eos_id: what follows it in the generated part of a row counts as no token in the stats; None: all counts.
        began: when the call began, by `time.perf_counter`.

    Returns:
        The canvases; with `config.return_dict` a :class:`BaseSamplerOutput`.
    """
    masked = work.tokens == policy.mask_id
    shift = work.tokens.shape[1] - work.length if pads_left else torch.zeros_like(work.length)
    histories = [_shifted(work.tokens, shift)]

    def show(step: Step) -> None:
        shown = ("canvas", "tentative", "confidence")
        step = step._replace(**{name: _shifted(getattr(step, name), shift) for name in shown})
        if config.return_dict:
            histories.append(step.canvas if on_step is None else step.canvas.clone())
        if on_step is not None:
            on_step(step)

    watched = config.return_dict or on_step is not None
    denoiser = Denoiser(
        model,
        policy,
        cuda_graph=config.cuda_graph,
        on_step=show if watched else None,
        timed=config.return_dict,
    )
    tokens = denoiser.run(work)
    sequences = _shifted(tokens, shift)
    if not config.return_dict:
        return sequences
    stats = stats_of(denoiser, tokens, masked, eos_id, time.perf_counter() - began)
    return BaseSamplerOutput(sequences, histories, stats)


def _shifted(canvas: Tensor, by: Tensor) -> Tensor:
    """Each row b of [B, L] moved `by[b]` columns to the right; what leaves on the right comes in on the left."""
    columns = canvas.shape[1]
    return canvas.gather(1, (torch.arange(columns, device=canvas.device) - by[:, None]) % max(columns, 1))
