"""The settings of the harness's models: the defaults of dLLM 0.1, names, second names, and what is refused."""

from __future__ import annotations

import pytest

from dllm.core.eval import MODEL_CLASSES, model_classes
from dllm.core.eval.config import read_settings
from dllm.core.eval.gen_kwargs import generation_settings
from dllm.core.eval.models import MODELS, model_named, name_for
from dllm.core.likelihood import LikelihoodConfig
from tests.families.toys import CHECKPOINTS

# of dLLM 0.1: max_length, rows, new tokens, steps, block
PUBLISHED = {
    "llada": (4096, 32, 1024, 1024, 1024),
    "bert": (4096, 32, 128, 128, 128),
    "a2d_mdlm": (2048, 32, 128, 128, 128),
    "a2d_bd3lm": (2048, 32, 128, 128, 32),
    "fastdllm_llada": (4096, 32, 1024, 1024, 1024),
    "dream": (4096, 1, 128, 128, None),
    "fastdllm_dream": (4096, 1, 128, 128, 32),
}


def settings_of(name, **given):
    return read_settings(model_named(name), {"pretrained": "some/model"} | given)


@pytest.mark.parametrize("name", PUBLISHED)
def test_defaults(name):
    found = settings_of(name)
    own = found.eval.max_length, found.eval.batch_size
    sampler = found.sampler
    assert (*own, sampler.max_new_tokens, sampler.steps, sampler.block_size) == PUBLISHED[name]
    assert sampler.temperature == 0
    if "dream" in name:
        assert (sampler.alg, sampler.top_p, sampler.top_k) == ("entropy", None, None)
        assert (found.likelihood.form, found.likelihood.sampling_eps) == ("dream", 1e-3)
    assert settings_of(name, likelihood="as-published").likelihood.mc_num == 128
    assert found.likelihood.mc_num == 64 and not found.eval.check_greedy


def test_every_name_has_a_model():
    assert set(MODEL_CLASSES) == set(MODELS)
    assert {name: getattr(model_classes, kind).table.name for name, kind in MODEL_CLASSES.items()} == {
        n: n for n in MODELS
    }


@pytest.mark.parametrize(
    "checkpoint, name",
    {"llada": "llada", "lladamoe": "llada", "dream": "dream", "rnd1": "rnd1", "a2d-qwen3": "a2d_mdlm",
     "llada2": "llada2"}.items(),
)  # fmt: skip
def test_the_model_of_a_checkpoint(checkpoint, name):
    assert name_for(str(CHECKPOINTS / checkpoint)) == name


def test_names_and_texts():
    """As lm-evaluation-harness passes them."""
    found = settings_of(
        "llada", cfg=0.5, mc_num="64", is_check_greedy="True", suppress_tokens="[126081;126348]",
        begin_suppress_tokens="[]", steps="256", dtype="float32", attn_implementation="eager", temperature=1,
    )  # fmt: skip
    assert found.sampler.cfg_scale == found.likelihood.cfg_scale == 0.5
    assert (found.likelihood.mc_num, found.eval.check_greedy) == (64, True)
    assert (found.sampler.suppress_tokens, found.sampler.begin_suppress_tokens) == ([126081, 126348], [])
    assert (found.sampler.steps, found.sampler.temperature) == (256, 1.0)
    assert (found.model.dtype, found.model.attn_implementation) == ("float32", "eager")
    assert settings_of("llada2", steps_per_block=8, eos_early_stop=True).sampler.steps == 8
    assert settings_of("fastdllm_llada", use_cache="prefix", threshold=0.9).sampler.cache == "prefix"
    assert settings_of("fastdllm_llada", remasking="random").sampler.remasking == "random"
    filtered = settings_of("llada2", top_k="7", top_p=0.9, minimal_topk=4).sampler
    assert (filtered.top_k, filtered.top_p, filtered.minimal_topk, filtered.tempered) == (7, 0.9, 4, True)
    assert settings_of("dream", nll_type="ar_btf").likelihood.likelihood == "ar_btf"
    assert settings_of("fastdllm_dream", use_cache="dual").sampler.use_cache == "dual"
    assert settings_of("llada", pretrained=7).model.model_name_or_path == "7"


