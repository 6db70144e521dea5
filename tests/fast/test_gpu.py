"""generate on a GPU: real graphs, no host sync, fresh noise, agreement with the CPU."""

import pytest
import torch

from dllm.fast import capture, generate
from dllm.fast.sampling import graphs
from dllm.fast.sampling.clock import Clock
from dllm.fast.sampling.loop import Denoiser
from dllm.fast.sampling.running import Running
from dllm.fast.sampling.step import denoise_step
from tests.causal_models import causal_model
from tests.fast.test_cache_graphs import CALLS
from tests.models import MASK_ID, favour, tiny
from tests.samplers.test_cached import TOKENIZER
from tests.samplers.test_cached import prompts as unequal

pytestmark = pytest.mark.gpu

ARGUMENTS = dict(steps=16, gen_length=32, block_length=16, mask_id=MASK_ID, seed=3)


def prompts(rows, columns):
    return torch.randint(5, 97, (rows, columns), generator=torch.Generator().manual_seed(0)).cuda()


@pytest.fixture(autouse=True)
def empty_cache():
    graphs.CACHE.clear()
    yield
    graphs.CACHE.clear()


@pytest.mark.parametrize("family", ["modernbert", "bert", "roberta"])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"cfg_scale": 1.0, "remasking": "low_confidence"}])
@pytest.mark.parametrize("rows", [1, 4])
def test_graph_equals_eager_and_draws_afresh(family, options, rows):
    model, prompt = tiny(family).cuda(), prompts(rows, 8)
    eager = generate(model, prompt, cuda_graph=False, **options, **ARGUMENTS)
    first, stats = generate(model, prompt, cuda_graph=True, return_stats=True, **options, **ARGUMENTS)
    again = generate(model, prompt, cuda_graph=True, **options, **ARGUMENTS)
    assert stats.mode == "graph" and len(graphs.CACHE) == 1
    assert torch.equal(first, eager) and torch.equal(again, eager)
    if "temperature" in options:
        other = generate(model, prompt, cuda_graph=True, **options, **{**ARGUMENTS, "seed": 4})
        assert not torch.equal(other, eager)


@pytest.mark.parametrize("family", ["modernbert", "bert"])
def test_graphs_of_a_compiled_body(family):
    """Warm-ups compile outside of the capture; captured and eager steps run the same compiled kernels."""
    model, prompt = tiny(family).cuda(), prompts(4, 8)
    options = ARGUMENTS | dict(temperature=1.0, compile_body=True)
    eager, stats = generate(model, prompt, cuda_graph=False, return_stats=True, **options)
    assert stats.compiled and stats.compile_seconds > 0
    graphed, stats = generate(model, prompt, cuda_graph=True, return_stats=True, **options)
    assert stats.mode == "graph" and stats.compiled
    assert torch.equal(graphed, eager)
    plain = generate(model, prompt, cuda_graph=True, **options | dict(compile_body=False))
    assert len(graphs.CACHE) == 2
    differing = int((plain != graphed).sum())
    print(f"{family}: {differing} tokens of a compiled body differ from the plain body's")
    assert differing <= 1


@pytest.mark.parametrize("family", ["modernbert", "bert"])
def test_gpu_equals_cpu(family):
    model, prompt = tiny(family), prompts(4, 8)
    options = {**ARGUMENTS, "temperature": 1.0}
    cpu = generate(model, prompt.cpu(), **options)
    gpu = generate(model.cuda(), prompt, **options).cpu()
    differing = int((cpu != gpu).any(1).sum())
    print(f"{family}: {differing} of 4 rows differ between CPU and GPU")
    assert differing == 0


