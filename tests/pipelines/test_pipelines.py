"""The names that scripts of dLLM 0.1 import from its pipelines: what is here, what is not, fields and defaults."""

from __future__ import annotations

import importlib

import pytest
import torch
import transformers

import dllm
from tests.causal_models import causal_model
from tests.families.toys import CHECKPOINTS, config_of
from tests.models import MASK_ID

HERE = {
    "a2d": "A2DLlamaConfig A2DLlamaLMHeadModel A2DQwen2Config A2DQwen2LMHeadModel A2DQwen3Config A2DQwen3LMHeadModel",
    "bert": "",
    "llada": "LLaDAConfig LLaDAMoEConfig LLaDAModelLM LLaDAMoEModelLM",
    "dream": "DreamConfig DreamModel DreamTokenizer DreamSampler DreamSamplerConfig DreamTrainer utils",
    "editflow": "EditFlowSampler EditFlowSamplerConfig EditFlowTrainer utils EditFlowQwen2Config EditFlowQwen2Model "
    "EditFlowModernBertConfig EditFlowModernBertModel EditFlowDreamConfig EditFlowDreamModel EditFlowQwen3Config "
    "EditFlowQwen3Model EditFlowLLaDAConfig EditFlowLLaDAModel",
    "llada2": "LLaDA2MoeConfig LLaDA2MoeModelLM LLaDA2Sampler LLaDA2SamplerConfig",
    "llada21": "LLaDA2MoeConfig LLaDA2MoeModelLM LLaDA21Sampler LLaDA21SamplerConfig",
    "fastdllm.llada": "FastdLLMLLaDAConfig FastdLLMLLaDASampler FastdLLMLLaDASamplerConfig",
    "fastdllm.dream": "FastdLLMDreamConfig FastdLLMDreamSampler FastdLLMDreamSamplerConfig",
    "rl": "get_dataset_and_rewards SUPPORTED_DATASETS",
    "rnd1": "RND1Sampler RND1SamplerConfig",
}
# the settings that 0.1's samplers have under another name or with another default than ours
DEFAULTS = {
    "llada2 LLaDA2": dict(max_new_tokens=128, block_size=32, steps=32, temperature=0.0, threshold=0.95, minimal_topk=1),
    "llada21 LLaDA21": dict(block_size=32, threshold=0.95, edit_threshold=0.9, edit_steps=16, num_to_transfer=1),
    "fastdllm.llada FastdLLMLLaDA": dict(block_size=128, steps=128, use_cache=None, threshold=None, factor=None),
    "fastdllm.dream FastdLLMDream": dict(
        max_new_tokens=20, steps=512, alg="origin", temperature=1.0, top_k=50, block_size=32, use_cache=None
    ),
    "editflow EditFlow": dict(mask_length=128, tau=0.01, time_epsilon=1e-3, edit_prompt=False),
    "dream Dream": dict(max_new_tokens=20, steps=512, eps=1e-3, alg="origin", alg_temp=0.0, top_p=1.0, top_k=50),
}


def place(name: str):
    return importlib.import_module(f"dllm.pipelines.{name}")


@pytest.mark.parametrize("family", HERE)
def test_names(family):
    module = place(family)
    assert set(HERE[family].split()) <= set(module.__all__) and all(hasattr(module, name) for name in module.__all__)
    assert dllm.pipelines.__name__ == "dllm.pipelines"


@pytest.mark.parametrize("which", DEFAULTS)
def test_defaults(which):
    family, name = which.split()
    config = getattr(place(family), f"{name}SamplerConfig")()
    assert {field: getattr(config, field) for field in DEFAULTS[which]} == DEFAULTS[which]
    config.check()


NAMED = {
    "llada": ("llada", "LLaDAConfig", "LLaDAModelLM"),
    "lladamoe": ("llada", "LLaDAMoEConfig", "LLaDAMoEModelLM"),
    "dream": ("dream", "DreamConfig", "DreamModel"),
    "rnd1": ("rnd1", "RND1Config", "RND1LM"),
    "a2d-qwen3": ("a2d", "A2DQwen3Config", "A2DQwen3LMHeadModel"),
    "llada2": ("llada2", "LLaDA2MoeConfig", "LLaDA2MoeModelLM"),
}


@pytest.mark.parametrize("name", NAMED)
def test_official_checkpoints_by_their_names(name):
    folder = str(CHECKPOINTS / name)
    family, config, model = NAMED[name]
    config, model = getattr(place(family), config), getattr(place(family), model)
    mapped, loaded = config.from_pretrained(folder), model.from_pretrained(folder, torch_dtype=torch.float32).eval()
    ids = torch.arange(6)[None]
    with torch.no_grad():
        expected = dllm.utils.get_model(model_name_or_path=folder, config=mapped, dtype="float32").eval()(ids).logits
        assert torch.equal(loaded(ids).logits, expected)
    others = [getattr(place(there), kind) for there, _, kind in NAMED.values()]
    assert [kind for kind in [*others, place("a2d").A2DLlamaLMHeadModel] if isinstance(loaded, kind)] == [model]
    official = config(**config_of(name))
    for created in (model(mapped), model(official)):
        shapes = {n: w.shape for n, w in created.named_parameters()}
        assert shapes == {n: w.shape for n, w in loaded.named_parameters()}


