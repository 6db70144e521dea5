"""The body through torch.compile: few graphs, the same tokens, models left as they were, and the decision.

Where only this logic is tested, torch traces bodies and runs the traced operations as they stand, without a compiler.
"""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dllm import cli
from dllm.core.eval.config import read_settings
from dllm.core.eval.generation import GenerationRequest, generate_requests
from dllm.core.eval.models import model_named
from dllm.core.likelihood import LikelihoodConfig, Target, log_likelihoods
from dllm.core.samplers import BD3LMSampler, FastDLLMSampler, MDLMSampler
from dllm.demo.shipped import load_shipped
from dllm.fast import generate
from dllm.fast.compiled import body as bodies
from dllm.fast.compiled import decision
from dllm.fast.compiled.body import CompiledBody, find_body
from dllm.fast.head.split import SplitModel
from dllm.fast.sampling import graphs
from tests import graph_stand_in
from tests.causal_models import EOS, causal_model
from tests.models import MASK_ID, tiny

CPU = torch.device("cpu")
ARGUMENTS = dict(steps=8, gen_length=16, block_length=8, mask_id=MASK_ID, remasking="low_confidence", seed=1)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def compiled(monkeypatch):
    """Counts graphs; their operations run as they were traced."""
    found = []

    def backend(graph, inputs):
        found.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(bodies, "_BACKEND", backend)
    return found


def prompts(rows, columns, seed=0):
    return torch.randint(5, 90, (rows, columns), generator=torch.Generator().manual_seed(seed))


def left_padded(rows, columns):
    mask = torch.ones(rows, columns, dtype=torch.int64)
    mask[0, :3] = 0
    return mask


def both(model, prompt, **changed):
    """Tokens of an eager and of a compiled body, and the latter's stats."""
    arguments = ARGUMENTS | changed
    eager = generate(model, prompt, compile_body=False, **arguments)
    tokens, stats = generate(model, prompt, compile_body=True, return_stats=True, **arguments)
    return eager, tokens, stats


@pytest.mark.parametrize("family", ["modernbert", "bert"])
def test_any_batch_and_length_share_a_graph(family, compiled):
    """Lengths, batches, guidance, rows that leave one by one: one graph; padding and a single row: one more each."""
    model = tiny(family)
    calls = [
        (prompts(4, 6), {}),
        (prompts(3, 20), dict(temperature=1.0)),
        (prompts(2, 7), dict(cfg_scale=1.0, temperature=1.0)),
        (prompts(5, 3), dict(temperature=1.5, eos_token_id=40, remasking="random")),  # rows leave, down to one
    ]
    for prompt, changed in calls:
        eager, tokens, stats = both(model, prompt, **changed)
        assert torch.equal(eager, tokens)
        assert stats.compiled and "the body is compiled" in stats.compile_note
    assert len(compiled) == 1
    eager, tokens, _ = both(model, prompts(4, 9), attention_mask=left_padded(4, 9))
    assert torch.equal(eager, tokens)
    assert len(compiled) == 2
    for columns in (7, 12):
        eager, tokens, stats = both(model, prompts(1, columns))
        assert torch.equal(eager, tokens)
    assert len(compiled) == 3 and stats.compile_seconds == 0.0


@pytest.mark.parametrize(
    ("kind", "settings"), [(FastDLLMSampler, dict(cache="prefix")), (BD3LMSampler, dict(cache=True, temperature=1.0))]
)
def test_a_cache_takes_a_few(kind, settings, compiled):
    """A pass over the canvas and one over a window, with rows of unequal length and without."""
    model = causal_model(num_hidden_layers=1)
    sampler = kind(model, SimpleNamespace(mask_token_id=MASK_ID, eos_token_id=EOS))
    for lengths in ([5, 9, 7], [4, 4], [11, 3, 2, 8], [6, 6, 6]):
        rows = [prompts(1, length, seed=length)[0] for length in lengths]
        arguments = dict(max_new_tokens=16, steps=8, block_size=8, seed=1, **settings)
        eager = sampler.sample(rows, compile_body=False, **arguments)
        assert torch.equal(sampler.sample(rows, compile_body=True, **arguments), eager)
    assert len(compiled) <= 4


