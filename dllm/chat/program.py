"""The command `dllm chat`: load a model and start a chat."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch

from dllm.chat.options import check_compiler, talk_of
from dllm.chat.session import Session
from dllm.exits import ends_at_once, usage
from dllm.models import get_model, get_tokenizer, with_packed_attention
from dllm.models.sources import device_named

Loader = Callable[[torch.device, torch.dtype, str | None], tuple[Any, Any]]


def main(options: argparse.Namespace, load_shipped: Loader) -> int:
    """Run `dllm chat`; returns 0, or 1 if a line that was piped in failed.

    Args:
        options: those of `dllm chat --help`.
        load_shipped: loads the bundled model and its tokenizer on a device, in a dtype and quantised or not; called
            where no model is named.

    Raises:
        UsageError: an option is invalid, or the model cannot be loaded.
        KeyboardInterrupt: see :meth:`dllm.chat.session.Session.run`.
    """
    with ends_at_once("dllm chat"), usage():
        session = _session(options, load_shipped)
    return session.run(f"chat with {options.model or 'the bundled model'}")


def _session(options: argparse.Namespace, load_shipped: Loader) -> Session:
    talk = talk_of(options, *load_chosen(options, load_shipped), system=options.system)
    talk.check()
    shown = options.live
    if shown is None:
        shown = sys.stdout.isatty() or (sys.stderr.isatty() and sys.stdin.isatty())
    return Session(talk, show=shown)


def load_chosen(options: argparse.Namespace, load_shipped: Loader) -> tuple[Any, Any]:
    """The model that options name, in evaluation mode, and its tokenizer.

    Args:
        options: `model`, `device`, `dtype`, `quantize` and `compile_body`.
        load_shipped: see :func:`main`.

    Raises:
        OSError, ValueError: an option is invalid, or the model cannot be loaded.
    """
    device = device_named(options.device)
    check_compiler(options, device)
    dtype = options.dtype or ("float32" if device.type == "cpu" else "bfloat16")
    if options.model is None:
        model, tokenizer = load_shipped(device, getattr(torch, dtype), options.quantize)
    else:
        tokenizer = get_tokenizer(model_name_or_path=options.model)
        model = get_model(model_name_or_path=options.model, dtype=dtype, quantize=options.quantize)
        model = model.eval().requires_grad_(False).to(device)
    return with_packed_attention(model), tokenizer
