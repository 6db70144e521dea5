"""EditFlowSampler: texts grow, shrink and change by the edits that a model of Edit Flows gives rates for."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dllm.core.edits import edit_weight
from dllm.core.samplers import canvas
from dllm.core.samplers.config import settings_of
from dllm.core.samplers.edit_config import EditFlowSamplerConfig
from dllm.core.samplers.edit_loop import EditLoop, EditLoopSettings
from dllm.core.samplers.edit_texts import EditedTexts
from dllm.core.samplers.layout import Seed
from dllm.core.samplers.run import BaseSamplerOutput
from dllm.core.schedulers import BaseKappaScheduler, LinearKappaScheduler, make_kappa_scheduler
from dllm.fast.compiled import decision
from dllm.fast.model import evaluation_mode, input_embedding, position_limit
from dllm.fast.sampling.inputs import check_eos, row_seeds
from dllm.fast.sampling.live import Step
from dllm.fast.sampling.stats import Stats
from dllm.fast.visibility import check_bidirectional, why_not_batched, why_not_padded
from dllm_kernels import _impl


@dataclass
class EditFlowSampler:
    r"""Samples from a model of Edit Flows: all tokens may be substituted, deleted, and others inserted behind them.

    At the times t = 0, tau, 2 tau, ... each edit of a text is made with probability :math:`w(t)\,\hat r\,\tau`, with
    :math:`w(t) = \kappa'(t) / (1 - \kappa(t))` and the rates :math:`\hat r` that the model gives for the text
    (:func:`~dllm.core.samplers.edit_texts.draw_edits`). The model runs on texts that have changed, and a text is
    finished when hardly an edit is expected in the time that is left.

    A row depends on itself, its seed and the settings alone. Rows of a batch may have any lengths.

    model: a :class:`dllm.models.EditFlowModel`, perhaps with an adapter.
    tokenizer: has `mask_token_id`, perhaps `bos_token_id`, and `eos_token_id` or `pad_token_id`, with which rows are
        padded.
    scheduler: kappa(t); if None, the one that the model was trained with, and the linear one if its configuration does
        not say. Rates depend on no time, so another one changes only which edits share a step.

    Raises:
        TypeError, ValueError: the scheduler is no kappa, or the model has no heads of edits.

    Source: Edit Flows (arXiv:2506.09018); the names are those of dLLM 0.1.

    Example:
        >>> from types import SimpleNamespace
        >>> from transformers import ModernBertConfig
        >>> from dllm.models import EditFlowConfig, EditFlowModel
        >>> size = dict(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, vocab_size=50)
        >>> special = dict.fromkeys(("pad_token_id", "eos_token_id", "bos_token_id", "cls_token_id", "sep_token_id"), 1)
        >>> model = EditFlowModel(EditFlowConfig(ModernBertConfig(**size, **special)))
        >>> sampler = EditFlowSampler(model, SimpleNamespace(mask_token_id=3, bos_token_id=1, eos_token_id=2))
        >>> texts = sampler.sample([[1, 7, 8], [9]], mask_length=4, seed=0)
        >>> texts[0, :3], texts[1, :1]
        (tensor([1, 7, 8]), tensor([9]))
    """

    model: nn.Module
    tokenizer: Any
    scheduler: BaseKappaScheduler | None = None

    config_class: ClassVar[type[EditFlowSamplerConfig]] = EditFlowSamplerConfig
    edits: ClassVar[bool] = True  # texts grow and shrink, so a column is not a token's place

    def __post_init__(self) -> None:
        if (editing := _with_rates(self.model)) is None:
            raise ValueError(
                f"the model must be an EditFlowModel, with heads of edits, got {type(self.model).__name__}"
            )
        self._editing = editing
        if self.scheduler is None:
            trained_with = dict(getattr(editing.config, "kappa_scheduler", None) or {})
            name = trained_with.pop("name", None)
            self.scheduler = LinearKappaScheduler() if name is None else make_kappa_scheduler(name, **trained_with)
        if not isinstance(self.scheduler, BaseKappaScheduler):
            raise TypeError(f"scheduler must be a BaseKappaScheduler, got {type(self.scheduler).__name__}")

    def sample(
        self,
        inputs: canvas.Rows,
        config: EditFlowSamplerConfig | None = None,
        *,
        seed: Seed = None,
        on_step: Callable[[Step], object] | None = None,
        **overrides: Any,
    ) -> Tensor | BaseSamplerOutput:
        """Continue each prompt: the text begins as the prompt and `mask_length` masks.

        BOS is put before a prompt that does not begin with it, where the tokenizer has one, and taken away again.

        Args:
            inputs: B prompts of token ids, of any lengths: as of :meth:`BaseSampler.sample`.
            config: settings; the class's defaults if None.
            seed: of the noise: as of :meth:`BaseSampler.sample`.
            on_step: called with a :class:`dllm.fast.Step` after each step in which a text has changed. `tentative` is
                the canvas, and there is no confidence.
            **overrides: settings by name, which replace those of `config`.

        Returns:
            int64 [B, L] on the model's device, padded with EOS; with `return_dict` a :class:`BaseSamplerOutput`, whose
            histories have a width of their own each.

        Raises:
            TypeError, ValueError: an argument breaks a rule, or a row exceeds `max_length`. The model has not run then.
            ValueError: the model is causal; this is checked on a few tokens.
            RuntimeError: the logits of a token are not finite.
        """
        config = settings_of(self.config_class, config, overrides)
        mask_id = canvas.mask_token(self._editing, self.tokenizer)
        rows, edited = [], []
        for prompt in canvas.token_rows(inputs):
            if bool((prompt == mask_id).any()):
                raise ValueError(f"inputs must not hold the mask token, got one in row {len(rows)}: infill fills texts")
            masks = prompt.new_full((config.mask_length,), mask_id)
            rows.append(torch.cat([prompt, masks]))
            edited.append(torch.cat([torch.full(prompt.shape, config.edit_prompt), masks == mask_id]))
        return self._edit(rows, edited, mask_id, config, seed, on_step, opens_at_end=True)

    def infill(
        self,
        inputs: canvas.Rows,
        config: EditFlowSamplerConfig | None = None,
        *,
        seed: Seed = None,
        on_step: Callable[[Step], object] | None = None,
        **overrides: Any,
    ) -> Tensor | BaseSamplerOutput:
        """Edit the mask tokens inside texts; arguments and result as in :meth:`sample`.

        A gap of masks becomes as many tokens as its edits make of it. Nothing else changes, and nothing is inserted
        elsewhere. `mask_length` and `edit_prompt` are not used.
        """
        config = settings_of(self.config_class, config, overrides)
        mask_id = canvas.mask_token(self._editing, self.tokenizer)
        rows = canvas.token_rows(inputs)
        return self._edit(rows, [row == mask_id for row in rows], mask_id, config, seed, on_step, opens_at_end=False)

    def _edit(
        self,
        rows: list[Tensor],
        edited: list[Tensor],
        mask_id: int,
        config: EditFlowSamplerConfig,
        seed: Seed,
        on_step: Callable[[Step], object] | None,
        *,
        opens_at_end: bool,
    ) -> Tensor | BaseSamplerOutput:
        """Check everything, then edit.

        Args:
            rows: the texts to begin with.
            edited: bool, of each token whether it may be substituted and deleted.
            opens_at_end: tokens may be inserted behind the last one, whatever it is.
        """
        start_time, model, device = time.perf_counter(), self._editing, input_embedding(self._editing).device
        rows, edited, added = _with_bos(rows, edited, getattr(self.tokenizer, "bos_token_id", None), mask_id)
        limit = self._limit(config, rows)
        canvas.check_rows(model, rows, mask_id)
        suppress = canvas.token_flags(canvas.check_tokens("suppress_tokens", config.suppress_tokens, model), model)
        if on_step is not None and not callable(on_step):
            raise TypeError(f"on_step must be callable, got {type(on_step).__name__}")
        eos_id = check_eos(model, getattr(self.tokenizer, "eos_token_id", None), mask_id)
        pad = eos_id if eos_id is not None else getattr(self.tokenizer, "pad_token_id", None)
        if pad is None:
            raise ValueError("texts of different length need a tokenizer with an eos_token_id or a pad_token_id")
        seeds = row_seeds(seed, len(rows), device)
        _impl.choose(config.impl, device)
        decision.check_compile_body(config.compile_body, device)
        texts = _texts(rows, edited, device, opens_at_end)
        steps, histories = self._step_weights(config), [_returned(texts, added, pad)]

        def show(texts: EditedTexts, step: int) -> None:
            now = _returned(texts, added, pad)
            if config.return_dict:
                histories.append(now)
            if on_step is not None:
                on_step(Step(now.clone(), now, torch.full(now.shape, torch.nan), 0, 1, step, len(steps)))

        with evaluation_mode(model):
            if rows:
                check_bidirectional(model, device)
            apart = len(rows) > 1 and bool(why_not_padded(model, device) or why_not_batched(model, device))
            how = dict(forwards=len(steps), tokens=texts.tokens.numel(), device=device)
            compiling = decision.decide(model.backbone, config.compile_body, **how)
            settings = EditLoopSettings(
                weights=steps,
                temperature=config.temperature,
                min_edits=config.min_edits,
                limit=limit,
                suppress=suppress,
                apart=apart,
                impl=config.impl,
                body_context=compiling.context,
            )
            loop = EditLoop(model, settings)
            texts = loop.run(texts, seeds, show if config.return_dict or on_step is not None else None)
        sequences = _returned(texts, added, pad)
        if not config.return_dict:
            return sequences
        return BaseSamplerOutput(
            sequences, histories, _stats(loop, compiling, rows, edited, texts, mask_id, start_time)
        )

    def _limit(self, config: EditFlowSamplerConfig, rows: Sequence[Tensor]) -> int | None:
        """The most tokens of a text."""
        positions, ends = position_limit(self._editing)
        limit = config.max_length
        if ends and positions is not None:
            limit = positions if limit is None else min(limit, positions)
        longest = max(map(len, rows), default=0)
        if limit is not None and longest > limit:
            raise ValueError(f"a row with its masks must have at most {limit} tokens, got {longest}")
        return limit

    def _step_weights(self, config: EditFlowSamplerConfig) -> list[float]:
        """w(t) tau of each step."""
        times = [step * config.tau for step in range(math.ceil(1 / config.tau))]
        times = torch.tensor([t for t in times if t < 1 - config.time_epsilon], dtype=torch.float64)
        return (edit_weight(self.scheduler, times, config.max_w) * config.tau).tolist()


def _with_rates(model: nn.Module) -> nn.Module | None:
    """The model of Edit Flows inside wrappers and adapters, which act inside it."""
    return next(
        (module for module in model.modules() if hasattr(module, "rate_heads") and hasattr(module, "rates")), None
    )


def _with_bos(
    rows: Sequence[Tensor], edited: Sequence[Tensor], bos: int | None, mask_id: int
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Rows that begin with BOS, where there is one, with the rows that it was added to, int64 [B]. A first token is
    never edited.

    Raises:
        ValueError: there is no BOS, and a row is empty or begins with a mask.
    """
    found, flags, added = [], [], []
    for number, (row, edits) in enumerate(zip(rows, edited, strict=True)):
        add = bos is not None and row[:1].tolist() != [bos]
        if add:
            row, edits = torch.cat([row.new_tensor([bos]), row]), torch.cat([edits.new_tensor([False]), edits])
        elif row[:1].tolist() in ([], [mask_id]):
            raise ValueError(f"row {number} must begin with a token other than a mask, as the tokenizer has no BOS")
        edits = edits.clone()
        edits[0] = False
        found.append(row)
        flags.append(edits)
        added.append(int(add))
    return found, flags, torch.tensor(added, dtype=torch.int64)


