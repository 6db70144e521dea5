"""Requests of lm-evaluation-harness as work for a model: token ids, the settings of each, and what that will cost."""

from __future__ import annotations

import dataclasses
from typing import Any

from dllm.core.eval.config import EvalSettings
from dllm.core.eval.framing import Framing
from dllm.core.eval.gen_kwargs import generation_settings
from dllm.core.eval.generation import GenerationRequest
from dllm.core.eval.jobs import Work
from dllm.core.likelihood import Target, count_rows, windows_of
from dllm.core.samplers import BaseSamplerConfig, DiffusionGemmaSamplerConfig

CANVAS_LENGTH = 256  # tokens


class Encoder:
    """Encodes the arguments of requests, a method for each type; :func:`dllm.core.eval.jobs.jobs_of` calls them.

    Args:
        settings: of the evaluation.
        framing: from texts to token ids.
        max_length: tokens of a window of :meth:`document`.

    Each method takes the arguments of a request, its seed, and whether it is the only request of its document. It
    raises TypeError or ValueError where the request breaks a rule.

    Example:
        >>> from dllm.core.eval.config import read_settings
        >>> from dllm.core.eval.models import model_named
        >>> from dllm.demo.shipped import load_shipped
        >>> tokenizer = load_shipped()[1]
        >>> settings = read_settings(model_named("bert"), {"pretrained": "some/model"})
        >>> encoder = Encoder(settings, Framing(tokenizer, tokenizer.mask_token_id, 64), max_length=64)
        >>> encoder.target(("6 * 7 =", " 42"), 0, False).tokens
        1
    """

    def __init__(self, settings: EvalSettings, framing: Framing, max_length: int):
        self.settings, self.framing, self.max_length = settings, framing, max_length

    def target(self, arguments: tuple[Any, ...], seed: int, alone: bool) -> Work:
        """A context and a target whose likelihood is asked for."""
        context, target, after = self.framing.pair(*arguments)
        rows = count_rows(len(target), self.settings.likelihood)
        rows += len(target) if self.settings.eval.checks_greedy(alone) else 0
        columns = len(context) + len(target) + len(after)
        return Work(Target(context, target, seed, after), rows, columns, len(target))

    def document(self, arguments: tuple[Any, ...], seed: int, alone: bool) -> Work:
        """A text whose likelihood is asked for, window by window."""
        prefix, tokens = self.framing.document(arguments[0])
        windows = list(windows_of(tokens, self.max_length, prefix))
        rows = sum(count_rows(len(target), self.settings.likelihood) for _, target in windows)
        columns = max(len(context) + len(target) for context, target in windows)
        return Work((tuple(prefix), tokens, seed), rows, columns, len(tokens))

    def prompt(self, arguments: tuple[Any, ...], seed: int, alone: bool) -> Work:
        """A prompt that is to be answered, with the task's settings."""
        text, kwargs = arguments
        until, overrides = generation_settings(kwargs, self.settings)
        sampler = self.settings.sampler
        if hasattr(sampler, "stop_at_eos"):
            overrides |= {"stop_at_eos": sampler.stop_at_eos}
        config = sampler.with_length(overrides.get("max_new_tokens", sampler.max_new_tokens))
        config = dataclasses.replace(config, **overrides)
        config.check()
        prompt = self.framing.prompt(text, config.max_new_tokens)
        until = () if self.settings.eval.escape_until else until
        request = GenerationRequest(prompt, until, seed, overrides)
        return Work(request, _most_steps(config), len(prompt) + config.max_new_tokens, config.max_new_tokens)


def _most_steps(config: BaseSamplerConfig | DiffusionGemmaSamplerConfig) -> int:
    """The most forwards that an answer takes; of DiffusionGemma with the canvases of the published model."""
    if isinstance(config, DiffusionGemmaSamplerConfig):
        return config.max_denoising_steps * -(-config.max_new_tokens // CANVAS_LENGTH)
    blocks = -(-config.max_new_tokens // (config.block_size or config.max_new_tokens))
    steps = (config.steps or config.block_size) * (blocks if config.steps_of == "block" else 1)
    return min(steps, config.max_new_tokens)
