"""The plan of a sampler's call, its run by the denoising loop, and its output."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dllm.core.samplers.config import BaseSamplerConfig
from dllm.fast.sampling.batch import DenoisingBatch
from dllm.fast.sampling.ends import EarlyEnds
from dllm.fast.sampling.live import Step
from dllm.fast.sampling.loop import Denoiser
from dllm.fast.sampling.state import Policy
from dllm.fast.sampling.stats import Stats, stats_of


@dataclass
class BaseSamplerOutput:
    """What a sampler returns with `return_dict`.

    sequences: int64 [B, L].
    histories: the canvases [B, L] at the start and after every forward pass; None without `keep_histories`.
    stats: forward passes, tokens and times of the call.
    log_probs: log-probabilities of each row's generated tokens, where a sampler gives them and was asked to.
    """

    sequences: Tensor
    histories: list[Tensor] | None = None
    stats: Stats | None = None
    log_probs: list[Tensor] | None = None


class Plan(NamedTuple):
    """A call that is checked and laid out: nothing of it is known only when it runs.

    batch: rows that begin at column 0.
    policy: of the loop.
    config: of the call.
    eos_id: the tokenizer's; None: it has none.
    continues: rows continue prompts, so tokens after a generated EOS do not count in the stats.
    pads_left: padding comes before the tokens of a row in what is returned and shown.
    """

    batch: DenoisingBatch
    policy: Policy
    config: BaseSamplerConfig
    eos_id: int | None
    continues: bool
    pads_left: bool


@torch.no_grad()
def run(
    model: nn.Module,
    plan: Plan,
    on_step: Callable[[Step], object] | None,
    *,
    start_time: float,
    early_ends: EarlyEnds | None = None,
) -> Tensor | BaseSamplerOutput:
    """Denoise a batch.

    Args:
        model: of the sampler.
        plan: of the call. With `pads_left` the returned canvases, and those of histories and `on_step`, are shifted so
            that rows end at the last column.
        on_step: called after each forward pass.
        start_time: of the call, by `time.perf_counter`.
        early_ends: ends rows where the caller says so.

    Returns:
        The canvases; with `config.return_dict` a :class:`BaseSamplerOutput`.
    """
    batch, policy, config = plan.batch, plan.policy, plan.config
    masked = batch.tokens == policy.mask_id
    shift = batch.tokens.shape[1] - batch.length if plan.pads_left else torch.zeros_like(batch.length)
    keeps = config.return_dict and config.keep_histories
    histories = [_shifted(batch.tokens, shift)] if keeps else None

    def show(step: Step) -> None:
        shown = ("canvas", "tentative", "confidence")
        step = step._replace(**{name: _shifted(getattr(step, name), shift) for name in shown})
        if keeps:
            histories.append(step.canvas if on_step is None else step.canvas.clone())
        if on_step is not None:
            on_step(step)

    watched = keeps or on_step is not None
    denoiser = Denoiser(
        model,
        policy,
        cuda_graph=config.cuda_graph,
        compile_body=config.compile_body,
        on_step=show if watched else None,
        timed=config.return_dict,
        early_ends=early_ends,
    )
    tokens = denoiser.run(batch)
    sequences = _shifted(tokens, shift)
    if not config.return_dict:
        return sequences
    eos_id = plan.eos_id if plan.continues else None
    stats = stats_of(denoiser, tokens, masked, eos_id, time.perf_counter() - start_time, policy.eot_id)
    return BaseSamplerOutput(sequences, histories, stats)


def _shifted(canvas: Tensor, by: Tensor) -> Tensor:
    """Each row b of [B, L] rotated by `by[b]` columns to the right."""
    columns = canvas.shape[1]
    return canvas.gather(1, (torch.arange(columns, device=canvas.device) - by[:, None]) % max(columns, 1))
