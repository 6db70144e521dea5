"""The models of lm-evaluation-harness, nine of them dLLM 0.1's: a table of samplers, likelihoods and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dllm.configs import check_name
from dllm.core.samplers import (
    BaseSampler,
    BD3LMSampler,
    DiffusionGemmaSampler,
    DreamSampler,
    FastDLLMSampler,
    LLaDA2Sampler,
    MDLMSampler,
    NemotronDiffusionSampler,
    RND1Sampler,
)
from dllm.core.samplers.diffusion_gemma_config import DiffusionGemmaSamplerConfig
from dllm.core.samplers.fast_dllm_dream import FastdLLMDreamSampler


@dataclass(frozen=True, slots=True)
class EvalModel:
    """How the models of a family are evaluated.

    Attributes:
        name: under which lm-evaluation-harness knows it (`--model`).
        sampler: generates the answers.
        defaults: of the settings, where they differ from those of the argument classes; dLLM 0.1's.
        form: of the likelihood (:class:`dllm.core.likelihood.LikelihoodConfig`).
        by_blocks: whether the models attend by blocks. Their likelihood needs the size of a block from the model's
            configuration. (dLLM 0.1 has none for them.)
        aliases: {second name of a setting: first name}.
        no_likelihood: why texts have no likelihood under these models, so that only tasks that generate can be run;
            empty if they have one.
    """

    name: str
    sampler: type[BaseSampler] | type[DiffusionGemmaSampler]
    defaults: Mapping[str, Any]
    form: str = "llada"
    by_blocks: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict)
    no_likelihood: str = ""


# names of every model: those of 0.1 and of its evaluation scripts
ALIASES = {"pretrained": "model_name_or_path", "cfg": "cfg_scale", "is_check_greedy": "check_greedy"}


def _of_tokens(number: int, block: int | None = None) -> dict[str, Any]:
    """The defaults for answers of so many tokens, one step each."""
    return dict(max_new_tokens=number, steps=number, block_size=block or number)


_LLADA = dict(max_length=4096, batch_size=32) | _of_tokens(1024)
_A2D = dict(max_length=2048, batch_size=32)
_DREAM = dict(
    max_length=4096,
    batch_size=1,
    max_new_tokens=128,
    steps=128,
    temperature=0.0,
    top_p=None,
    top_k=None,
    alg="entropy",
    too_long="cut",
)

MODELS: dict[str, EvalModel] = {
    model.name: model
    for model in (
        EvalModel("llada", MDLMSampler, _LLADA),
        EvalModel("bert", MDLMSampler, dict(max_length=4096, batch_size=32) | _of_tokens(128)),
        EvalModel("dream", DreamSampler, _DREAM, form="dream"),
        EvalModel("a2d_mdlm", MDLMSampler, _A2D | _of_tokens(128)),
        EvalModel("a2d_bd3lm", BD3LMSampler, _A2D | _of_tokens(128, 32), by_blocks=True),
        EvalModel(
            "fastdllm_llada",
            FastDLLMSampler,
            _LLADA | dict(cache=None, threshold=None, factor=None),
            aliases={"use_cache": "cache"},
        ),
        EvalModel("fastdllm_dream", FastdLLMDreamSampler, _DREAM | dict(block_size=32), form="dream"),
        EvalModel(
            "llada2",
            LLaDA2Sampler,
            dict(max_length=4096, batch_size=32, max_new_tokens=1024, cache=True, tempered=True),
            by_blocks=True,
            aliases={"steps_per_block": "steps", "eos_early_stop": "stop_at_eos"},
        ),
        EvalModel("rnd1", RND1Sampler, dict(max_length=4096, batch_size=32, max_new_tokens=256, steps=256)),
        EvalModel(
            "diffusiongemma",
            DiffusionGemmaSampler,
            dict(max_length=8192, batch_size=8),  # the others are those of the model's generation_config
            aliases=DiffusionGemmaSamplerConfig.other_names,
            no_likelihood="it denoises canvases of random tokens, and its training bounds no likelihood of a text",
        ),
        EvalModel(
            "nemotron_diffusion",
            NemotronDiffusionSampler,
            dict(max_length=16384, batch_size=8, max_new_tokens=1024, block_size=32, steps=32),
            aliases={"block_length": "block_size"},
            no_likelihood="a text is read causally and its blocks are not, and no likelihood of the two is built here",
        ),
    )
}

# the model for a checkpoint, by the name of its family (dllm.models.families)
BY_FAMILY = {
    "bert": "bert",
    "llada": "llada",
    "llada_moe": "llada",
    "llada2": "llada2",
    "dream": "dream",
    "rnd1": "rnd1",
    "a2d": "a2d_mdlm",
    "a2d-llama": "a2d_mdlm",
    "diffusion_gemma": "diffusiongemma",
    "nemotron_diffusion": "nemotron_diffusion",
}


def model_named(name: str) -> EvalModel:
    """The model of that name.

    Raises:
        ValueError: there is none; the message has the nearest name.

    Example:
        >>> model_named("dream").defaults["alg"]
        'entropy'
    """
    check_name("the evaluation", name, MODELS)
    return MODELS[name]


def name_for(source: str) -> str:
    """The name of the model that evaluates the checkpoint in a folder or at a name on the Hub.

    A checkpoint without a family, such as a causal model that was trained by diffusion here, is evaluated as
    `a2d_mdlm`, and one of A2D that attends by blocks as `a2d_bd3lm`.

    Raises:
        OSError: the folder or the name does not exist.
        ValueError: its configuration cannot be read.

    Example:
        >>> from dllm.demo.shipped import SHIPPED
        >>> name_for(str(SHIPPED))
        'bert'
    """
    from dllm.fast.model import MARKER
    from dllm.models.families import family_in
    from dllm.models.sources import config_at

    config = config_at(source)
    family = family_in(config)
    name = BY_FAMILY.get(family.name) if family is not None else "a2d_mdlm"
    by_block = (config.get(MARKER) or {}).get("block_size") is not None
    return "a2d_bd3lm" if name == "a2d_mdlm" and by_block else name
