"""generate on a GPU: real graphs, no host sync, fresh noise, agreement with the CPU."""

import pytest
import torch

from dllm.fast import generate, graphs
from dllm.fast.denoise import Clock, denoise_step
from tests.models import MASK_ID, favour, tiny

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
def test_gpu_equals_cpu(family):
    model, prompt = tiny(family), prompts(4, 8)
    options = {**ARGUMENTS, "temperature": 1.0}
    cpu = generate(model, prompt.cpu(), **options)
    gpu = generate(model.cuda(), prompt, **options).cpu()
    differing = int((cpu != gpu).any(1).sum())
    print(f"{family}: {differing} of 4 rows differ between CPU and GPU")
    assert differing == 0


def test_a_step_never_waits_for_the_host(monkeypatch):
    """Every denoising step under sync-debug mode "error"; the mode is lifted between steps."""
    from dllm.fast import loop

    def watched(*arguments):
        torch.cuda.set_sync_debug_mode("error")
        try:
            denoise_step(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    model, prompt = tiny("modernbert").cuda(), prompts(2, 8)
    generate(model, prompt, cuda_graph=False, temperature=1.0, **ARGUMENTS)  # kernels are compiled by now
    monkeypatch.setattr(loop, "denoise_step", watched)
    out = generate(model, prompt, cuda_graph=False, temperature=1.0, **ARGUMENTS)
    assert not bool((out == MASK_ID).any())


def test_early_stop_and_padding():
    model, prompt = favour(tiny("bert"), 40, 6.0).cuda(), prompts(3, 6)
    padding = torch.tensor([[1] * 6, [0] * 4 + [1] * 2, [0] + [1] * 5]).cuda()
    options = dict(attention_mask=padding, eos_token_id=40, **ARGUMENTS)
    eager = generate(model, prompt, cuda_graph=False, **options)
    assert torch.equal(generate(model, prompt, **options), eager)
    for row in range(3):
        real = prompt[row : row + 1, padding[row].bool()]
        alone = generate(model, real, cuda_graph=False, eos_token_id=40, **{**ARGUMENTS, "seed": 3 + row})
        assert torch.equal(alone[0, real.shape[1] :], eager[row, 6:])


def test_clock_measures_events():
    clock = Clock(torch.device("cuda", torch.cuda.current_device()), on=True)
    clock.start()
    torch.cuda._sleep(10_000_000)
    clock.lap("body")
    assert clock.seconds()["body"] > 1e-4
