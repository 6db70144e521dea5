"""BaseSampler: takes prompts, or texts with masks, and returns them denoised.

A sampler gives the numbers of its schedule (`amounts`) and the policy of the denoising loop (`policy`). Everything else
is here. The rules that a policy can choose from are fields of :class:`dllm.fast.sampling.state.Policy`; a new one is
added there and in :func:`dllm_kernels.transfer_tokens`.

Sampling is batch-invariant: a row's tokens depend on the row, its seed and the settings alone.
"""

from __future__ import annotations

import functools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dllm.core.samplers import canvas
from dllm.core.samplers.config import BaseSamplerConfig, at_least, check_callable, settings_of
from dllm.core.samplers.layout import RowLayout, Seed, Span, lay_out_prompts, lay_out_texts, new_tokens
from dllm.core.samplers.many import SampledRow, run_many
from dllm.core.samplers.run import BaseSamplerOutput, Plan, run
from dllm.core.schedulers import BaseAlphaScheduler, LinearAlphaScheduler
from dllm.fast.attention import check_attention
from dllm.fast.compiled.decision import check_compile_body
from dllm.fast.model import input_embedding, right_shift_of
from dllm.fast.sampling.batch import DenoisingBatch
from dllm.fast.sampling.ends import EarlyEnds, Finished
from dllm.fast.sampling.inputs import check_eos
from dllm.fast.sampling.live import Step
from dllm.fast.sampling.schedule import Block, Schedule
from dllm.fast.sampling.state import Policy
from dllm_kernels import _impl

__all__ = ["BaseSampler", "BaseSamplerConfig", "BaseSamplerOutput", "Plan", "SampledRow", "Span"]


