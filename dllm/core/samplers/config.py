"""BaseSamplerConfig, the settings that all samplers share, and checks of single settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from dllm_kernels import _checks

Config = TypeVar("Config", bound="BaseSamplerConfig")
Settings = TypeVar("Settings")


@dataclass
class BaseSamplerConfig:
    """Settings of every sampler. The seed is an argument of the call instead, as each row may have its own.

    return_dict: return a :class:`BaseSamplerOutput` with histories and stats instead of the canvases alone.
    max_new_tokens: tokens to generate; None: as many as `max_length` leaves after a row's prompt.
    max_length: prompt and generated tokens of a row together; used if `max_new_tokens` is None.
    block_size: tokens of a block; blocks are filled from left to right and begin at the end of each row's own prompt.
        None: all tokens are one block.
    temperature: T of the proposals, one number or a list of one for each row; 0 takes the most probable token.
    cfg_scale: classifier-free guidance u + (cfg_scale + 1) (c - u), where u are the logits with the given tokens
        masked; 0 is off.
    cfg_keep_tokens: given tokens that guidance does not mask.
    suppress_tokens: never proposed.
    begin_suppress_tokens: proposed with the lowest confidence, so committed last.
    right_shift_logits: the logits of a position are those of the one before it (Dream, RND1); the first position reads
        its own. None: what the model's configuration says (`masked_diffusion`, :func:`dllm.models.get_model`), and
        the sampler's own default if it says nothing: True for those of Dream and RND1, False for others.
    stop_at_eos: a row is finished once its generated part holds the tokenizer's EOS, or its end of turn
        (`eot_token_id`) if it has one, and no mask before it; the rest of the row becomes EOS.
    impl: kernels: "auto", "reference", "triton" or "cpu"; an explicit one never falls back.
    cuda_graph: steps as CUDA graphs: None where possible and worthwhile, True required, False never.
    compile_body: the model's body through torch.compile: None where that works and pays for the number of forwards,
        True required, False never.
    keep_histories: with `return_dict`, keep the canvas of every step; False returns the stats alone beside the
        sequences, without the cost of a look at every step.
    """

    return_dict: bool = False
    max_new_tokens: int | None = 128
    max_length: int | None = None
    block_size: int | None = 128
    temperature: float = 0.0  # or a list: HfArgumentParser reads no such union
    cfg_scale: float = 0.0
    cfg_keep_tokens: list[int] | None = None
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    right_shift_logits: bool | None = None
    stop_at_eos: bool = False
    impl: str = "auto"
    cuda_graph: bool | None = None
    compile_body: bool | None = None
    keep_histories: bool = True

    steps_of: ClassVar[str] = "row"  # or "block": what the setting `steps` counts, where there is one

    def with_length(self: Config, max_new_tokens: int) -> Config:
        """These settings for another number of new tokens: `steps` follows, so that a step commits as many as before.

        Blocks keep their size. Where there are at least as many steps as tokens, a step commits one token afterwards.
        Nothing else follows where `steps` counts the steps of a block (`steps_of`), or where there is no such setting.

        Example:
            >>> from dllm.core.samplers import LLaDASamplerConfig
            >>> LLaDASamplerConfig(max_new_tokens=256, steps=128, block_size=32).with_length(100).steps  # 4 blocks
            64
        """
        changed = {"max_new_tokens": at_least(1, "max_new_tokens", max_new_tokens)}
        if self.steps_of == "row" and hasattr(self, "steps") and max_new_tokens != self.max_new_tokens:
            width = min(self.block_size or max_new_tokens, max_new_tokens)
            per_block = width
            if self.max_new_tokens is not None and self.steps < self.max_new_tokens:
                per_block = -(-width * self.steps // self.max_new_tokens)
            changed["steps"] = per_block * -(-max_new_tokens // width)
        return dataclasses.replace(self, **changed)

    def check(self) -> None:
        """Check the settings, before anything runs.

        Raises:
            TypeError, ValueError: a setting breaks a rule.
        """
        for name in ("max_new_tokens", "max_length", "block_size"):
            if getattr(self, name) is not None:
                at_least(1, name, getattr(self, name))
        for temperature in self.temperature if isinstance(self.temperature, (list, tuple)) else [self.temperature]:
            _checks.finite_at_least_zero("temperature", temperature)
        _checks.finite_at_least_zero("cfg_scale", self.cfg_scale)
        for name in ("return_dict", "keep_histories", "stop_at_eos"):
            true_or_false(name, getattr(self, name))
        for name in ("right_shift_logits", "compile_body"):
            if getattr(self, name) is not None:
                true_or_false(name, getattr(self, name))


def settings_of(kind: type[Settings], config: Settings | None, overrides: Mapping[str, Any]) -> Settings:
    """The settings of a call, checked.

    Args:
        kind: the sampler's dataclass of settings.
        config: an object of it; its defaults if None.
        overrides: settings by name, which replace those of `config`.

    Raises:
        TypeError, ValueError: a setting is unknown or breaks a rule.
    """
    if config is None:
        config = kind()
    if not isinstance(config, kind):
        raise TypeError(f"config must be a {kind.__name__}, got {type(config).__name__}")
    unknown = [name for name in overrides if name not in {field.name for field in dataclasses.fields(config)}]
    if unknown:
        raise TypeError(f"{type(config).__name__} has no setting {', '.join(unknown)}")
    config = dataclasses.replace(config, **overrides)
    config.check()
    return config


def at_least(least: int, name: str, value: object) -> int:
    """Check that a setting is an integer of at least `least`, and return it.

    Raises:
        TypeError, ValueError: it is not.
    """
    value = _checks.int64(name, value)
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value


def check_threshold_and_factor(threshold: float | None, factor: float | None) -> None:
    """Check the threshold and the factor of samplers that commit by probability; None where one is not given.

    Raises:
        TypeError, ValueError: the threshold is not a number of at least 0, or the factor not one above 0.
    """
    if threshold is not None:
        _checks.finite_at_least_zero("threshold", threshold)
    if factor is not None and not _checks.finite_at_least_zero("factor", factor) > 0:
        raise ValueError(f"factor must be above 0, got {factor}")


def check_filters(top_k: int | None, top_p: float | None) -> None:
    """Check the filters of proposals; None where one is off.

    Raises:
        TypeError, ValueError: top_k is not an integer of at least 1, or top_p not a number in (0, 1].
    """
    if top_k is not None:
        at_least(1, "top_k", top_k)
    if top_p is not None and not 0 < _checks.number("top_p", top_p) <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}")


def check_callable(**calls: object) -> None:
    """Check that callbacks, by name, are callable; None where one is not given.

    Raises:
        TypeError: one is not.
    """
    for name, call in calls.items():
        if call is not None and not callable(call):
            raise TypeError(f"{name} must be callable, got {type(call).__name__}")


def true_or_false(name: str, value: object) -> None:
    """Check that a setting is True or False.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def one_of(choices: Sequence[str], name: str, value: object) -> None:
    """Check that a setting is one of some words.

    Raises:
        ValueError: it is none of them.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
