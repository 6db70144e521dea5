"""Samplers by name, for the gauge and the benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from dllm.core.samplers import (
    BaseSampler,
    BD3LMSampler,
    DreamSampler,
    EntropyBoundSampler,
    FastDLLMSampler,
    LLaDA2Sampler,
    LLaDASampler,
    MDLMSampler,
    ThresholdSampler,
)
from dllm.demo.answer import decode, encode
from dllm.fast import Stats

GENERATE = MappingProxyType({"remasking": "low_confidence"})  # options of dllm.fast.generate


@dataclass(frozen=True, slots=True)
class NamedSampler:
    """A sampler class with fixed settings.

    sampler: the class.
    settings: the fixed settings of its config.
    options: the settings that a caller may choose, with their defaults.
    steps: see :func:`steps_of`.
    """

    sampler: type[BaseSampler]
    settings: Mapping[str, object]
    options: Mapping[str, object]
    steps: str | None = "all"


def _dream(alg: str, **options: object) -> NamedSampler:
    options |= {"top_p": None, "top_k": None}
    return NamedSampler(DreamSampler, {"alg": alg, "schedule": "time", "right_shift_logits": False}, options)


def _fast_dllm(cache: str, **rule: float) -> NamedSampler:
    return NamedSampler(FastDLLMSampler, {"cache": cache, "threshold": None}, rule, steps=None)


SAMPLERS: Mapping[str, NamedSampler] = MappingProxyType(
    {
        "mdlm": NamedSampler(MDLMSampler, {}, {"remasking": "low_confidence"}),
        "bd3lm": NamedSampler(BD3LMSampler, {"cache": True}, {"remasking": "low_confidence"}),
        "llada": NamedSampler(LLaDASampler, {}, {"remasking": "low_confidence"}),
        "dream-origin": _dream("origin"),
        "dream-maskgit_plus": _dream("maskgit_plus", alg_temp=0.0),
        "dream-topk_margin": _dream("topk_margin", alg_temp=0.0),
        "dream-entropy": _dream("entropy", alg_temp=0.0),
        "threshold": NamedSampler(ThresholdSampler, {}, {"threshold": 0.9}, steps=None),
        "factor": NamedSampler(ThresholdSampler, {"threshold": None}, {"factor": 1.0}, steps=None),
        "fast-dllm-prefix": _fast_dllm("prefix", threshold=0.9),
        "fast-dllm-dual": _fast_dllm("dual", threshold=0.9),
        "fast-dllm-dual-factor": _fast_dllm("dual", factor=1.0),
        "llada2": NamedSampler(LLaDA2Sampler, {"blocks_from": "prompt"}, {"threshold": 0.95}, steps="block"),
        "entropy-bound": NamedSampler(EntropyBoundSampler, {}, {"gamma": 0.1}, steps=None),
    }
)
NAMES = ("generate", *SAMPLERS)
RULES = ("threshold", "factor", "gamma")  # options that decide how many tokens a step commits
OPTIONS = tuple(sorted({option for named in SAMPLERS.values() for option in named.options}))


def is_approximate(name: str) -> bool:
    """Whether the sampler called `name` is approximate: faster, with other tokens than one token per step gives."""
    return name in SAMPLERS and SAMPLERS[name].sampler.approximate


def keeps_cache(name: str) -> bool:
    """Whether the sampler called `name` uses a KV cache, and so needs a causal architecture made bidirectional.

    Example:
        >>> keeps_cache("fast-dllm-dual"), keeps_cache("threshold")
        (True, False)
    """
    return name in SAMPLERS and "cache" in SAMPLERS[name].settings


def title(name: str) -> str:
    """A sampler's name in tables; approximate ones are marked.

    Example:
        >>> title("mdlm"), title("threshold")
        ('mdlm', 'threshold (approximate)')
    """
    return f"{name} (approximate)" if is_approximate(name) else name


def steps_of(name: str) -> str | None:
    """What the setting `steps` counts: the steps of "all" blocks or of each "block"; None where there is none."""
    return SAMPLERS[name].steps if name in SAMPLERS else "all"


def options_of(name: str, **chosen: object) -> dict[str, object]:
    """All options of the sampler called `name`: those chosen, and the defaults of the others.

    Raises:
        TypeError: the sampler has no such option.

    Example:
        >>> options_of("factor"), options_of("mdlm", remasking="random")
        ({'factor': 1.0}, {'remasking': 'random'})
    """
    options = SAMPLERS[name].options if name in SAMPLERS else GENERATE
    if unknown := chosen.keys() - options.keys():
        raise TypeError(f"{name} has no option {', '.join(sorted(unknown))}, only {', '.join(options)}")
    return {**options, **chosen}


def answer_with(
    name: str,
    model: nn.Module,
    tokenizer: object,
    questions: Sequence[str],
    *,
    gen_length: int = 64,
    **settings: object,
) -> tuple[list[str], Stats]:
    """Answer questions in one batch with the sampler called `name`; returns the B answers and the call's statistics.

    Args:
        model: a masked language model.
        tokenizer: its tokenizer, with a chat template, a mask token and an EOS, which ends an answer.
        questions: B texts.
        gen_length: tokens to generate.
        **settings: of the sampler's config; they override the fixed settings.

    Raises:
        TypeError, ValueError: no such sampler, or a setting breaks one of its rules; raised before the model runs.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> replies, stats = answer_with("threshold", *load_shipped(), ["What is 6 * 7?"])
        >>> replies, stats.forwards < 7
        (['6 * 7 = 42.'], True)
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {name!r}")
    named = SAMPLERS[name]
    sampler = named.sampler(model, tokenizer)
    padded, kept = encode(tokenizer, questions)
    prompts = [row[real == 1] for row, real in zip(padded, kept, strict=True)]
    settings = {**named.settings, **named.options, **settings}
    output = sampler.sample(prompts, max_new_tokens=gen_length, stop_at_eos=True, return_dict=True, **settings)
    columns = output.sequences.shape[1]
    ends = [columns if sampler.pads_left else len(prompt) + gen_length for prompt in prompts]
    rows = zip(output.sequences.tolist(), ends, strict=True)
    return [decode(tokenizer, row[end - gen_length : end]) for row, end in rows], output.stats
