"""DiffusionGemmaSampler: canvases of uniform noise, denoised one after the other with self-conditioning."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dllm.core.samplers import canvas
from dllm.core.samplers.canvas_loop import CanvasLoop, CanvasSettings, CanvasView
from dllm.core.samplers.config import settings_of
from dllm.core.samplers.diffusion_gemma_config import DiffusionGemmaSamplerConfig
from dllm.core.samplers.layout import Seed
from dllm.core.samplers.run import BaseSamplerOutput
from dllm.fast.model import check_positions, evaluation_mode
from dllm.fast.sampling.inputs import row_seeds
from dllm.fast.sampling.live import Step
from dllm.fast.sampling.stats import Stats
from dllm.fast.uniform.model import DiffusionGemma
from dllm_kernels import _impl


@dataclass
class DiffusionGemmaSampler:
    """Samples from DiffusionGemma: the decisions of transformers' own `generate`, faster and in less memory.

    A row generates canvases of `model.config.canvas_length` tokens. A canvas begins as random tokens. Each step draws a
    token for every position from softmax(l / T), lets the next forward read those of lowest entropy and random tokens
    elsewhere, and tells it the embedding that each position expects. A canvas ends when its likeliest tokens stay the
    same and are sure enough, and these are its result. The next canvas reads it through the model's causal encoder.

    The logits of a canvas, [L, 262144], never exist: head, softcap, temperature, draw, argmax, entropy and expected
    embedding are one pass. A row's tokens depend on its prompt and its seed, not on its batch, up to the rounding of
    the model's body; rows of a batch may have any lengths, and end at steps of their own.

    model: a `DiffusionGemmaForBlockDiffusion` of transformers, perhaps with an adapter that leaves its head as it is.
    tokenizer: has `eos_token_id`, `pad_token_id`; None where the model's generation_config names them.

    Raises:
        TypeError, ValueError: the model is another one, its head is no plain nn.Linear, or it runs flash attention.

    Source: DiffusionGemma, transformers' `generation_diffusion_gemma`; acceptance after EB-Sampler (arXiv:2505.24857).

    Example:
        >>> import transformers
        >>> if hasattr(transformers, "DiffusionGemmaConfig"):
        ...     layers = dict(num_hidden_layers=1, layer_types=["full_attention"], num_experts=2, top_k_experts=1)
        ...     heads = dict(num_attention_heads=1, num_key_value_heads=1, head_dim=8, global_head_dim=8)
        ...     size = dict(vocab_size=50, hidden_size=8, intermediate_size=8, moe_intermediate_size=8)
        ...     text = transformers.DiffusionGemmaTextConfig(**layers, **heads, **size)
        ...     small = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, head_dim=8)
        ...     vision = transformers.AutoConfig.for_model("gemma4_vision", **small)
        ...     parts = dict(text_config=text, vision_config=vision)
        ...     config = transformers.DiffusionGemmaConfig(**parts, canvas_length=4, image_token_id=49)
        ...     model = transformers.DiffusionGemmaForBlockDiffusion(config).eval()
        ...     sampled = DiffusionGemmaSampler(model).sample([[5, 6]], seed=0, max_new_tokens=6, max_denoising_steps=2)
        ...     assert sampled.shape == (1, 8) and sampled[0, :2].tolist() == [5, 6]
    """

    model: nn.Module
    tokenizer: Any = None

    config_class: ClassVar[type[DiffusionGemmaSamplerConfig]] = DiffusionGemmaSamplerConfig
    edits: ClassVar[bool] = True  # no token is final before its canvas is over

    def __post_init__(self) -> None:
        self._parts = DiffusionGemma(self.model)

    def sample(
        self,
        inputs: canvas.Rows,
        config: DiffusionGemmaSamplerConfig | None = None,
        *,
        seed: Seed = None,
        on_step: Callable[[Step], object] | None = None,
        **overrides: Any,
    ) -> Tensor | BaseSamplerOutput:
        """Continue each prompt.

        Args:
            inputs: B prompts of token ids, of any lengths from 1 on: as of :meth:`BaseSampler.sample`. Images are not
                taken: `dllm.fast.patch(model)` makes `model.generate` itself fast, which takes them.
            config: settings; if None, those of the model's generation_config.
            seed: of the noise: as of :meth:`BaseSampler.sample`.
            on_step: called with a :class:`dllm.fast.Step` after each step. `canvas` is what the next forward reads,
                `tentative` the likeliest tokens, `confidence` minus the entropy of each position, in nats; `block` and
                `step` are those of the row that is farthest behind.
            **overrides: settings by name, which replace those of `config`.

        Returns:
            int64 [B, L] on the model's device: prompts and at most `max_new_tokens` tokens, padded on the right; with
            `return_dict` a :class:`BaseSamplerOutput`.

        Raises:
            TypeError, ValueError: an argument breaks a rule; the model has not run then.
            RuntimeError: a row's logits had no finite number.
        """
        start_time = time.perf_counter()
        if config is None:
            config = DiffusionGemmaSamplerConfig.of(self.model)
        config = settings_of(self.config_class, config, overrides)
        if on_step is not None and not callable(on_step):
            raise TypeError(f"on_step must be callable, got {type(on_step).__name__}")
        rows, device = canvas.token_rows(inputs), self._parts.device
        self._check(rows, config)
        ends, pad = self._ends(config), self._pad()
        seeds = row_seeds(seed, len(rows), device)
        _impl.choose(config.impl, device)
        settings = CanvasSettings(
            max_new_tokens=config.max_new_tokens,
            steps=config.max_denoising_steps,
            t_min=config.t_min,
            t_max=config.t_max,
            entropy_bound=config.entropy_bound,
            stability_threshold=config.stability_threshold,
            confidence_threshold=config.confidence_threshold,
            ends=ends,
            log_probs=config.log_probs,
            impl=config.impl,
        )
        loop, prompts = CanvasLoop(self._parts, settings), [row.to(device) for row in rows]
        keeps = config.return_dict and config.keep_histories
        film = _Film(prompts, self._parts.canvas_length, settings, pad, keeps, on_step)
        with evaluation_mode(self.model):
            loop.run(prompts, seeds, film.show if keeps or on_step is not None else None)
        made = [tokens[: config.max_new_tokens] for tokens in loop.tokens]
        made = [torch.where(_after_end(tokens, ends), pad, tokens) for tokens in made]
        sequences = canvas.stack_rows([torch.cat(pair) for pair in zip(prompts, made, strict=True)], pad, device)
        if not config.return_dict:
            return sequences
        log_probs = None
        if config.log_probs:
            log_probs = [x[: config.max_new_tokens] for x in loop.log_probs]
        stats = _stats(loop, made, ends, time.perf_counter() - start_time)
        return BaseSamplerOutput(sequences, film.histories if keeps else None, stats, log_probs)

    def _check(self, rows: Sequence[Tensor], config: DiffusionGemmaSamplerConfig) -> None:
        """Check prompts against the vocabulary, the positions and the image token."""
        model, size = self._parts, self._parts.canvas_length
        for number, row in enumerate(rows):
            if not len(row):
                raise ValueError(f"a prompt must have at least one token, got none in row {number}")
            low, high = int(row.min()), int(row.max())
            if low < 0 or high >= model.vocab_size:
                wrong = low if low < 0 else high
                raise ValueError(f"tokens must lie in [0, {model.vocab_size}), got {wrong} in row {number}")
            if bool((row == model.image_token_id).any()):
                raise ValueError(
                    f"row {number} holds the image token {model.image_token_id}, and this sampler takes no images: "
                    "dllm.fast.patch(model) makes model.generate fast, which takes pixel_values"
                )
        longest = max(map(len, rows), default=0)
        check_positions(model.model, longest + -(-config.max_new_tokens // size) * size, "prompt and canvases must fit")

    def _ends(self, config: DiffusionGemmaSamplerConfig) -> list[int]:
        """The tokens that end a row."""
        found = config.eos_token_ids
        if found is None:
            found = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        if found is None:
            found = getattr(self.tokenizer, "eos_token_id", None)
        if found is None:
            return []
        return canvas.check_tokens("eos_token_ids", found if isinstance(found, (list, tuple)) else [found], self.model)

    def _pad(self) -> int:
        """The token that stands after the end of a row."""
        for source in (getattr(self.model, "generation_config", None), self.tokenizer, self._parts.model.config):
            found = getattr(source, "pad_token_id", None)
            if found is not None:
                return canvas.check_tokens("pad_token_id", [found], self.model)[0]
        return 0


class _Film:
    """The canvases of a call, step by step, for histories and the live view."""

    def __init__(
        self,
        prompts: Sequence[Tensor],
        size: int,
        settings: CanvasSettings,
        pad: int,
        keeps: bool,
        on_step: Callable[[Step], object] | None,
    ):
        self.lengths, self.size, self.settings = [len(prompt) for prompt in prompts], size, settings
        self.keeps, self.on_step = keeps, on_step
        self.canvases = -(-settings.max_new_tokens // size)
        width = max(self.lengths, default=0) + self.canvases * size
        device = prompts[0].device if len(prompts) else torch.device("cpu")
        self.read = torch.full((len(prompts), width), pad, dtype=torch.int64, device=device)
        for row, prompt in enumerate(prompts):
            self.read[row, : len(prompt)] = prompt
        self.histories = [self.read.clone()] if keeps else []

    def show(self, views: list[CanvasView]) -> None:
        """Take up a step."""
        draft = self.read.clone()
        confidence = torch.full(self.read.shape, torch.nan, device=self.read.device)
        for view in views:
            begin = self.lengths[view.row] + view.canvas * self.size
            place = (view.row, slice(begin, begin + self.size))
            self.read[place] = view.draft if view.done else view.read
            draft[place] = view.draft
            confidence[place] = view.neg_entropy
        if self.keeps:
            self.histories.append(self.read.clone())
        if self.on_step is not None:
            last = min(views, key=lambda view: (view.canvas, view.step))
            self.on_step(
                Step(self.read.clone(), draft, confidence, last.canvas, self.canvases, last.step, self.settings.steps)
            )


def _after_end(tokens: Tensor, ends: Sequence[int]) -> Tensor:
    """Which tokens of a row stand after its end, bool."""
    at = torch.isin(tokens, torch.tensor(list(ends), dtype=torch.int64, device=tokens.device))
    return at.cumsum(0) - at.long() > 0


def _stats(loop: CanvasLoop, made: Sequence[Tensor], ends: Sequence[int], seconds: float) -> Stats:
    return Stats(
        forwards=loop.forwards,
        row_forwards=loop.row_forwards,
        seconds=seconds,
        body_seconds=None,
        head_seconds=None,
        transfer_seconds=None,
        tokens=sum(map(len, made)),
        useful_tokens=sum(int((~_after_end(tokens, ends)).sum()) for tokens in made),
        mode="eager",
        note=f"{loop.encoded} forwards of the encoder besides",
        cache_bytes=loop.cache_bytes,
    )
