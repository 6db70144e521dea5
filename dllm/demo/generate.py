"""`dllm generate`: one question, one answer, shown while it takes form."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator

import torch

from dllm.demo.answer import answer
from dllm.demo.shipped import SHIPPED, load
from dllm.fast import Step

SECONDS_PER_FRAME = 0.06


def main(options: argparse.Namespace) -> int:
    """Answer `options.prompt`; 0, or 2 for a question, a model or an option that makes no sense, 130 when interrupted.

    The options are those of `dllm generate --help`.
    """
    try:
        reply, summary = _answer(options)
    except (OSError, ValueError) as error:
        print(f"dllm generate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dllm generate: interrupted", file=sys.stderr)
        return 130
    print(reply, flush=True)
    print(summary, file=sys.stderr)
    return 0


def _answer(options: argparse.Namespace) -> tuple[str, str]:
    """The answer, and what it cost in words."""
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    if not prompt.strip():
        raise ValueError("expected a question, got an empty text")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = load(options.model or SHIPPED, _device(device))
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


def _device(name: str) -> torch.device:
    try:
        torch.zeros(0, device=name)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"expected a device of this machine, such as cpu or cuda, got {name!r}") from error
    return torch.device(name)


@contextlib.contextmanager
def _view(
    live: bool | None, tokenizer: object, prompt: str, gen_length: int
) -> Iterator[Callable[[Step], None] | None]:
    """What to call after each step; None where the steps are not shown."""
    if live is None:
        live = sys.stderr.isatty()
    if not live:
        yield None
        return
    from dllm.chat.film import Film
    from dllm.chat.view import open_view

    film = Film(tokenizer.mask_token_id, [slice(-gen_length, None)])
    with open_view(tokenizer, [prompt], film, sys.stderr, pace=SECONDS_PER_FRAME) as view:
        yield view.show