def test_the_compiler_itself(caplog):
    """inductor's own code: equal tokens at float32, apart from near ties, which are counted."""
    model, equal, tokens = tiny("modernbert", num_hidden_layers=1), 0, 0
    for seed, changed in enumerate([{}, dict(temperature=1.0), dict(cfg_scale=0.5, temperature=1.0)]):
        eager, made, stats = both(model, prompts(3, 6 + seed), **changed)
        equal, tokens = equal + int((eager == made)[:, 6 + seed :].sum()), tokens + made[:, 6 + seed :].numel()
        assert stats.compiled
        assert (stats.compile_seconds > 0) == (seed == 0)
    print(f"{equal} of {tokens} tokens of a compiled body equal the eager body's")
    assert equal >= tokens - 1
    began, ended = (record.message for record in caplog.records if "the body of" in record.message)
    assert began.startswith("compiling the body of ModernBertForMaskedLM") and ended.startswith("compiled the body of")


def test_nothing_is_left_behind(compiled):
    model = tiny("bert", num_hidden_layers=1)
    before = {name: dict(vars(module)) for name, module in model.named_modules()}

    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, prompts(2, 5), compile_body=True, on_step=interrupted, **ARGUMENTS)
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before
    copied = copy.deepcopy(model)
    assert torch.equal(copied(prompts(2, 5)).logits, model(prompts(2, 5)).logits)
    gone = weakref.ref(model), weakref.ref(find_body(model))
    del model, before
    gc.collect()
    assert [made() for made in gone] == [None, None]


def test_threads_share_a_body(compiled):
    """One thread's body runs compiled while another's runs eagerly; the graph is made once."""
    model, wrong = tiny("bert", num_hidden_layers=1), []
    given = [prompts(3, 5, seed) for seed in range(2)]
    expected = [generate(model, prompt, compile_body=False, **ARGUMENTS) for prompt in given]

    def work(number, compile_body):
        for _ in range(4):
            tokens = generate(model, given[number], compile_body=compile_body, **ARGUMENTS)
            if not torch.equal(tokens, expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=pair) for pair in ((0, True), (1, True), (0, False))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(compiled) <= 2  # both may begin at the same time


def test_operators_that_are_watched_run_one_by_one(compiled):
    """torch compiles nothing under a dispatch mode; that is no fault of the model, which is compiled afterwards."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **kwargs or {})

    model = tiny("bert", num_hidden_layers=1)
    with Watch():
        eager, tokens, stats = both(model, prompts(2, 5))
    assert torch.equal(eager, tokens) and not stats.compiled and compiled == []
    assert both(model, prompts(2, 5))[2].compiled


def test_changed_models(compiled):
    """Weights changed in place or replaced, adapters, another dtype: what runs is the model as it is now."""
    model = tiny("bert", num_hidden_layers=1)
    both(model, prompts(2, 5))
    with torch.no_grad():
        for parameter in find_body(model).parameters():
            parameter.mul_(1.1)
    eager, tokens, _ = both(model, prompts(2, 5))
    assert torch.equal(eager, tokens) and len(compiled) == 1
    layer = model.bert.encoder.layer[0].intermediate
    layer.dense.weight = nn.Parameter(layer.dense.weight.detach() * 1.3)
    eager, tokens, _ = both(model, prompts(2, 5))
    assert torch.equal(eager, tokens)
    model.to(torch.bfloat16)
    eager, tokens, stats = both(model, prompts(2, 5))
    assert torch.equal(eager, tokens) and stats.compiled
    assert len(compiled) <= 3


class Branching(nn.Module):
    """A body around another that takes a way by a value, which no graph can follow."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, input_ids, **given):
        return self.inner(input_ids=input_ids, **given) if int(input_ids.sum()) else None


class CountsColumns(Branching):
    """A body that depends on the number of columns, so that each needs its own graph."""

    def forward(self, input_ids, **given):
        width = next(columns for columns in range(90) if input_ids.shape[1] == columns)
        return self.inner(input_ids=input_ids[:, :width], **given)


def with_body(kind):
    model = tiny("bert", num_hidden_layers=1)
    model.bert = kind(model.bert)
    model.get_input_embeddings = lambda: model.bert.inner.embeddings.word_embeddings
    return model


def test_a_body_that_cannot_be_compiled(compiled, caplog):
    model, prompt = with_body(Branching), prompts(2, 5)
    expected = generate(model, prompt, compile_body=False, **ARGUMENTS)
    with decision.repeated(10**9):
        for _ in range(2):
            tokens, stats = generate(model, prompt, return_stats=True, **ARGUMENTS)
            assert torch.equal(tokens, expected)
            assert not stats.compiled and "torch.compile cannot compile it" in stats.compile_note
    assert len([record for record in caplog.records if "runs eagerly" in record.message]) == 1
    with pytest.raises(RuntimeError, match=r"compile_body=True, but torch\.compile cannot compile it"):
        generate(model, prompt, compile_body=True, **ARGUMENTS)


