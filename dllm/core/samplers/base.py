"""What all samplers share: from prompts or texts with masks to finished canvases, on the one denoising loop.

A sampler says which numbers its schedule holds (`amounts`) and what the loop's policy is (`policy`); everything else is
here. It is batch-invariant: a row's tokens depend on the row, its seed and the settings alone.
"""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from dllm.core.samplers import canvas
from dllm.core.schedulers import BaseAlphaScheduler, LinearAlphaScheduler
from dllm.fast.attention import check_attention
from dllm.fast.model import input_embedding
from dllm.fast.sampling.batch import DenoisingBatch
from dllm.fast.sampling.inputs import check_eos, row_seeds
from dllm.fast.sampling.live import Step
from dllm.fast.sampling.loop import Denoiser
from dllm.fast.sampling.schedule import Block, Schedule
from dllm.fast.sampling.state import Policy
from dllm.fast.sampling.stats import Stats, stats_of
from dllm_kernels import _checks, _impl
from dllm_kernels.transfer_tokens.api import MAX_WINDOW

Seed = int | Sequence[int] | Tensor | None


@dataclass
class BaseSamplerConfig:
    """Settings of every sampler. The seed is none of them but an argument of the call: rows may have their own.

    return_dict: return a :class:`BaseSamplerOutput` with histories and stats instead of the canvases alone.
    max_new_tokens: tokens to generate; None: as many as `max_length` leaves beside a row's prompt.
    max_length: prompt and generated tokens of a row; used where `max_new_tokens` is None.
    block_size: tokens of a block; blocks are filled from left to right, aligned to each row's own prompt end. None: all
        tokens are one block.
    temperature: T of the proposals; 0 takes the likeliest token.
    cfg_scale: classifier-free guidance u + (cfg_scale + 1) (c - u), u on the canvas with given tokens masked; 0 is off.
    cfg_keep_tokens: given tokens that guidance does not mask.
    suppress_tokens: never proposed.
    begin_suppress_tokens: may be proposed, with no confidence: committed last.
    right_shift_logits: the logits of a position are those of the one before it (Dream, models converted from causal
        ones); the first position reads its own.
    stop_at_eos: a row is finished once the tokenizer's EOS stands in its generated part with no mask left of it; the
        rest of it becomes EOS.
    impl: kernels: "auto", "reference", "triton" or "cpu"; an explicit one never falls back.
    cuda_graph: None captures the step as a CUDA graph where that works and pays, True insists, False never does.
    """

    return_dict: bool = False
    max_new_tokens: int | None = 128
    max_length: int | None = None
    block_size: int | None = 128
    temperature: float = 0.0
    cfg_scale: float = 0.0
    cfg_keep_tokens: list[int] | None = None
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    right_shift_logits: bool = False
    stop_at_eos: bool = False
    impl: str = "auto"
    cuda_graph: bool | None = None

    def check(self) -> None:
        """The values, before anything runs.

        Raises:
            TypeError, ValueError: one breaks a rule.
        """
        for name in ("max_new_tokens", "max_length", "block_size"):
            if getattr(self, name) is not None:
                at_least(1, name, getattr(self, name))
        for name in ("temperature", "cfg_scale"):
            _checks.finite_at_least_zero(name, getattr(self, name))
        for name in ("return_dict", "right_shift_logits", "stop_at_eos"):
            true_or_false(name, getattr(self, name))


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


class Span(NamedTuple):
    """A block of a row: columns start to stop (exclusive), how many of them are masked, the number of blocks that the
    row has, and its seed."""

    start: int
    stop: int
    masks: int
    blocks: int
    seed: int


