"""The command `dllm chat`: load a model and start a chat."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch

from dllm.chat.session import Session
from dllm.chat.talk import Continuation, Conversation
from dllm.core.samplers import MDLMSampler, MDLMSamplerConfig
from dllm.exits import usage
from dllm.models import get_model, get_tokenizer
from dllm.models.sources import device_named

Loader = Callable[[torch.device, torch.dtype], tuple[Any, Any]]


def main(options: argparse.Namespace, load_shipped: Loader) -> int:
    """Run `dllm chat`; returns 0, or 1 if a line that was piped in failed.

    Args:
        options: those of `dllm chat --help`.
        load_shipped: loads the bundled model and its tokenizer on a device in a dtype; called where no model is named.

    Raises:
        UsageError: an option is invalid, or the model cannot be loaded.
        KeyboardInterrupt: see :meth:`dllm.chat.session.Session.run`.
    """
    with usage():
        session = _session(options, load_shipped)
    return session.run(f"chat with {options.model or 'the bundled model'}")


def _session(options: argparse.Namespace, load_shipped: Loader) -> Session:
    sampler, config = _sampler(options, load_shipped), _config(options)
    shown = options.live
    if shown is None:
        shown = sys.stdout.isatty() or (sys.stderr.isatty() and sys.stdin.isatty())
    kind, more = (Continuation, {}) if options.raw else (Conversation, {"system": options.system})
    talk = kind(sampler, config, seed=options.seed, **more)
    return Session(talk, show=shown)


def _config(options: argparse.Namespace) -> MDLMSamplerConfig:
    config = MDLMSamplerConfig(
        max_new_tokens=options.gen_length,
        steps=options.gen_length if options.steps is None else options.steps,
        block_size=options.block_length,
        temperature=options.temperature,
        cfg_scale=options.cfg_scale,
        remasking=options.remasking,
        stop_at_eos=True,
    )
    config.check()
    return config


def _sampler(options: argparse.Namespace, load_shipped: Loader) -> MDLMSampler:
    device = device_named(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = options.dtype or ("float32" if device.type == "cpu" else "bfloat16")
    if options.model is None:
        return MDLMSampler(*load_shipped(device, getattr(torch, dtype)))
    tokenizer = get_tokenizer(model_name_or_path=options.model)
    model = get_model(model_name_or_path=options.model, dtype=dtype)
    return MDLMSampler(model.eval().requires_grad_(False).to(device), tokenizer)
