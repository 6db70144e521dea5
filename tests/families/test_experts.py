"""Experts by our kernel: which models take it and when, that nothing else changes, and how often they are compiled."""

import copy
import pickle

import pytest
import torch
import transformers
from torch import nn

from dllm.core import samplers
from dllm.fast.compiled import body as bodies
from dllm.fast.compiled.body import CompiledBody
from dllm.fast.compiled.decision import why_it_does_not_pay
from dllm.models import experts, get_model
from tests.families.toys import CHECKPOINTS, assert_one_graph, tokens
from tests.models import MASK_ID
from tests.samplers.test_cached import TOKENIZER

V5 = int(transformers.__version__.split(".")[0]) >= 5
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not V5 or not experts._is_built(), reason="transformers 4, or the extension is not built"),
]
MIXTURES = ("lladamoe", "rnd1", "llada2")


def load(name, dtype="float32"):
    model = get_model(model_name_or_path=str(CHECKPOINTS / name), dtype=dtype).eval()
    model.config.mask_token_id = MASK_ID
    return model


@pytest.fixture
def calls(monkeypatch):
    """How many calls the kernel has got."""
    made = []

    def counted(*arguments, kernel=experts.swiglu_experts):
        made.append(arguments)
        return kernel(*arguments)

    monkeypatch.setattr(experts, "swiglu_experts", counted)
    return made


@torch.no_grad()
@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_errs_no_more_than_transformers(name, dtype, calls):
    model, true = load(name, dtype), load(name, "float64")
    true.load_state_dict({key: value.to(true.state_dict()[key].dtype) for key, value in model.state_dict().items()})
    assert (model.config._experts_implementation, true.config._experts_implementation) == ("dllm", "eager")
    ids = tokens()
    want, got = true(ids).logits, model(ids).logits.double()
    assert calls
    model.set_experts_implementation("grouped_mm")
    called, theirs = len(calls), model(ids).logits.double()
    assert len(calls) == called
    assert (got - want).norm() <= 1.2 * (theirs - want).norm()


@pytest.mark.parametrize("name", MIXTURES)
def test_tokens_are_those_of_transformers(name, calls):
    """float32, temperature 0: no toy's tokens lie so near to each other that rounding decides."""
    model, prompts = load(name), list(tokens(3, 8))
    kind, cache = (samplers.LLaDA2Sampler, dict(cache=True)) if name == "llada2" else (samplers.MDLMSampler, {})
    how = dict(steps=16, max_new_tokens=32, block_size=32, temperature=0.0, seed=0, **cache)
    ours = kind(model, TOKENIZER).sample(prompts, **how)
    assert calls
    model.set_experts_implementation("eager")
    assert torch.equal(ours, kind(model, TOKENIZER).sample(prompts, **how))


def test_other_cases_stay_with_transformers(calls):
    model = load("rnd1")
    model(tokens()).logits.sum().backward()
    layers = [module for module in model.modules() if experts.has_swiglu_experts(module)]
    layers[0].act_fn = nn.GELU()
    assert not calls
    with torch.no_grad():
        model(tokens())
        assert len(calls) == len(layers) - 1
        hidden, index = torch.ones(3, model.config.hidden_size), torch.ones(3, 1, dtype=torch.int64)
        layers[1].to(torch.bfloat16)(hidden, index, torch.ones(3, 1))
    assert len(calls) == len(layers) - 1


def test_a_choice_of_the_owner_is_kept():
    model = load("rnd1")
    model.set_experts_implementation("batched_mm")
    assert experts.use_kernel(model).config._experts_implementation == "batched_mm"
    dense = get_model(model_name_or_path=str(CHECKPOINTS / "llada"), dtype="float32")
    assert dense.config._experts_implementation != "dllm"


def test_nothing_of_it_is_saved(tmp_path):
    model = load("rnd1")
    model.save_pretrained(tmp_path)
    assert '"dllm"' not in (tmp_path / "config.json").read_text()
    names = {config._experts_implementation for config in (model.config, copy.deepcopy(model).config)}
    assert names == {"dllm"}
    pickled = pickle.dumps(model)  # as torch.save does
    assert pickle.loads(pickled).config._experts_implementation == "grouped_mm"
    assert b"dllm.models.experts" not in pickled


@torch.inference_mode()
def test_routing_compiles_nothing_again(monkeypatch):
    monkeypatch.setattr(bodies, "_BACKEND", "eager")
    torch._dynamo.reset()
    model = load("rnd1")
    model.model.layers = model.model.layers[:1]  # tracing takes a second for each
    compiled = CompiledBody(model, required=True)
    assert_one_graph(model, compiled)
    assert why_it_does_not_pay(model, 10**7, 32, torch.device("cpu")) is None
    model.set_experts_implementation("eager")
    assert "one by one" in why_it_does_not_pay(model, 10**7, 32, torch.device("cpu"))