@dataclass
class BaseSampler(ABC):
    """The base class of samplers. A subclass names its config class and gives `amounts` and `policy`.

    model: a masked language model, as :func:`dllm.fast.generate` takes it.
    tokenizer: has `mask_token_id` and `eos_token_id`, with which rows are padded; perhaps `eot_token_id`, the end of a
        turn.
    scheduler: alpha(t), for schedules that follow it; linear if None.
    """

    model: nn.Module
    tokenizer: Any
    scheduler: BaseAlphaScheduler | None = None

    config_class: ClassVar[type[BaseSamplerConfig]]
    approximate: ClassVar[bool] = False  # whether it trades accuracy for speed
    masks: ClassVar[bool] = True  # whether canvases hold mask tokens
    pads_left: ClassVar[bool] = False  # whether a batch is padded on the left
    shifts_right: ClassVar[bool] = False  # whether models read logits one position before, if nothing says so

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
        """Fields of :class:`dllm.fast.sampling.state.Policy`, without those that follow from the shared settings."""

    def first_column(self, config: Any, given: int) -> int:
        """The column at which the first block of a row begins, after a prompt of `given` tokens."""
        return given

    def sample(
        self,
        inputs: canvas.Rows,
        config: BaseSamplerConfig | None = None,
        *,
        seed: Seed = None,
        on_step: Callable[[Step], object] | None = None,
        finished: Finished | None = None,
        **overrides: Any,
    ) -> Tensor | BaseSamplerOutput:
        """Continue each prompt.

        Args:
            inputs: B prompts of token ids, of any lengths, without mask tokens: lists, vectors, a tensor [B, P], or
                the mapping that a tokenizer returns, with `input_ids` and perhaps `attention_mask`.
            config: settings; the class's defaults if None.
            seed: of the noise. An int s gives row i the seed s + i, B integers are taken as given, None draws s from
                torch's generator.
            on_step: called with a :class:`dllm.fast.Step` after each forward pass.
            finished: called with the number of a row and its final tokens, a list of ints, whenever these have grown.
                True ends the row: what is not final yet becomes EOS, and the row costs nothing more. Final are the
                generated tokens before the first mask; of samplers that replace tokens, those before the current block.
                A GPU is asked for them every few steps only, so a row may go on a little after its end. The tokens
                before its end are those that it would have without this.
            **overrides: settings by name, which replace those of `config`.

        Returns:
            int64 [B, L] on the model's device: prompts and generated tokens, padded with EOS; with `return_dict` a
            :class:`BaseSamplerOutput`.

        Raises:
            TypeError, ValueError: an argument breaks a rule, or a row exceeds the model's table of positions. The model
                has not run then.
            ValueError: the model is causal; this is checked on a few tokens.
            RuntimeError: as :func:`dllm.fast.generate`.
        """
        start_time = time.perf_counter()
        check_callable(on_step=on_step, finished=finished)
        plan = self.plan(inputs, config, seed=seed, **overrides)
        _check_ends(finished, plan)
        early_ends = None if finished is None else EarlyEnds(finished, plan.policy, plan.eos_id)
        return run(self.model, plan, on_step, start_time=start_time, early_ends=early_ends)

    def sample_many(
        self,
        inputs: canvas.Rows,
        config: BaseSamplerConfig | None = None,
        *,
        rows: int = 16,
        seed: Seed = None,
        width_multiple: int | None = None,
        finished: Finished | None = None,
        on_row: Callable[[int, SampledRow], object] | None = None,
        **overrides: Any,
    ) -> list[SampledRow]:
        """Continue many prompts, some at a time: the next one takes the place of one that is finished.

        A row's tokens are those that :meth:`sample` gives it, as far as the width of the canvas does not change their
        last bits; with `width_multiple` they are the same bits in any company.

        Args:
            inputs, config, seed, finished, overrides: as :meth:`sample` takes them. `return_dict` is not used.
            rows: how many run together, at most.
            width_multiple: as :class:`dllm.fast.sampling.running.Running` takes it.
            on_row: called with the number of a prompt and its row as soon as that is finished.

        Returns:
            The rows, in the order of the prompts.

        Raises:
            TypeError, ValueError, RuntimeError: as :meth:`sample`. What is wrong with an argument is said before the
                model runs; a row without a finite logit ends the call at once.

        Example:
            >>> from dllm.core.samplers import MDLMSampler
            >>> from dllm.demo.shipped import load_shipped
            >>> sampler = MDLMSampler(*load_shipped())
            >>> done = sampler.sample_many([[5, 6, 7], [8], [9, 10]], rows=2, seed=0, steps=2, max_new_tokens=4)
            >>> [(len(row.tokens), row.forwards) for row in done]
            [(7, 2), (5, 2), (6, 2)]
        """
        at_least(1, "rows", rows)
        check_callable(finished=finished, on_row=on_row)
        plan = self.plan(inputs, config, seed=seed, **overrides)
        _check_ends(finished, plan)
        return run_many(self.model, plan, rows=rows, width_multiple=width_multiple, finished=finished, on_row=on_row)

    def plan(
        self, inputs: canvas.Rows, config: BaseSamplerConfig | None = None, *, seed: Seed = None, **overrides: Any
    ) -> Plan:
        """Check a call of :meth:`sample` and lay out its rows, without running the model. Any thread may do this, while
        another one runs rows that were planned before (:class:`dllm.fast.sampling.running.Running`).

        Raises:
            TypeError, ValueError, RuntimeError: all that `sample` would raise before it runs the model.
        """
        config, prompts, mask_id = self._settings(config, overrides), canvas.token_rows(inputs), self._mask_id()
        new = [new_tokens(len(prompt), config.max_new_tokens, config.max_length) for prompt in prompts]
        canvas.check_lengths(self.model, [len(prompt) + more for prompt, more in zip(prompts, new, strict=True)])
        layout = lay_out_prompts(
            prompts,
            mask_id,
            seed,
            max_new_tokens=config.max_new_tokens,
            max_length=config.max_length,
            block_size=config.block_size,
            first_column=functools.partial(self.first_column, config),
        )
        return self._plan(layout, config, continues=True)

    def check(self, inputs: canvas.Rows, config: BaseSamplerConfig | None = None, **overrides: Any) -> None:
        """Check a call of :meth:`sample` without running the model.

        Raises:
            TypeError, ValueError, RuntimeError: all that `sample` would raise before it runs the model.
        """
        self.plan(inputs, config, seed=0, **overrides)

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

        The first block of each row begins at column 0. `max_new_tokens` and `max_length` are not used.
        """
        start_time = time.perf_counter()
        check_callable(on_step=on_step)
        plan = self.plan_infill(inputs, config, seed=seed, **overrides)
        return run(self.model, plan, on_step, start_time=start_time)

    def plan_infill(
        self, inputs: canvas.Rows, config: BaseSamplerConfig | None = None, *, seed: Seed = None, **overrides: Any
    ) -> Plan:
        """Check a call of :meth:`infill` and lay out its rows, as :meth:`plan` does for one of :meth:`sample`."""
        config = self._settings(config, overrides)
        if config.stop_at_eos:
            raise ValueError("infill fills every mask, so stop_at_eos must be False, got True")
        layout = lay_out_texts(canvas.token_rows(inputs), self._mask_id(), seed, block_size=config.block_size)
        return self._plan(layout, config, continues=False)

    def _settings(self, config: BaseSamplerConfig | None, overrides: dict[str, Any]) -> BaseSamplerConfig:
        return settings_of(self.config_class, config, overrides)

    def _plan(self, layout: RowLayout, config: BaseSamplerConfig, *, continues: bool) -> Plan:
        """Check everything, and lay out rows that continue prompts or fill texts."""
        model, mask_id, device = self.model, layout.mask_id, input_embedding(self.model).device
        canvas.check_rows(model, layout.rows, mask_id)
        tokens_of = functools.partial(canvas.check_tokens, model=model)
        keep = tokens_of("cfg_keep_tokens", config.cfg_keep_tokens)
        suppress = tokens_of("suppress_tokens", config.suppress_tokens)
        begin_suppress = tokens_of("begin_suppress_tokens", config.begin_suppress_tokens)
        eos_id = check_eos(model, self._end_of_text(config), mask_id)
        if config.stop_at_eos and eos_id is None:
            raise ValueError("stop_at_eos needs a tokenizer with an eos_token_id")
        policy, layout = self._policy(layout, config, eos_id)
        tokens = canvas.stack_rows(layout.rows, self._pad(layout.rows, eos_id, mask_id), device)
        length = torch.tensor([len(row) for row in layout.rows], dtype=torch.int64, device=device)
        batch = DenoisingBatch(
            tokens=tokens,
            given=canvas.hidden_by_guidance(tokens, length, mask_id, keep),
            first=layout.first.to(device),
            length=length,
            seeds=layout.seeds.to(device),
            schedule=self._schedule(layout, config, policy, device),
            temperature=_row_temperatures(config.temperature, len(layout.rows), device),
            suppress=canvas.token_flags(suppress, model),
            begin_suppress=canvas.token_flags(begin_suppress, model),
        )
        padded = bool((length < tokens.shape[1]).any())
        needs = dict(block_causal=policy.block_causal, cache=policy.cache, padded=padded, columns=tokens.shape[1])
        check_attention(model, **needs)
        _impl.choose(config.impl, device)
        check_compile_body(config.compile_body, device)
        return Plan(batch, policy, config, eos_id, continues=continues, pads_left=self.pads_left)

    def _policy(self, layout: RowLayout, config: BaseSamplerConfig, eos_id: int | None) -> tuple[Policy, RowLayout]:
        """The loop's policy, and the layout without the blocks that take no steps under it."""
        fields, own = self.policy(config), config.temperature
        block_causal = "block_causal" in fields
        layout = layout.without_idle_blocks(keep_between=block_causal)
        policy = Policy(
            mask_id=layout.mask_id,
            window=layout.window(by_block=block_causal or "cache" in fields),
            block_length=layout.most_masks,
            temperature=max(own, default=0.0) if isinstance(own, (list, tuple)) else own,
            cfg_scale=config.cfg_scale,
            right_shift=self._right_shift(config),
            eos_id=eos_id if config.stop_at_eos else None,
            eot_id=self._end_of_turn(layout.mask_id) if config.stop_at_eos else None,
            impl=config.impl,
            **fields,
        )
        return policy, layout

    def _right_shift(self, config: BaseSamplerConfig) -> bool:
        """Whether logits are shifted: the setting, else what the model's configuration says, else the default."""
        if config.right_shift_logits is not None:
            return config.right_shift_logits
        stated = right_shift_of(self.model)
        return self.shifts_right if stated is None else stated

    def _mask_id(self) -> int:
        """The mask token."""
        return canvas.mask_token(self.model, self.tokenizer)

    def _end_of_text(self, config: BaseSamplerConfig) -> object:
        """The token that ends a text, None if there is none, before it is checked."""
        return getattr(self.tokenizer, "eos_token_id", None)

    def _end_of_turn(self, mask_id: int) -> int | None:
        """The token that ends a turn, where the tokenizer has one, checked."""
        token = getattr(self.tokenizer, "eot_token_id", None)
        if token is None:
            return None
        if token == mask_id:
            raise ValueError(f"eot_token_id must differ from the mask token, got {token} for both")
        return canvas.check_tokens("eot_token_id", [token], self.model)[0]

    def _schedule(self, layout: RowLayout, config: BaseSamplerConfig, policy: Policy, device: torch.device) -> Schedule:
        blocks = [
            [Block(span.start, span.stop, self.amounts(config, span) if span.masks else [0]) for span in row]
            for row in layout.spans
        ]
        return Schedule.of(blocks, device, torch.int64 if policy.rule == "count" else torch.float32)

    def _pad(self, rows: Sequence[Tensor], eos_id: int | None, mask_id: int) -> int:
        """The token that pads shorter rows: EOS, else the padding token. Rows of equal length need none."""
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


def _row_temperatures(temperature: float | Sequence[float], rows: int, device: torch.device) -> Tensor | None:
    """float32 [B] of a temperature for each row; None of one number for all."""
    if not isinstance(temperature, (list, tuple)):
        return None
    if len(temperature) != rows:
        raise ValueError(f"temperature must be one number or one per row, got {len(temperature)} for {rows} rows")
    return torch.tensor(temperature, dtype=torch.float32, device=device)


def _check_ends(finished: object, plan: Plan) -> None:
    if finished is not None and plan.eos_id is None:
        raise ValueError("finished needs a tokenizer with an eos_token_id")