@dataclass
class BaseSampler(ABC):
    """A way to denoise. A subclass names its config class and gives `amounts` and `policy`.

    model: a masked language model, as :func:`dllm.fast.generate` takes it.
    tokenizer: knows `mask_token_id`, and `eos_token_id` (rows are padded with it).
    scheduler: alpha(t), for schedules that follow it; linear when None.
    """

    model: nn.Module
    tokenizer: Any
    scheduler: BaseAlphaScheduler | None = None

    config_class: ClassVar[type[BaseSamplerConfig]]
    approximate: ClassVar[bool] = False  # whether it trades tokens for speed
    pads_left: ClassVar[bool] = False  # where the padding of a batch goes

    def __post_init__(self) -> None:
        if self.scheduler is None:
            self.scheduler = LinearAlphaScheduler()
        if not isinstance(self.scheduler, BaseAlphaScheduler):
            raise TypeError(f"scheduler must be a BaseAlphaScheduler, got {type(self.scheduler).__name__}")

    @abstractmethod
    def amounts(self, config: Any, span: Span) -> Sequence[float]:
        """The schedule's number for each step of a block; see :class:`dllm.fast.sampling.schedule.Block`."""

    @abstractmethod
    def policy(self, config: Any) -> dict[str, Any]:
        """Fields of :class:`dllm.fast.sampling.state.Policy`, but for those that follow from the shared settings."""

    def first_column(self, config: Any, given: int) -> int:
        """Where the first block begins in a row that generates, behind `given` tokens: with what it generates."""
        return given

    def sample(
        self,
        inputs: canvas.Rows,
        config: BaseSamplerConfig | None = None,
        *,
        seed: Seed = None,
        on_step: Callable[[Step], object] | None = None,
        **overrides: Any,
    ) -> Tensor | BaseSamplerOutput:
        """Continue each prompt.

        Args:
            inputs: B prompts of token ids, of any lengths, without mask tokens; lists, vectors, a tensor [B, P], or
                what a tokenizer returns: a mapping with `input_ids` and, where those are padded, `attention_mask`.
            config: settings; the class's defaults when None.
            seed: of the noise: an int s gives row i the seed s + i, B integers are taken as given, None draws s from
                torch's generator.
            on_step: called with a :class:`dllm.fast.Step` after each forward pass.
            **overrides: settings by name, stronger than `config`.

        Returns:
            int64 [B, L] on the model's device: prompts and what was generated, padded with EOS; with `return_dict` a
            :class:`BaseSamplerOutput`.

        Raises:
            TypeError, ValueError: an argument breaks a rule, or a row exceeds the model's table of positions; the model
                has not run.
            ValueError: the model is causal, which was tried on a few tokens.
            RuntimeError: as :func:`dllm.fast.generate`.
        """
        began, config = time.perf_counter(), self._settings(config, overrides)
        if config.max_new_tokens is None and config.max_length is None:
            raise ValueError("expected max_new_tokens or max_length, got None for both")
        mask_id = canvas.mask_token(self.model, self.tokenizer)
        prompts = canvas.token_rows(inputs)
        for number, prompt in enumerate(prompts):
            if bool((prompt == mask_id).any()):
                raise ValueError(f"inputs must not hold the mask token, got one in row {number}: infill fills texts")
        rows, spans, seeds = [], [], row_seeds(seed, len(prompts), torch.device("cpu"))
        for prompt, own_seed in zip(prompts, seeds.tolist(), strict=True):
            new = config.max_new_tokens
            if new is None and (new := config.max_length - len(prompt)) < 1:
                raise ValueError(f"max_length must exceed every prompt, got {config.max_length} and {len(prompt)}")
            rows.append(torch.cat([prompt, prompt.new_full((new,), mask_id)]))
            start = self.first_column(config, len(prompt))
            spans.append(_spans(rows[-1], start, config.block_size or new, mask_id, own_seed))
        first = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int64)
        return self._denoise(rows, first, spans, seeds, mask_id, config, on_step, began, ends=True)

    def infill(
        self,
        inputs: canvas.Rows,
        config: BaseSamplerConfig | None = None,
        *,
        seed: Seed = None,
        on_step: Callable[[Step], object] | None = None,
        **overrides: Any,
    ) -> Tensor | BaseSamplerOutput:
        """Fill the mask tokens inside texts; arguments and result as in :meth:`sample`.

        Blocks are a grid from the first column of each row on. `max_new_tokens` and `max_length` play no part.
        """
        began, config = time.perf_counter(), self._settings(config, overrides)
        if config.stop_at_eos:
            raise ValueError("infill fills every mask, so stop_at_eos must be False, got True")
        mask_id = canvas.mask_token(self.model, self.tokenizer)
        rows = canvas.token_rows(inputs)
        seeds = row_seeds(seed, len(rows), torch.device("cpu"))
        spans = [
            _spans(row, 0, config.block_size or max(1, len(row)), mask_id, own_seed)
            for row, own_seed in zip(rows, seeds.tolist(), strict=True)
        ]
        first = torch.zeros(len(rows), dtype=torch.int64)
        return self._denoise(rows, first, spans, seeds, mask_id, config, on_step, began, ends=False)

    def _settings(self, config: BaseSamplerConfig | None, overrides: dict[str, Any]) -> BaseSamplerConfig:
        if config is None:
            config = self.config_class()
        if not isinstance(config, self.config_class):
            raise TypeError(f"config must be a {self.config_class.__name__}, got {type(config).__name__}")
        unknown = [name for name in overrides if name not in {field.name for field in dataclasses.fields(config)}]
        if unknown:
            raise TypeError(f"{type(config).__name__} has no setting {', '.join(unknown)}")
        config = dataclasses.replace(config, **overrides)
        config.check()
        return config

    def _denoise(
        self,
        rows: list[Tensor],
        first: Tensor,
        spans: list[list[Span]],
        seeds: Tensor,
        mask_id: int,
        config: BaseSamplerConfig,
        on_step: Callable[[Step], object] | None,
        began: float,
        *,
        ends: bool,
    ) -> Tensor | BaseSamplerOutput:
        """Denoise rows that are laid out; `ends` says whether what follows a generated EOS is of no use."""
        model, device = self.model, input_embedding(self.model).device
        canvas.check_rows(model, rows, mask_id)
        keep = canvas.check_tokens("cfg_keep_tokens", config.cfg_keep_tokens, model)
        suppress = canvas.check_tokens("suppress_tokens", config.suppress_tokens, model)
        begin_suppress = canvas.check_tokens("begin_suppress_tokens", config.begin_suppress_tokens, model)
        if on_step is not None and not callable(on_step):
            raise TypeError(f"on_step must be callable, got {type(on_step).__name__}")
        eos_id = check_eos(model, getattr(self.tokenizer, "eos_token_id", None), mask_id)
        if config.stop_at_eos and eos_id is None:
            raise ValueError("stop_at_eos needs a tokenizer with an eos_token_id")
        specific = self.policy(config)
        spans = [_visited(row, all_between="block_causal" in specific) for row in spans]
        policy = Policy(
            mask_id=mask_id,
            window=_window(spans, by_block="block_causal" in specific or "cache" in specific),
            block_length=max((span.masks for row in spans for span in row), default=1) or 1,
            temperature=config.temperature,
            cfg_scale=config.cfg_scale,
            right_shift=config.right_shift_logits,
            eos_id=eos_id if config.stop_at_eos else None,
            impl=config.impl,
            **specific,
        )
        blocks = [
            [Block(span.start, span.stop, self.amounts(config, span) if span.masks else [0]) for span in row]
            for row in spans
        ]
        tokens = canvas.stacked(rows, self._pad(rows, eos_id, mask_id), device)
        length = torch.tensor([len(row) for row in rows], dtype=torch.int64, device=device)
        masked = tokens == mask_id
        given = ~masked & (torch.arange(tokens.shape[1], device=device) < length[:, None])
        if keep:
            given &= ~torch.isin(tokens, torch.tensor(keep, device=device))
        work = DenoisingBatch(
            tokens=tokens,
            given=given,
            first=first.to(device),
            length=length,
            seeds=seeds.to(device),
            schedule=Schedule.of(blocks, device, torch.int64 if policy.rule == "count" else torch.float32),
            suppress=canvas.lookup(suppress, model),
            begin_suppress=canvas.lookup(begin_suppress, model),
        )
        padded = bool((length < tokens.shape[1]).any())
        needs = dict(block_causal=policy.block_causal, cache=policy.cache, padded=padded, columns=tokens.shape[1])
        check_attention(model, **needs)
        _impl.choose(config.impl, device)
        return self._run(work, masked, policy, config, on_step, began, eos_id if ends else None)

    @torch.no_grad()
    def _run(
        self,
        work: DenoisingBatch,
        masked: Tensor,
        policy: Policy,
        config: BaseSamplerConfig,
        on_step: Callable[[Step], object] | None,
        began: float,
        eos_id: int | None,
    ) -> Tensor | BaseSamplerOutput:
        columns = work.tokens.shape[1]
        by = columns - work.length if self.pads_left else torch.zeros_like(work.length)
        histories = [_moved(work.tokens, by)]

        def show(step: Step) -> None:
            step = step._replace(
                **{name: _moved(getattr(step, name), by) for name in ("canvas", "tentative", "confidence")}
            )
            if config.return_dict:
                histories.append(step.canvas if on_step is None else step.canvas.clone())
            if on_step is not None:
                on_step(step)

        watched = config.return_dict or on_step is not None
        denoiser = Denoiser(
            self.model,
            policy,
            cuda_graph=config.cuda_graph,
            on_step=show if watched else None,
            timed=config.return_dict,
        )
        tokens = denoiser.run(work)
        sequences = _moved(tokens, by)
        if not config.return_dict:
            return sequences
        stats = stats_of(denoiser, tokens, masked, eos_id, time.perf_counter() - began)
        return BaseSamplerOutput(sequences, histories, stats)

    def _pad(self, rows: Sequence[Tensor], eos_id: int | None, mask_id: int) -> int:
        """The token that fills up shorter rows: EOS, else the padding token; needed only where lengths differ."""
        if len({len(row) for row in rows}) < 2:
            return 0
        if eos_id is not None:
            return eos_id
        pad = getattr(self.tokenizer, "pad_token_id", None)
        if pad is None:
            raise ValueError("rows of different length need a tokenizer with an eos_token_id or a pad_token_id")
        if pad == mask_id:
            raise ValueError(f"rows cannot be padded with the mask token, got {pad} for both")
        return canvas.check_tokens("pad_token_id", [pad], self.model)[0]


