"""`dllm chat`: a model is loaded, and talked to."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch

from dllm.chat.session import Session
from dllm.chat.talk import Continuation, Conversation
from dllm.core.samplers import MDLMSampler, MDLMSamplerConfig
from dllm.models import get_model, get_tokenizer

Loader = Callable[[torch.device, torch.dtype], tuple[Any, Any]]


def main(options: argparse.Namespace, load_shipped: Loader) -> int:
    """Chat; 0, 1 if a line that was piped in could not be carried out, 2 for a model or an option that makes no sense,
    130 when interrupted.

    Args:
        options: those of `dllm chat --help`.
        load_shipped: gives model and tokenizer where none is named, for a device and a dtype.
    """
    try:
        return _session(options, load_shipped).run(f"chat with {options.model or 'the shipped model'}")
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"dllm chat: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dllm chat: interrupted", file=sys.stderr)
        return 130


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
    device = _device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = options.dtype or ("float32" if device.type == "cpu" else "bfloat16")
    if options.model is None:
        return MDLMSampler(*load_shipped(device, getattr(torch, dtype)))
    try:
        tokenizer = get_tokenizer(model_name_or_path=options.model)
        model = get_model(model_name_or_path=options.model, dtype=dtype)
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise OSError(
            f"expected a folder with a model, or its name on the Hub, got {options.model!r}: {reason}"
        ) from error
    return MDLMSampler(model.eval().requires_grad_(False).to(device), tokenizer)


def _device(name: str) -> torch.device:
    try:
        torch.zeros(0, device=name)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"expected a device of this machine, such as cpu or cuda, got {name!r}") from error
    return torch.device(name)