def test_the_published_batch():
    """It decides what the published estimate draws, and nothing else."""
    published = settings_of("llada", likelihood="as-published", batch_size=8)
    assert published.likelihood.batch_size == 8
    assert settings_of("llada", batch_size=8).likelihood == LikelihoodConfig(mc_num=64)
    with pytest.raises(ValueError, match="mc_num must be a multiple of batch_size"):
        settings_of("llada", likelihood="as-published", batch_size=3)


@pytest.mark.parametrize(
    "name, given, message",
    [
        ("llada", dict(max_new_token=3), "llada knows no 'max_new_token': did you mean 'max_new_tokens'"),
        ("llada", dict(use_cache="dual"), "llada knows no 'use_cache'"),
        ("llada", dict(cfg=1, cfg_scale=1), "cfg_scale must be given once"),
        ("llada", dict(steps="many"), "steps must be int, got 'many'"),
        ("llada", dict(steps=0), "steps must be at least 1"),
        ("llada", dict(batch_size="auto"), "batch_size must be int"),
        ("llada", dict(likelihood="exactly"), "likelihood must be one of exact, as-published"),
        ("dream", dict(nll_type="ar"), "nll_type must be one of mc, ar_ftb, ar_btf, got 'ar'"),
        ("dream", dict(nll_type="ar_ftb", likelihood="exact"), "likelihood must not be given beside nll_type"),
        ("dream", dict(log_type="union"), "log_type must be ftb: what 0.1 computes as btf and union is not documented"),
        ("fastdllm_llada", dict(remasking="random", threshold=0.9), "remasking must be low_confidence beside"),
        ("bert", dict(too_long="drop"), "too_long must be one of error, cut"),
        ("bert", dict(pretrained=""), "must name a folder or a model"),
    ],
)
def test_what_is_refused(name, given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        settings_of(name, **given)


def test_the_settings_of_a_task():
    """The user's go over the task's, the task's over the defaults."""
    task = {"until": "Q:", "max_gen_toks": 64, "do_sample": True, "temperature": 0.5, "num_beams": 1}
    assert generation_settings(task, settings_of("llada")) == (
        ("Q:",),
        {"max_new_tokens": 64, "block_size": 64, "temperature": 0.5},
    )
    given = settings_of("llada", max_new_tokens=32, block_size=8, temperature=0.0)
    assert generation_settings(task, given) == (("Q:",), {})
    steps = settings_of("llada", steps=16, block_size=32)
    assert generation_settings(task, steps).overrides == {"max_new_tokens": 64, "temperature": 0.5, "steps": 16}
    assert generation_settings({"until": []}, settings_of("llada")) == ((), {})
    greedy = {"until": [], "do_sample": False, "temperature": 0.7, "top_p": 0.9}
    assert generation_settings(greedy, settings_of("llada")).overrides == {"temperature": 0.0}
    assert generation_settings(greedy, settings_of("dream")).overrides == {"temperature": 0.0, "top_p": 0.9}


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({}, "must have until"),
        ({"until": ["a", ""]}, "a stop string must have at least one character"),
        ({"until": 3}, "until must be a list of stop strings"),
        ({"until": [], "max_gen_tok": 3}, "generation_kwargs knows no 'max_gen_tok': did you mean 'max_gen_toks'"),
        ({"until": [], "num_beams": 4}, "num_beams must be 1"),
        ({"until": [], "max_gen_toks": 3, "max_new_tokens": 4}, "must be given once"),
    ],
)
def test_what_is_refused_of_a_task(kwargs, message):
    with pytest.raises((TypeError, ValueError), match=message):
        generation_settings(kwargs, settings_of("llada"))
