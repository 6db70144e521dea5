"""The sampler of a model and its settings, as options of a command line choose them."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import torch
from torch import nn

from dllm.chat.talk import Continuation, Conversation, Talk
from dllm.core.samplers.diffusion_gemma_config import DiffusionGemmaSamplerConfig
from dllm.core.samplers.families import SamplerChoice, one_token_a_step, sampler_for
from dllm.fast.compiled.decision import why_not_compile

# Options, and the settings of samplers that they set. An option that is not given leaves the family's setting.
SETTINGS = {
    "steps": "steps",
    "block_length": "block_size",
    "temperature": "temperature",
    "cfg_scale": "cfg_scale",
    "remasking": "remasking",
    "compile_body": "compile_body",
    "t_min": "t_min",
    "t_max": "t_max",
    "entropy_bound": "entropy_bound",
}
ANSWER_LENGTH = 64  # tokens


def chosen_sampler(options: argparse.Namespace, model: nn.Module) -> SamplerChoice:
    """The sampler and its settings: those of the model's family, with what the options change.

    Without `steps` a step commits one token, or more by the rules of samplers with a threshold. Rows end at the end of
    an answer. Without `gen_length` that is of 64 tokens, or as long as the model's own settings say.

    Args:
        options: `sampler`, `gen_length` and the names in `SETTINGS`; None where one is not given.
        model: the model.

    Raises:
        TypeError, ValueError: the sampler does not have a setting that an option sets, or the value breaks a rule.
    """
    kind, config = sampler_for(model, options.sampler)
    given = {option: getattr(options, option) for option in SETTINGS if getattr(options, option) is not None}
    known = {field.name for field in dataclasses.fields(config)}
    others, changed = getattr(config, "other_names", {}), {}
    for option, value in given.items():
        name = others.get(SETTINGS[option], SETTINGS[option])
        if name not in known:
            flag = f"--{option.replace('_', '-')}"
            raise ValueError(f"{kind.__name__} has no {name}, so {flag} must not be given")
        changed[name] = value
    if options.gen_length is not None or not isinstance(config, DiffusionGemmaSamplerConfig):
        changed["max_new_tokens"] = answer_length(options)
    if "stop_at_eos" in known:
        changed["stop_at_eos"] = True
    config = dataclasses.replace(config, **changed)
    config.check()
    return SamplerChoice(kind, config if "steps" in given else one_token_a_step(SamplerChoice(kind, config)))


def answer_length(options: argparse.Namespace) -> int:
    """The most tokens of an answer, for models whose own settings do not say.

    Example:
        >>> answer_length(argparse.Namespace(gen_length=None))
        64
    """
    return ANSWER_LENGTH if options.gen_length is None else options.gen_length


def check_compiler(options: argparse.Namespace, device: torch.device) -> None:
    """Check that `--compile-body` can be had, before a model is loaded.

    Raises:
        ValueError: it cannot; the message says what is missing.
    """
    if options.compile_body and (missing := why_not_compile(device)):
        raise ValueError(f"--compile-body cannot compile: {missing}")


def talk_of(options: argparse.Namespace, model: nn.Module, tokenizer: Any, system: str | None = None) -> Talk:
    """A conversation with the model, or with `options.raw` independent texts that it continues.

    Raises:
        TypeError, ValueError: an option is invalid, or the tokenizer has no chat template for a conversation.
    """
    kind, config = chosen_sampler(options, model)
    sampler = kind(model, tokenizer)
    if options.raw:
        return Continuation(sampler, config, seed=options.seed)
    return Conversation(sampler, config, seed=options.seed, system=system)