def test_the_first_failure_of_a_call_that_insists(compiled):
    with pytest.raises(RuntimeError, match=r"torch\.compile cannot compile it"):
        generate(with_body(Branching), prompts(2, 5), compile_body=True, **ARGUMENTS)


def test_a_model_is_not_compiled_again_and_again(compiled, caplog, monkeypatch):
    monkeypatch.setattr(bodies, "MOST_GRAPHS", 2)
    model = with_body(CountsColumns)
    with torch._dynamo.config.patch(recompile_limit=1), decision.repeated(10**9):
        for columns in range(5, 8):
            expected = generate(model, prompts(2, columns), compile_body=False, **ARGUMENTS)
            tokens, stats = generate(model, prompts(2, columns), return_stats=True, **ARGUMENTS)
            assert torch.equal(tokens, expected)
    assert len(compiled) == 2 and not stats.compiled
    assert len([record for record in caplog.records if "runs eagerly" in record.message]) == 1


def test_head_inside_its_body():
    """A model whose head lies among its layers has no body that could run apart from it."""

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleDict({"words": nn.Embedding(9, 4), "head": nn.Linear(4, 9)})

        def forward(self, input_ids, attention_mask=None):
            hidden = self.parts["words"](input_ids)
            return SimpleNamespace(logits=self.parts["head"](hidden + hidden.mean(1, keepdim=True)))

        def get_input_embeddings(self):
            return self.parts["words"]

        def get_output_embeddings(self):
            return self.parts["head"]

    assert find_body(Whole()) is None
    with pytest.raises(RuntimeError, match="no module of Whole holds its layers and not its head"):
        generate(Whole(), prompts(1, 3) % 9 // 5 + 4, compile_body=True, **ARGUMENTS)


def test_none_decides_by_the_number_of_forwards(compiled):
    model = tiny("bert", num_hidden_layers=1)
    _, stats = generate(model, prompts(2, 5), return_stats=True, **ARGUMENTS)
    assert not stats.compiled and "this run has at most 8" in stats.compile_note
    _, stats = generate(model, prompts(2, 5), return_stats=True, compile_body=False, **ARGUMENTS)
    assert "compil" not in stats.compile_note
    assert compiled == []
    with decision.repeated(10**9):
        _, stats = generate(model, prompts(2, 5), return_stats=True, **ARGUMENTS)
    assert stats.compiled and stats.compile_seconds > 0 and len(compiled) == 1


def test_what_pays():
    """Larger and more numerous forwards pay sooner; another device than those measured never does."""
    model = tiny("bert")

    def least(tokens, device="cpu"):
        why = decision.why_it_does_not_pay(model, 0, tokens, torch.device(device))
        return int(why.split("pays from ")[1].split()[0])

    assert least(64) > least(512) > least(8192)
    assert decision.why_it_does_not_pay(model, least(64), 64, CPU) is None
    assert "at most" in decision.why_it_does_not_pay(model, least(64) - 1, 64, CPU)
    for device in ("meta", "cuda"):
        assert "not been measured" in decision.why_it_does_not_pay(model, 10**9, 64, torch.device(device))
    model.bert.encoder.experts = nn.ModuleList([nn.Linear(8, 8)])  # as transformers 4 keeps them
    assert "one by one" in decision.why_it_does_not_pay(model, 10**9, 64, CPU)


def test_without_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    model = tiny("bert", num_hidden_layers=1)
    with decision.repeated(10**9):
        _, stats = generate(model, prompts(2, 5), return_stats=True, **ARGUMENTS)
    assert not stats.compiled and "no C++ compiler 'no-such-compiler' was found" in stats.compile_note
    model.forward = None  # whatever runs it fails
    sampler = BD3LMSampler(model, SimpleNamespace(mask_token_id=MASK_ID, eos_token_id=EOS))
    for call in (
        lambda: generate(model, prompts(2, 5), compile_body=True, **ARGUMENTS),
        lambda: sampler.sample([[5, 6]], compile_body=True, max_new_tokens=8),
        lambda: log_likelihoods(model, [Target([5], [6])], LikelihoodConfig(compile_body=True), mask_id=MASK_ID),
    ):
        with pytest.raises(RuntimeError, match="compile_body=True cannot compile: no C\\+\\+ compiler"):
            call()


def test_a_command_without_a_compiler(monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    for command in (["generate", "What is 6 * 7?"], ["chat"]):
        assert cli.main([*command, "--compile-body"]) == 2
        assert "--compile-body cannot compile: no C++ compiler 'no-such-compiler'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE"])
