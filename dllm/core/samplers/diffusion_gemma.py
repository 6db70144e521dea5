"""DiffusionGemmaSampler: canvases of uniform noise, denoised one after the other with self-conditioning."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from dllm.core.samplers import canvas
from dllm.core.samplers.canvas_film import CanvasFilm, after_end, ended
from dllm.core.samplers.canvas_loop import CanvasLoop, CanvasSettings
from dllm.core.samplers.config import at_least, check_callable, settings_of
from dllm.core.samplers.diffusion_gemma_config import DiffusionGemmaSamplerConfig
from dllm.core.samplers.layout import Seed
from dllm.core.samplers.many import SampledRow
from dllm.core.samplers.run import BaseSamplerOutput
from dllm.fast.model import check_positions, evaluation_mode
from dllm.fast.sampling.ends import Finished
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
    approximate: ClassVar[bool] = False  # it takes the decisions of transformers
    masks: ClassVar[bool] = False  # what is open holds noise
    shifts_right: ClassVar[bool] = False
    confidence: ClassVar[str] = "neg_entropy"  # what `on_step` is given

    def __post_init__(self) -> None:
        self._parts = DiffusionGemma(self.model)

    def sample(
        self,
        inputs: canvas.Rows,
        config: DiffusionGemmaSamplerConfig | None = None,
        *,
        seed: Seed = None,
        on_step: Callable[[Step], object] | None = None,
        finished: Finished | None = None,
        **overrides: Any,
    ) -> Tensor | BaseSamplerOutput:
        """Continue each prompt.

        Args:
            inputs: B prompts of token ids, of any lengths from 1 on: as of :meth:`BaseSampler.sample`. Images are not
                taken: `dllm.fast.patch(model)` makes `model.generate` itself fast, which takes them.
            config: settings; if None, those of the model's generation_config.
            seed: of the noise: as of :meth:`BaseSampler.sample`.
            on_step: called with a :class:`dllm.fast.Step` after each step. `canvas` is what the next forward reads,
                `tentative` the likeliest tokens, `confidence` minus the entropy of each position, in nats, and `open`
                the positions whose canvas is not over; `block` and `step` are those of the row that is farthest behind.
            finished: called with the number of a row and what it has generated, a list of ints, at the end of each
                canvas that another one would follow: before, no token is final. True ends the row, as for a stop
                string; what follows it in its canvas is for the caller to cut.
            **overrides: settings by name, which replace those of `config`.

        Returns:
            int64 [B, L] on the model's device: prompts and at most `max_new_tokens` tokens, padded on the right; with
            `return_dict` a :class:`BaseSamplerOutput`.

        Raises:
            TypeError, ValueError: an argument breaks a rule; the model has not run then.
            RuntimeError: a row's logits had no finite number.
        """
        start_time = time.perf_counter()
        check_callable(on_step=on_step, finished=finished)
        call = self._call(inputs, config, seed, overrides)
        config, loop = call.config, CanvasLoop(self._parts, call.settings)
        keeps = config.return_dict and config.keep_histories
        film = CanvasFilm(call.prompts, self._parts.canvas_length, call.settings, call.pad, keeps, on_step)
        with evaluation_mode(self.model):
            loop.run(call.prompts, call.seeds, film.show if keeps or on_step is not None else None, finished=finished)
        made = [call.emitted(tokens) for tokens in loop.tokens]
        rows = [torch.cat(pair) for pair in zip(call.prompts, made, strict=True)]
        sequences = canvas.stack_rows(rows, call.pad, self._parts.device)
        if not config.return_dict:
            return sequences
        log_probs = None
        if config.log_probs:
            log_probs = [x[: config.max_new_tokens] for x in loop.log_probs]
        stats = _stats(loop, made, call.settings.ends, time.perf_counter() - start_time)
        return BaseSamplerOutput(sequences, film.histories if keeps else None, stats, log_probs)

    def sample_many(
        self,
        inputs: canvas.Rows,
        config: DiffusionGemmaSamplerConfig | None = None,
        *,
        rows: int = 16,
        seed: Seed = None,
        finished: Finished | None = None,
        on_row: Callable[[int, SampledRow], object] | None = None,
        **overrides: Any,
    ) -> list[SampledRow]:
        """Continue many prompts, some at a time: the next one takes the place of one that has ended.

        A row's tokens are those that :meth:`sample` gives it, up to the rounding of the model's body.

        Args:
            inputs, config, seed, finished, overrides: as :meth:`sample` takes them. `return_dict` is not used.
            rows: how many run together, at most.
            on_row: called with the number of a prompt and its row as soon as that has ended.

        Returns:
            The rows, in the order of the prompts; a row that ends early has fewer tokens.

        Raises:
            TypeError, ValueError, RuntimeError: as :meth:`sample`.
        """
        at_least(1, "rows", rows)
        check_callable(finished=finished, on_row=on_row)
        call, results = self._call(inputs, config, seed, overrides), {}
        loop = CanvasLoop(self._parts, call.settings)

        def keep(row: int) -> None:
            tokens = torch.cat([call.prompts[row], call.emitted(loop.tokens[row])])
            results[row] = SampledRow(tokens, loop.row_forwards[row], loop.row_seconds[row])
            if on_row is not None:
                on_row(row, results[row])

        with evaluation_mode(self.model):
            loop.run(call.prompts, call.seeds, rows=rows, finished=finished, on_row=keep)
        return [results[row] for row in range(len(call.prompts))]

    def check(self, inputs: canvas.Rows, config: DiffusionGemmaSamplerConfig | None = None, **overrides: Any) -> None:
        """Check a call of :meth:`sample` without running the model.

        Raises:
            TypeError, ValueError: all that `sample` would raise before it runs the model.
        """
        self._call(inputs, config, 0, overrides)

    def _call(
        self,
        inputs: canvas.Rows,
        config: DiffusionGemmaSamplerConfig | None,
        seed: Seed,
        overrides: dict[str, Any],
    ) -> _Call:
        """A call, checked."""
        if config is None:
            config = DiffusionGemmaSamplerConfig.of(self.model)
        config = settings_of(self.config_class, config, overrides)
        rows, device = canvas.token_rows(inputs), self._parts.device
        self._check(rows, config)
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
            ends=self._ends(config),
            log_probs=config.log_probs,
            impl=config.impl,
        )
        return _Call([row.to(device) for row in rows], seeds, config, settings, self._pad())

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
            named = (getattr(self.tokenizer, name, None) for name in ("eos_token_id", "eot_token_id"))
            found = [token for token in named if token is not None]
        return canvas.check_tokens("eos_token_ids", found if isinstance(found, (list, tuple)) else [found], self.model)

    def _pad(self) -> int:
        """The token that stands after the end of a row."""
        for source in (getattr(self.model, "generation_config", None), self.tokenizer, self._parts.model.config):
            found = getattr(source, "pad_token_id", None)
            if found is not None:
                return canvas.check_tokens("pad_token_id", [found], self.model)[0]
        return 0


class _Call(NamedTuple):
    """A call of the sampler, checked.

    prompts: B rows, on the model's device.
    seeds: int64 [B].
    config, settings: as the caller and as the loop have them.
    pad: the token behind the end of a row.
    """

    prompts: list[Tensor]
    seeds: Tensor
    config: DiffusionGemmaSamplerConfig
    settings: CanvasSettings
    pad: int

    def emitted(self, tokens: Tensor) -> Tensor:
        """The tokens that a row emits of the canvases that it has generated."""
        return ended(tokens[: self.settings.max_new_tokens], self.settings.ends, self.pad)


def _stats(loop: CanvasLoop, made: Sequence[Tensor], ends: Sequence[int], seconds: float) -> Stats:
    return Stats(
        forwards=loop.forwards,
        row_forwards=loop.row_forwards,
        seconds=seconds,
        body_seconds=None,
        head_seconds=None,
        transfer_seconds=None,
        tokens=sum(map(len, made)),
        useful_tokens=sum(int((~after_end(tokens, ends)).sum()) for tokens in made),
        mode="eager",
        note=f"{loop.encoded} forwards of the encoder besides",
        cache_bytes=loop.cache_bytes,
    )