def test_a_name_is_of_its_family():
    for call in (place("dream").DreamModel.from_pretrained, place("llada").LLaDAMoEConfig.from_pretrained):
        with pytest.raises(ValueError, match=r"must be a model of the family (dream|llada_moe), got llada"):
            call(str(CHECKPOINTS / "llada"))
    with pytest.raises(TypeError, match="foo"):
        place("dream").DreamModel.from_pretrained(str(CHECKPOINTS / "dream"), foo=1)
    with pytest.raises(ValueError, match="must be a model of the family rnd1, got Qwen3MoeConfig"):
        place("rnd1").RND1LM(transformers.Qwen3MoeConfig())


class Tokenizer:
    mask_token_id, eos_token_id, pad_token_id = MASK_ID, 40, 1


# prompts of unequal length, options of 0.1, and our own sampler with the same settings under its own names
SAME = {
    "llada2 LLaDA2Sampler": (
        dict(block_size=4, steps_per_block=4, threshold=0.4, eos_early_stop=True),
        "LLaDA2Sampler",
        dict(block_size=4, steps=4, threshold=0.4, stop_at_eos=True, cache=True),
    ),
    "llada2 LLaDA2Sampler minimal": (
        dict(block_size=4, minimal_topk=4),
        "LLaDA2Sampler",
        dict(block_size=4, steps=2, cache=True),
    ),
    "llada21 LLaDA21Sampler": (
        dict(block_size=4, threshold=0.4, editing_threshold=0.3, max_post_steps=3),
        "LLaDA21Sampler",
        dict(block_size=4, steps=4, threshold=0.4, edit_threshold=0.3, edit_steps=3, cache=True),
    ),
    "fastdllm.llada FastdLLMLLaDASampler": (
        dict(block_size=4, use_cache="prefix", threshold=0.5),
        "FastDLLMSampler",
        dict(block_size=4, cache="prefix", threshold=0.5),
    ),
    "fastdllm.llada FastdLLMLLaDASampler schedule": (
        dict(block_size=4, steps=4),
        "FastDLLMSampler",
        dict(block_size=4, steps=4, cache=None, threshold=None),
    ),
    "fastdllm.dream FastdLLMDreamSampler": (
        dict(block_size=4, steps=8, temperature=0.0, alg="entropy"),
        "DreamSampler",
        dict(block_size=4, steps=8, temperature=0.0, alg="entropy"),
    ),
    "fastdllm.dream FastdLLMDreamSampler dual": (
        dict(block_size=4, temperature=0.0, threshold=0.5, use_cache="dual", top_k=None),
        "FastDLLMSampler",
        dict(block_size=4, threshold=0.5, cache="dual", right_shift_logits=True),
    ),
}


@pytest.mark.parametrize("which", SAME)
def test_samplers_are_ours_by_other_names(which):
    family, name, *_ = which.split()
    given, ours, own = SAME[which]
    model, prompts, length = causal_model(), [[5, 6, 7], [8]], dict(max_new_tokens=8, return_dict=True)
    output = getattr(place(family), name)(model, Tokenizer()).sample(prompts, **length, **given)
    expected = getattr(dllm.core.samplers, ours)(model, Tokenizer()).sample(prompts, **length, **own)
    rows = [[row[row != 40].tolist() for row in found.sequences] for found in (output, expected)]
    assert rows[0] == rows[1] and output.stats.row_forwards == expected.stats.row_forwards


@pytest.mark.parametrize(
    "family, name, given, words",
    [
        ("llada2", "LLaDA2", dict(top_p=0.0), "top_p"),
        ("llada2", "LLaDA2", dict(steps_per_block=0), "steps must be at least 1"),
        ("llada21", "LLaDA21", dict(num_to_transfer=0), "num_to_transfer"),
        ("fastdllm.llada", "FastdLLMLLaDA", dict(use_cache="block"), "cache must be one of"),
        ("fastdllm.llada", "FastdLLMLLaDA", dict(remasking="random", factor=1.0), "remasking must be"),
        ("fastdllm.llada", "FastdLLMLLaDA", dict(stochastic_transfer=True), "stochastic_transfer"),
        ("fastdllm.dream", "FastdLLMDream", dict(use_cache="block"), "use_cache must be one of"),
        ("fastdllm.dream", "FastdLLMDream", dict(threshold=-1.0), "threshold"),
    ],
)
def test_bad_settings(family, name, given, words):
    sampler = getattr(place(family), f"{name}Sampler")(causal_model(), Tokenizer())
    with pytest.raises(ValueError, match=words):
        sampler.sample([[5]], **given)
    with pytest.raises(TypeError, match="no setting step"):
        sampler.sample([[5]], step=3)
