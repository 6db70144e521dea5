"""The command `dllm generate`: answer a question or continue a text, step by step, or estimate what sampling takes."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from dllm.chat.display import open_view
from dllm.chat.film import Film
from dllm.chat.options import SETTINGS, answer_length, check_compiler, talk_of
from dllm.core.samplers import MDLMSampler, sampler_for
from dllm.demo.answer import answer
from dllm.demo.shipped import SHIPPED, load, quiet_transformers
from dllm.exits import ends_at_once, usage
from dllm.fast import Stats, Step
from dllm.fast.sampling.inputs import Settings
from dllm.models.sources import check_source, device_named, dtype_named

SECONDS_PER_FRAME = 0.06
# Options of samplers that the loop of model cards has too.
OF_CARD = {"steps", "block_length", "temperature", "cfg_scale", "remasking", "compile_body"}


def main(options: argparse.Namespace) -> int:
    """Answer `options.prompt`, or print an estimate with `options.dry_run`, and return 0. The options are those of
    `dllm generate --help`.

    Raises:
        UsageError: the question or an option is invalid, or the model cannot be loaded.
        NoFiniteLogit: the model computes NaN.
    """
    with usage():
        if options.dry_run:
            print(_estimate(options), flush=True)
            return 0
        reply, summary = _answer(options)
    print(reply, flush=True)
    print(summary, file=sys.stderr)
    return 0


def _answer(options: argparse.Namespace) -> tuple[str, str]:
    """The answer, and a line about its cost."""
    for name in ("prompt_length", "batch_size"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} needs --dry-run: what is generated is counted")
    if options.prompt is None:
        raise ValueError("expected a question, got none")
    text = sys.stdin.read() if options.prompt == "-" else options.prompt
    if not text.strip():
        raise ValueError("expected a question, got an empty text")
    where = device_named(options.device), dtype_named(options.dtype)
    check_compiler(options, where[0])
    with ends_at_once("dllm generate"):
        model, tokenizer = load(_source(options), *where, options.quantize)
    by_card = not options.raw and options.sampler is None and sampler_for(model).sampler is MDLMSampler
    reply, stats = (_by_model_card if by_card else _by_sampler)(options, model, tokenizer, text)
    return reply, f"{stats.useful_tokens} tokens in {stats.forwards} forward passes, {stats.seconds:.2f} s"


def _by_model_card(options: argparse.Namespace, model: nn.Module, tokenizer: Any, question: str) -> tuple[str, Stats]:
    """The answer of the loop that model cards print, :func:`dllm.fast.generate`."""
    film = Film(tokenizer.mask_token_id, [slice(-answer_length(options), None)])
    with _view(options.live, tokenizer, question, film) as show:
        (reply,), stats = answer(
            model,
            tokenizer,
            [question],
            **_settings_of_card(options),
            seed=options.seed,
            compile_body=options.compile_body,
            eos_token_id=tokenizer.eos_token_id,
            on_step=show,
        )
    return reply, stats


def _by_sampler(options: argparse.Namespace, model: nn.Module, tokenizer: Any, text: str) -> tuple[str, Stats]:
    """The answer of the sampler of the model's family, or with `raw` how it continues the text."""
    talk = talk_of(options, model, tokenizer)
    prompt = talk.prompt(text)
    with _view(options.live, tokenizer, text, prompt.film) as show:
        return talk.answer(text, prompt, show)


def _estimate(options: argparse.Namespace) -> str:
    """The report of a dry run."""
    from dllm.configs import ModelArguments
    from dllm.estimates.costs import Canvas
    from dllm.estimates.sampling import estimate_sampling
    from dllm.estimates.text import sampling_report
    from dllm.models import get_config
    from dllm.models.official import marker_of

    if options.prompt is not None:
        raise ValueError("--dry-run takes no question: --prompt-length says how long it is")
    for name in ("raw", "sampler", "quantize"):
        if getattr(options, name):
            raise ValueError(f"--{name} must not be given with --dry-run, which counts the loop of model cards")
    canvas = Canvas(
        batch=1 if options.batch_size is None else options.batch_size,
        prompt=128 if options.prompt_length is None else options.prompt_length,
        settings=Settings(**_settings_of_card(options)),
    )
    source = str(_source(options))
    with quiet_transformers():
        model_args = ModelArguments(model_name_or_path=check_source(source), dtype=options.dtype)
        config = get_config(model_args)
        found = estimate_sampling(config, model_args, canvas)
    family = marker_of(config).get("family")
    kind = f"{family} ({config.model_type})" if family else config.model_type
    return sampling_report(kind, options.dtype, canvas, found)


def _settings_of_card(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of the loop that model cards print; an option that is not given has its default.

    Raises:
        ValueError: an option is given that the loop does not have.
    """
    for name in SETTINGS:
        if name not in OF_CARD and getattr(options, name) is not None:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"the loop of model cards has no {name}, so {flag} must not be given")
    length = answer_length(options)
    return {
        "gen_length": length,
        "steps": length if options.steps is None else options.steps,
        "block_length": length if options.block_length is None else options.block_length,
        "temperature": 0.0 if options.temperature is None else options.temperature,
        "cfg_scale": 0.0 if options.cfg_scale is None else options.cfg_scale,
        "remasking": "low_confidence" if options.remasking is None else options.remasking,
    }


def _source(options: argparse.Namespace) -> Path | str:
    return SHIPPED if options.model is None else options.model


@contextlib.contextmanager
def _view(live: bool | None, tokenizer: Any, title: str, film: Film) -> Iterator[Callable[[Step], None] | None]:
    """Yields the callback for each step; None where steps are not shown."""
    if live is None:
        live = sys.stderr.isatty()
    if not live:
        yield None
        return
    with open_view(tokenizer, [title], film, sys.stderr, pace=SECONDS_PER_FRAME) as view:
        yield view.show