def at_least(least: int, name: str, value: object) -> int:
    """An integer setting, checked.

    Raises:
        TypeError, ValueError: no integer, or below `least`.
    """
    value = _checks.int64(name, value)
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value


def true_or_false(name: str, value: object) -> None:
    """A setting that is True or False.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def one_of(choices: Sequence[str], name: str, value: object) -> None:
    """A setting that is one of some words.

    Raises:
        ValueError: it is none of them.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _spans(row: Tensor, first: int, size: int, mask_id: int, seed: int) -> list[Span]:
    """The blocks of a row from column `first` on, the last one cut at its end."""
    starts = range(first, len(row), size)
    ends = [min(start + size, len(row)) for start in starts]
    return [
        Span(start, stop, int((row[start:stop] == mask_id).sum()), len(starts), seed)
        for start, stop in zip(starts, ends, strict=True)
    ]


def _visited(row: list[Span], *, all_between: bool) -> list[Span]:
    """The blocks of a row that take steps: those with masks, and, where a later block needs what the model makes of an
    earlier one, those between them."""
    masked = [number for number, span in enumerate(row) if span.masks]
    if not all_between:
        return [row[number] for number in masked]
    return row[masked[0] : masked[-1] + 1] if masked else []


def _window(spans: Sequence[Sequence[Span]], *, by_block: bool) -> int:
    """Columns that a step looks for masks in, at most: those of a block, or, where earlier blocks may hold masks that
    the model committed, those from the first block to the end of the last one, as far as the kernel's window reaches.

    Raises:
        ValueError: a block is wider than that window.
    """
    widest = max((span.stop - span.start for row in spans for span in row), default=1)
    if widest > MAX_WINDOW:
        raise ValueError(f"a block must have at most {MAX_WINDOW} columns, got {widest}: set block_size")
    if by_block:
        return widest
    return min(max((row[-1].stop - row[0].start for row in spans if row), default=1), MAX_WINDOW)


def _moved(canvas: Tensor, by: Tensor) -> Tensor:
    """Each row b of [B, L] moved `by[b]` columns to the right, around the edge."""
    columns = canvas.shape[1]
    return canvas.gather(1, (torch.arange(columns, device=canvas.device) - by[:, None]) % max(columns, 1))