def test_switched_off(name, monkeypatch):
    monkeypatch.setenv(name, "1")
    assert decision.why_not_compile(CPU) == f"{name}=1 switches torch.compile off"


@pytest.mark.parametrize("value", [0, 1, "yes"])
def test_bad_values(value):
    model = tiny("bert", num_hidden_layers=1)
    with pytest.raises(TypeError, match="compile_body must be"):
        generate(model, prompts(2, 5), compile_body=value, **ARGUMENTS)
    with pytest.raises(TypeError, match="compile_body must be"):
        LikelihoodConfig(compile_body=value)
    with pytest.raises(TypeError, match="compile_body must be"):
        BD3LMSampler.config_class(compile_body=value).check()


def test_a_model_that_is_compiled_already(compiled):
    """Its owner's compiled code runs; ours is not put inside it."""
    model = tiny("bert", num_hidden_layers=1)
    whole = torch.compile(model, backend="eager")
    _, stats = generate(whole, prompts(2, 5), compile_body=True, return_stats=True, **ARGUMENTS)
    assert not stats.compiled and "is compiled already" in stats.compile_note and compiled == []
    model.bert.compile(backend="eager")
    assert decision.decide(model, True, forwards=1, tokens=1, device=CPU).body is None


def test_graphs_of_compiled_bodies_are_their_own():
    """A captured step holds kernels, so its key says whether the body's are compiled."""
    model, keys = tiny("bert", num_hidden_layers=1), set()
    state = SimpleNamespace(tensors=lambda: {"tokens": torch.zeros(1, 2)}, tokens=torch.zeros(1, 2))
    for compile_body in (False, True):
        split = SplitModel(model, prompts(1, 4))
        split.body_context = decision.decide(model, compile_body, forwards=1, tokens=2, device=CPU).context
        keys.add(graphs.bucket(split, state, None))
    assert len(keys) == 2


def test_a_warm_up_does_not_swallow_the_failure(compiled, monkeypatch):
    graph_stand_in.install_sampling(monkeypatch)
    with pytest.raises(RuntimeError, match=r"torch\.compile cannot compile it"):
        generate(with_body(Branching), prompts(2, 5), compile_body=True, **ARGUMENTS)


def test_an_evaluation_decides_by_all_of_its_batches(monkeypatch):
    model, tokenizer = load_shipped()
    asked = []

    def pays(model, forwards, tokens, device):
        asked.append(decision._repeats.get())
        return "no"

    monkeypatch.setattr(decision, "why_it_does_not_pay", pays)
    requests = [GenerationRequest([5, 6]) for _ in range(5)]
    settings = MDLMSampler.config_class(max_new_tokens=4, steps=2, block_size=4)
    generate_requests(MDLMSampler(model, tokenizer), requests, settings, batch_size=2)
    assert asked == [3, 3, 3] and decision._repeats.get() == 1


def test_settings_of_an_evaluation():
    settings = read_settings(model_named("bert"), {"pretrained": "some/model", "compile_body": "true"})
    assert settings.sampler.compile_body is True and settings.likelihood.compile_body is True


def test_likelihoods(compiled):
    model = tiny("bert", num_hidden_layers=1)
    targets = [Target([5, 6, 7], [8, 9]), Target([5], [6, 7, 8, 9]), Target([6], [7])]
    eager, made = (
        log_likelihoods(model, targets, LikelihoodConfig(compile_body=flag, exact_up_to=2, mc_num=4), mask_id=MASK_ID)
        for flag in (False, True)
    )
    assert [one.log_likelihood for one in made] == [one.log_likelihood for one in eager]
    assert 1 <= len(compiled) <= 2


def test_the_body_of_an_adapted_model():
    peft = pytest.importorskip("peft")
    model = tiny("bert", num_hidden_layers=1)
    body = find_body(model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query"], r=2))
    assert find_body(adapted) is body
    assert CompiledBody(adapted).why_not is None
