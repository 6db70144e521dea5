"""The two programs of a case: the loop that a sampler's authors publish, and dllm's sampler with the same settings."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

from torch import Tensor, nn

from benchmarks import card_loop
from benchmarks.baselines import dream, fast_dllm, llada, mdlm, parallel
from benchmarks.card_loop import Noise
from benchmarks.case import Case
from benchmarks.models import Loaded
from dllm.core.samplers import BaseSampler
from dllm.demo.samplers import NAMES, SAMPLERS, steps_of

COMPARED = tuple(name for name in NAMES if name != "bd3lm")  # that of BD3LM: `cached_decoding` measures it


def authors_loop(
    model: nn.Module | Callable[..., object],
    prompt: Tensor,
    case: Case,
    loaded: Loaded,
    *,
    steps: int | None = None,
    noise: Noise | None = None,
    mark: Callable[[str], None] = lambda part: None,
) -> Tensor:
    """Complete `prompt` [B, P] with the loop that the authors of the case's sampler publish, [B, P + G].

    Args:
        model: the loaded model, or a callable in its place.
        steps: replaces the case's number; has no effect on samplers without one.
        noise, mark: as in :mod:`benchmarks.baselines`.
    """
    shared = {"mask_id": loaded.mask_id, "temperature": case.temperature, "cfg_scale": case.cfg_scale}
    shared |= {"noise": noise, "mark": mark}
    length, blocks = {"max_new_tokens": case.gen_length}, {"block_length": case.block_length}
    counted = {"steps": steps or case.steps}
    if case.sampler == "generate":
        length = {"gen_length": case.gen_length}
        return card_loop.generate(model, prompt, remasking=case.remasking, **length, **blocks, **counted, **shared)
    if case.sampler == "mdlm":
        shared |= {"eos_id": loaded.eos_id or 0, "block_size": case.block_length, "remasking": case.remasking}
        return mdlm.sample(model, list(prompt), **length, **counted, **shared)
    if case.sampler.startswith("dream-"):
        alg = SAMPLERS[case.sampler].settings["alg"]
        return dream.diffusion_generate(model, prompt, alg=alg, **case.options, **length, **counted, **shared)
    shared |= blocks | {"gen_length": case.gen_length}
    if case.sampler == "llada":
        return llada.generate(model, prompt, remasking=case.remasking, **counted, **shared)
    if case.sampler.startswith("fast-dllm-"):
        cache = SAMPLERS[case.sampler].settings["cache"]
        return fast_dllm.generate(model, prompt, cache=cache, rule=_rule(case, steps), **shared)
    return parallel.generate(model, prompt, rule=_rule(case, steps), **shared)


def _rule(case: Case, steps: int | None) -> parallel.Rule:
    """The rule that says how many tokens a step of the case's sampler commits."""
    options = dict(case.options)
    if case.sampler == "llada2":
        options |= {"steps": (steps or case.steps) // case.blocks, "block_length": case.block_length}
    rules = {"llada2": parallel.llada2, "entropy-bound": parallel.entropy_bound}
    rule = parallel.factor if "factor" in options else parallel.threshold
    return rules.get(case.sampler, rule)(**options)


def our_sampler(case: Case, loaded: Loaded) -> BaseSampler:
    """The case's sampler of `dllm.core.samplers` around the loaded model."""
    tokenizer = SimpleNamespace(mask_token_id=loaded.mask_id, eos_token_id=loaded.eos_id)
    return SAMPLERS[case.sampler].sampler(loaded.model, tokenizer)


def our_settings(case: Case, steps: int | None = None) -> dict[str, object]:
    """The settings with which that sampler does the same as :func:`authors_loop`."""
    settings = {**SAMPLERS[case.sampler].settings, **case.options, "seed": case.seed}
    settings |= {"max_new_tokens": case.gen_length, "block_size": case.block_length}
    settings |= {"temperature": case.temperature, "cfg_scale": case.cfg_scale}
    if case.remasking is not None:
        settings["remasking"] = case.remasking
    if case.sampler.startswith("dream-"):
        settings["right_shift_logits"] = True  # as its authors run it, also with weights that were not trained so
    if case.steps is not None:
        steps = steps or case.steps
        settings["steps"] = steps if steps_of(case.sampler) == "all" else steps // case.blocks
    return settings
