"""The command `dllm generate`: answer one question, and show the denoising steps."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator

import torch

from dllm.demo.answer import answer
from dllm.demo.shipped import SHIPPED, load
from dllm.exits import usage
from dllm.fast import Step
from dllm.models.sources import device_named

SECONDS_PER_FRAME = 0.06


def main(options: argparse.Namespace) -> int:
    """Answer `options.prompt` and return 0. The options are those of `dllm generate --help`.

    Raises:
        UsageError: the question or an option is invalid, or the model cannot be loaded.
        NoFiniteLogit: the model computes NaN.
    """
    with usage():
        reply, summary = _answer(options)
    print(reply, flush=True)
    print(summary, file=sys.stderr)
    return 0


def _answer(options: argparse.Namespace) -> tuple[str, str]:
    """The answer, and a line about its cost."""
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    if not prompt.strip():
        raise ValueError("expected a question, got an empty text")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = load(SHIPPED if options.model is None else options.model, device_named(device))
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
