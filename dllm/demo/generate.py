"""The command `dllm generate`: answer one question and show the denoising steps, or estimate what sampling takes."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from dllm.demo.answer import answer
from dllm.demo.shipped import SHIPPED, load, quiet_transformers
from dllm.exits import usage
from dllm.fast import Step
from dllm.fast.sampling.inputs import Settings
from dllm.models.sources import check_source, device_named, dtype_named

SECONDS_PER_FRAME = 0.06


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
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    if not prompt.strip():
        raise ValueError("expected a question, got an empty text")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = load(_source(options), device_named(device), dtype_named(options.dtype))
    length = options.gen_length
    with _view(options.live, tokenizer, prompt, length) as show:
        (reply,), stats = answer(
            model,
            tokenizer,
            [prompt],
            gen_length=length,
            steps=length if options.steps is None else options.steps,
            block_length=length if options.block_length is None else options.block_length,
            temperature=options.temperature,
            cfg_scale=options.cfg_scale,
            remasking=options.remasking,
            seed=options.seed,
            eos_token_id=tokenizer.eos_token_id,
            on_step=show,
        )
    return reply, f"{stats.useful_tokens} tokens in {stats.forwards} forward passes, {stats.seconds:.2f} s"


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
    length = options.gen_length
    settings = Settings(
        steps=length if options.steps is None else options.steps,
        gen_length=length,
        block_length=length if options.block_length is None else options.block_length,
        temperature=options.temperature,
        cfg_scale=options.cfg_scale,
        remasking=options.remasking,
    )
    canvas = Canvas(
        batch=1 if options.batch_size is None else options.batch_size,
        prompt=128 if options.prompt_length is None else options.prompt_length,
        settings=settings,
    )
    source = str(_source(options))
    with quiet_transformers():
        model_args = ModelArguments(model_name_or_path=check_source(source), dtype=options.dtype)
        config = get_config(model_args)
        found = estimate_sampling(config, model_args, canvas)
    family = marker_of(config).get("family")
    kind = f"{family} ({config.model_type})" if family else config.model_type
    return sampling_report(kind, options.dtype, canvas, found)


def _source(options: argparse.Namespace) -> Path | str:
    return SHIPPED if options.model is None else options.model


@contextlib.contextmanager
def _view(
    live: bool | None, tokenizer: object, prompt: str, gen_length: int
) -> Iterator[Callable[[Step], None] | None]:
    """Yields the callback for each step; None where steps are not shown."""
    if live is None:
        live = sys.stderr.isatty()
    if not live:
        yield None
        return
    from dllm.chat.display import open_view
    from dllm.chat.film import Film

    film = Film(tokenizer.mask_token_id, [slice(-gen_length, None)])
    with open_view(tokenizer, [prompt], film, sys.stderr, pace=SECONDS_PER_FRAME) as view:
        yield view.show