def within(mode, run, *arguments):
    """Run it under that sync-debug mode."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        return run(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode(before)


def sampled(name, cuda_graph, **changed):
    kind, settings = CALLS[name]
    model = causal_model(device="cuda", favoured=3.0)
    options = dict(max_new_tokens=20, block_size=8, temperature=0.8, seed=1) | settings | changed
    return kind(model, TOKENIZER).sample(unequal(model, (11, 2, 5)), cuda_graph=cuda_graph, **options)


@pytest.mark.parametrize("name", ["generate", *CALLS])
def test_a_step_never_waits_for_the_host(monkeypatch, name):
    """Every eager step under sync-debug mode "error"; the mode is lifted between steps."""

    def call():
        if name != "generate":
            return sampled(name, False)
        return generate(tiny("modernbert").cuda(), prompts(2, 8), cuda_graph=False, temperature=1.0, **ARGUMENTS)

    first = call()  # kernels are compiled by now
    monkeypatch.setattr("dllm.fast.sampling.running.denoise_step", lambda *given: within("error", denoise_step, *given))
    assert torch.equal(call(), first) and not bool((first == MASK_ID).any())


# Where a schedule tells which rows begin blocks, or nothing depends on it: beside blocks that adapt the prefix and dual
# caches read one number a step.
FREE = [name for name in CALLS if name.partition(",")[0] not in ("prefix", "dual") or name.endswith("scheduled")]


@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("name", ["generate", *FREE])
def test_a_loop_waits_only_where_it_polls(monkeypatch, name, stops):
    """Whole loops, several steps a replay, under sync-debug mode "error", which polls of early stops lift."""
    monkeypatch.setattr(graphs, "WORTH_SEVERAL", 0)
    model = favour(tiny("modernbert"), 40, 4.0).cuda()

    def call(cuda_graph):
        if name != "generate":
            return sampled(name, cuda_graph, stop_at_eos=stops)
        options = dict(temperature=1.0, eos_token_id=40 if stops else None, **ARGUMENTS)
        return generate(model, prompts(2, 8), cuda_graph=cuda_graph, **options)

    eager = call(False)
    assert torch.equal(call(True), eager)  # all is captured by now
    denoise, finished, retire = Denoiser._denoise, Running._finished, Running._retire
    monkeypatch.setattr(Denoiser, "_denoise", lambda self: within("error", denoise, self))
    monkeypatch.setattr(Running, "_finished", lambda self: within("default", finished, self))
    monkeypatch.setattr(Running, "_retire", lambda self, places: within("default", retire, self, places))
    assert torch.equal(call(True), eager)
    assert torch.equal(call(False), eager)


@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_graphs_beside_caches(monkeypatch, name, stops):
    eager = sampled(name, False, stop_at_eos=stops, return_dict=True)
    graphed = sampled(name, True, stop_at_eos=stops, return_dict=True)
    assert graphed.stats.mode == "graph" and torch.equal(graphed.sequences, eager.sequences)
    assert all(map(torch.equal, graphed.histories, eager.histories))
    assert graphed.stats.row_forwards == eager.stats.row_forwards
    monkeypatch.setattr(graphs, "WORTH_SEVERAL", 0)
    for _ in range(2):
        assert torch.equal(sampled(name, True, stop_at_eos=stops), eager.sequences)


def test_what_capturing_costs():
    model, options = tiny("modernbert").cuda(), dict(cuda_graph=True, return_stats=True, **ARGUMENTS)
    first, again = (generate(model, prompts(2, 8), **options)[1] for _ in range(2))
    assert 0 < first.capture_seconds < first.seconds and again.capture_seconds == 0
    assert first.graph_bytes == again.graph_bytes > 0
    ((handle, device),) = [(c.pool.handle, c.state.tokens.device) for c in graphs.CACHE._steps.values()]
    graphs.CACHE.clear()
    torch.cuda.empty_cache()
    assert capture.bytes_of(handle, device) < first.graph_bytes


def test_a_pool_that_holds_too_much(monkeypatch):
    """The next shape gets a new pool, and memory does not grow."""
    monkeypatch.setattr(graphs.CACHE, "share", 0.0)
    model, held = tiny("modernbert").cuda(), []
    for columns in range(8, 16):
        held.append(
            generate(model, prompts(2, columns), cuda_graph=True, return_stats=True, **ARGUMENTS)[1].graph_bytes
        )
        assert len(graphs.CACHE) == 1
    assert max(held) < 2 * held[0]


def test_a_graph_after_all_others_are_gone():
    """torch refuses to capture into a pool of which no graph is left."""
    for seed in range(2):
        out = generate(tiny("bert", seed).cuda(), prompts(1, 8), cuda_graph=True, **ARGUMENTS)
        assert len(graphs.CACHE) == 1 and not bool((out == MASK_ID).any())


@pytest.mark.parametrize("name", ["bd3lm", "dual"])
def test_a_compiled_body(name):
    kind, settings = CALLS[name]
    model = torch.compile(causal_model(device="cuda"))
    rows, options = unequal(model, (11, 2, 5)), dict(max_new_tokens=20, block_size=8, seed=0, **settings)
    eager = kind(model, TOKENIZER).sample(rows, cuda_graph=False, **options)
    assert torch.equal(kind(model, TOKENIZER).sample(rows, cuda_graph=True, **options), eager)


def test_early_stop_and_padding():
    model, prompt = favour(tiny("bert"), 40, 6.0).cuda(), prompts(3, 6)
    padding = torch.tensor([[1] * 6, [0] * 4 + [1] * 2, [0] + [1] * 5]).cuda()
    options = dict(attention_mask=padding, eos_token_id=40, **ARGUMENTS)
    eager = generate(model, prompt, cuda_graph=False, **options)
    assert torch.equal(generate(model, prompt, cuda_graph=True, **options), eager)
    for row in range(3):
        real = prompt[row : row + 1, padding[row].bool()]
        alone = generate(model, real, cuda_graph=False, eos_token_id=40, **{**ARGUMENTS, "seed": 3 + row})
        assert torch.equal(alone[0, real.shape[1] :], eager[row, 6:])


def test_autocast():
    """A graph neither reads casts that others made of the weights nor leaves its own to them."""
    model, prompt = tiny("bert").cuda(), prompts(2, 8)
    for _ in range(2):
        with torch.autocast("cuda", torch.bfloat16):
            graphed = [generate(model, prompt, cuda_graph=True, **ARGUMENTS) for _ in range(2)]
            eager = generate(model, prompt, cuda_graph=False, **ARGUMENTS)
        assert torch.equal(graphed[0], eager) and torch.equal(graphed[1], eager)
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(-1)
    assert len(graphs.CACHE) == 1


def test_a_capture_that_is_refused_leaves_the_others():
    """A model that waits for the device, between captures of one that does not, into the same pool."""
    good, bad, stream = tiny("bert").cuda(), tiny("bert", 1).cuda(), torch.cuda.current_stream()
    generate(good, prompts(1, 8), cuda_graph=True, **ARGUMENTS)
    bad.bert.register_forward_hook(lambda module, given, output: print(float(output[0].sum())))
    assert "cannot be captured" in generate(bad, prompts(1, 8), return_stats=True, **ARGUMENTS)[1].note
    assert len(graphs.CACHE) == 1 and torch.cuda.current_stream() == stream
    for columns in (8, 9):
        eager = generate(good, prompts(1, columns), cuda_graph=False, **ARGUMENTS)
        assert torch.equal(generate(good, prompts(1, columns), cuda_graph=True, **ARGUMENTS), eager)
    assert len(graphs.CACHE) == 2


def test_clock_measures_events():
    clock = Clock(torch.device("cuda", torch.cuda.current_device()), on=True)
    clock.start()
    torch.cuda._sleep(10_000_000)
    clock.lap("body")
    assert clock.seconds()["body"] > 1e-4