def _texts(rows: Sequence[Tensor], edited: Sequence[Tensor], device: torch.device, opens_at_end: bool) -> EditedTexts:
    """Texts in which tokens may be inserted behind what is edited, and before it."""
    stack = functools.partial(canvas.stack_rows, pad=0, device=device)
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64, device=device)
    editable = stack([row.long() for row in edited]).bool()
    opens = editable.clone()
    opens[:, :-1] |= editable[:, 1:]
    if opens_at_end and len(rows):
        opens[torch.arange(len(rows), device=device), lengths - 1] = True
    return EditedTexts(stack(list(rows)), lengths, editable, opens)


def _returned(texts: EditedTexts, added: Tensor, pad: int) -> Tensor:
    """The texts without the BOS that was added, padded on the right."""
    lengths = texts.lengths - added.to(texts.lengths.device)
    column = torch.arange(int(lengths.max()) if len(lengths) else 0, device=lengths.device)
    read = (column + added.to(lengths.device)[:, None]).clamp(max=max(texts.tokens.shape[1] - 1, 0))
    return torch.where(column < lengths[:, None], texts.tokens.gather(1, read), pad)


def _stats(
    loop: EditLoop,
    compiling: decision.Decision,
    rows: list[Tensor],
    edited: list[Tensor],
    texts: EditedTexts,
    mask_id: int,
    start_time: float,
) -> Stats:
    given = sum(int((~flags).sum()) for flags in edited)
    tokens = int(texts.lengths.sum()) - given
    return Stats(
        forwards=loop.forwards,
        row_forwards=loop.row_forwards,
        seconds=time.perf_counter() - start_time,
        body_seconds=None,
        head_seconds=None,
        transfer_seconds=None,
        tokens=tokens,
        useful_tokens=tokens,
        mode="eager",
        note=f"{loop.steps} steps of edits",
        compiled=compiling.compiled,
        compile_note=compiling.note,
        compile_seconds=compiling.seconds,
        masks_left=int(((texts.tokens == mask_id) & texts.editable & texts.real).sum()),
    )
