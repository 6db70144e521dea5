"""From a task's generation settings (`generation_kwargs`, `--gen_kwargs`) to stop strings and settings of the sampler.

What the user gives for the model (`model_args`) goes over a task's settings, and these go over the defaults. So the
published runs, which ignored the tasks' settings, are repeated by giving theirs for the model.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from dllm.configs import check_name
from dllm.core.eval.config import EvalSettings

# what other models of lm-evaluation-harness call the number of new tokens
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_OTHERS = ("until", "do_sample", "num_beams")
# settings of sampling that some samplers do not have; without sampling they have no effect
_FILTERS = ("top_p", "top_k")

_log = logging.getLogger("dllm.eval")
_warned: set[str] = set()


class GenerationSettings(NamedTuple):
    """Stop strings, and settings of the sampler by name."""

    until: tuple[str, ...]
    overrides: dict[str, Any]


def generation_settings(kwargs: Mapping[str, Any], settings: EvalSettings) -> GenerationSettings:
    """The stop strings and the sampler's settings for a request.

    Args:
        kwargs: of the request: `until`, a stop string or a list of them, which may be empty; `max_gen_toks` or one of
            its other names; `do_sample`, False of which means temperature 0; and settings of the sampler. A
            temperature has no effect where the sampler has none, which is logged.
        settings: of the evaluation.

    Raises:
        TypeError, ValueError: no `until`, an empty stop string, an unknown name (the message has the nearest), or a
            value that breaks a rule.

    Example:
        >>> from dllm.core.eval.config import read_settings
        >>> from dllm.core.eval.models import model_named
        >>> settings = read_settings(model_named("llada"), {"pretrained": "some/model"})
        >>> generation_settings({"until": ["Q:"], "max_gen_toks": 64, "do_sample": False}, settings)
        GenerationSettings(until=('Q:',), overrides={'max_new_tokens': 64, 'block_size': 64, 'temperature': 0.0})
    """
    fields = {field.name for field in dataclasses.fields(settings.sampler)}
    for name in kwargs:
        check_name("generation_kwargs", name, sorted({*fields, *_LENGTHS, *_OTHERS, *_FILTERS, "temperature"}))
    if kwargs.get("num_beams", 1) != 1:
        raise ValueError(f"num_beams must be 1 for a diffusion model, got {kwargs['num_beams']}")
    values = {name: value for name, value in kwargs.items() if name in fields}
    lengths = {kwargs[name] for name in _LENGTHS if kwargs.get(name) is not None}
    if len(lengths) > 1:
        raise ValueError(f"the number of new tokens must be given once, got {sorted(lengths)}")
    for length in lengths:
        values["max_new_tokens"] = length
    sampled = kwargs.get("do_sample")
    if sampled is not None and not isinstance(sampled, bool):
        raise TypeError(f"do_sample must be True or False, got {sampled!r}")
    has_temperature = "temperature" in fields
    if sampled is False and has_temperature:
        values["temperature"] = 0.0
    _warn_of_missing_filters(kwargs, values, fields, settings)
    overrides = {name: value for name, value in values.items() if name not in settings.given}
    length = overrides.get("max_new_tokens")
    if length is not None:
        given = settings.given
        if "steps" in given:
            overrides["steps"] = settings.sampler.steps
        block = getattr(settings.sampler, "block_size", None)
        one_block = block == settings.sampler.max_new_tokens
        if one_block and not {"block_size", "max_new_tokens"} & given and "block_size" not in overrides:
            overrides["block_size"] = length
    if (
        sampled
        and has_temperature
        and overrides.get("temperature", settings.sampler.temperature) == 0
        and "do_sample" not in _warned
    ):
        _warned.add("do_sample")
        _log.warning("do_sample=True of the task has no effect at temperature 0: repeated answers will be equal")
    order = {"max_new_tokens": 0, "block_size": 1}
    overrides = dict(sorted(overrides.items(), key=lambda item: order.get(item[0], 2)))
    return GenerationSettings(_stop_strings(kwargs), overrides)


def _stop_strings(kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    until = kwargs.get("until")
    if until is None:
        raise ValueError("generation_kwargs must have until, a list of stop strings ([] for none); got none")
    until = [until] if isinstance(until, str) else until
    if not isinstance(until, (list, tuple)) or not all(isinstance(stop, str) for stop in until):
        raise TypeError(f"until must be a list of stop strings, got {until!r}")
    if "" in until:
        raise ValueError("a stop string must have at least one character, got an empty one")
    return tuple(until)


def _warn_of_missing_filters(
    kwargs: Mapping[str, Any], values: Mapping[str, Any], fields: set[str], settings: EvalSettings
) -> None:
    """Say once which of a task's settings the sampler does not have, if tokens are drawn at all."""
    neutral = dict.fromkeys(_FILTERS, (None, 1, 1.0, 0)) | {"temperature": (None,)}
    temperature = values.get("temperature", getattr(settings.sampler, "temperature", 1.0))
    drawn = isinstance(temperature, (int, float)) and temperature > 0  # else its own check will say so
    for name, nothing in neutral.items():
        asked = kwargs.get(name) not in nothing
        if asked and drawn and name not in fields and name not in _warned:
            _warned.add(name)
            _log.warning("%s of the task has no effect: %s has no such setting", name, type(settings.sampler).__name__)
