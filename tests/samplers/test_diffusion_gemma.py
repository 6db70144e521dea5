"""DiffusionGemmaSampler: the decisions of a plain loop over each row alone, whatever the batch."""

from __future__ import annotations

import pytest
import torch

from tests.diffusion_gemma_models import CANVAS, VOCAB, WINDOW, needs_diffusion_gemma, tiny_diffusion_gemma
from tests.reference_samplers.diffusion_gemma import GemmaTrace, Rules, diffusion_gemma

pytestmark = [needs_diffusion_gemma, pytest.mark.usefixtures("one_thread")]

FEW = dict(max_denoising_steps=8, entropy_bound=3.0)
STOPPING = dict(max_denoising_steps=16, entropy_bound=2.0, confidence_threshold=1.4)
LENGTHS = (5, 12, 9, WINDOW + 7)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return tiny_diffusion_gemma()


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    draw = torch.Generator().manual_seed(3)
    return [torch.randint(5, VOCAB - 5, (length,), generator=draw).tolist() for length in LENGTHS]


def sampler(model: torch.nn.Module, tokenizer: object = None) -> object:
    from dllm.core.samplers import DiffusionGemmaSampler

    return DiffusionGemmaSampler(model, tokenizer)


def judged(model: torch.nn.Module, prompts: list[list[int]], rules: Rules) -> list[GemmaTrace]:
    return [diffusion_gemma(model, prompt, rules, seed=11 + number) for number, prompt in enumerate(prompts)]


@pytest.mark.parametrize("settings", [FEW, STOPPING, dict(FEW, t_min=0.7, t_max=0.7)], ids=["few", "stopping", "flat"])
def test_tokens_and_steps_of_the_plain_loop(model, prompts, settings):
    truth = judged(model, prompts, Rules(max_new_tokens=3 * CANVAS, **settings))
    found = sampler(model).sample(prompts, seed=11, max_new_tokens=3 * CANVAS, return_dict=True, **settings)
    for number, (prompt, trace) in enumerate(zip(prompts, truth, strict=True)):
        begin = len(prompt)
        assert found.sequences[number, :begin].tolist() == prompt
        assert found.sequences[number, begin : begin + 3 * CANVAS].tolist() == trace.tokens
        assert found.stats.row_forwards[number] == sum(map(len, trace.canvases))
    assert found.stats.forwards == max(found.stats.row_forwards)
    if settings is STOPPING:
        assert len(set(found.stats.row_forwards)) > 1


def test_a_row_is_the_same_alone_and_in_any_company(model, prompts):
    settings = dict(max_new_tokens=2 * CANVAS, **STOPPING)
    together = sampler(model).sample(prompts[::-1], seed=[24, 23, 22, 21], **settings)
    for number, prompt in enumerate(prompts):
        alone = sampler(model).sample([prompt], seed=[21 + number], **settings)
        assert alone[0].tolist() == together[len(prompts) - 1 - number, : alone.shape[1]].tolist()


def test_rows_end_at_eos(model, prompts):
    free = judged(model, prompts, Rules(max_new_tokens=3 * CANVAS, **FEW))
    eos = [free[0].tokens[2], free[1].tokens[CANVAS + 3]]
    rules = Rules(max_new_tokens=3 * CANVAS, eos=tuple(eos), pad=0, **FEW)
    found = sampler(model).sample(
        prompts, seed=11, max_new_tokens=3 * CANVAS, eos_token_ids=eos, return_dict=True, **FEW
    )
    for number, (prompt, trace) in enumerate(zip(prompts, judged(model, prompts, rules), strict=True)):
        row = found.sequences[number, len(prompt) :].tolist()
        assert row[: len(trace.tokens)] == trace.tokens and set(row[len(trace.tokens) :]) <= {0}
        assert found.stats.row_forwards[number] == 8 * len(trace.canvases)
    assert found.stats.useful_tokens < found.stats.tokens


def test_max_new_tokens_is_exact(model, prompts):
    whole = sampler(model).sample(prompts[:1], seed=1, max_new_tokens=2 * CANVAS, **FEW)
    cut = sampler(model).sample(prompts[:1], seed=1, max_new_tokens=CANVAS + 3, **FEW)
    assert cut.shape[1] == LENGTHS[0] + CANVAS + 3 and torch.equal(cut, whole[:, : cut.shape[1]])


def test_log_probs_are_those_of_the_emitted_tokens(model, prompts):
    found = sampler(model).sample(prompts[:2], seed=11, max_new_tokens=CANVAS, return_dict=True, log_probs=True, **FEW)
    for number, trace in enumerate(judged(model, prompts[:2], Rules(max_new_tokens=CANVAS, **FEW))):
        last = trace.canvases[0][-1]
        true = last.logits.log_softmax(-1).gather(1, last.argmax[:, None])[:, 0]
        torch.testing.assert_close(found.log_probs[number], true, rtol=0, atol=2e-5)


def test_every_step_can_be_watched(model, prompts):
    steps = []
    found = sampler(model).sample(
        prompts[:2], seed=11, max_new_tokens=2 * CANVAS, return_dict=True, on_step=steps.append, **FEW
    )
    truth = judged(model, prompts[:2], Rules(max_new_tokens=2 * CANVAS, **FEW))
    assert len(steps) == 16 and len(found.histories) == 17
    assert torch.equal(found.histories[-1], steps[-1].canvas)
    for number, trace in enumerate(truth):
        begin = LENGTHS[number]
        for seen, step in zip(steps[:8], trace.canvases[0], strict=True):
            assert torch.equal(seen.tentative[number, begin : begin + CANVAS], step.argmax)
            torch.testing.assert_close(
                -seen.confidence[number, begin : begin + CANVAS], step.entropy, rtol=0, atol=3e-5
            )
        for seen, step in zip(steps[:7], trace.canvases[0][1:], strict=True):
            assert torch.equal(seen.canvas[number, begin : begin + CANVAS], step.before)
    assert [(seen.block, seen.step, seen.steps) for seen in steps] == [(b, s, 8) for b in range(2) for s in range(8)]


def test_bfloat16_decides_nearly_the_same_in_a_step(prompts):
    """Of the first step, which reads the same noise: later ones read what it has decided."""
    half, steps = tiny_diffusion_gemma().to(torch.bfloat16), []
    settings = dict(max_new_tokens=CANVAS, max_denoising_steps=2, entropy_bound=3.0)
    rows = prompts * 4
    sampler(half).sample(rows, seed=11, on_step=steps.append, **settings)
    likeliest = read = 0
    for number, trace in enumerate(judged(half, rows, Rules(**settings))):
        place = (number, slice(len(rows[number]), len(rows[number]) + CANVAS))
        likeliest += int((steps[0].tentative[place] == trace.canvases[0][0].argmax).sum())
        read += int((steps[0].canvas[place] == trace.canvases[0][1].before).sum())
    assert likeliest > 0.9 * len(rows) * CANVAS and read > 0.8 * len(rows) * CANVAS, (likeliest, read)


def test_logits_are_never_stored(model, prompts):
    """Nothing that is made in a step is as large as a row's logits."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (VOCAB,):
                    self.numbers = max(self.numbers, tensor.numel())
            return out

    with Largest() as largest:
        sampler(model).sample(prompts, seed=1, max_new_tokens=CANVAS, **FEW)
    assert largest.numbers <= VOCAB


def test_no_rows(model):
    found = sampler(model).sample([], seed=1, return_dict=True, **FEW)
    assert found.sequences.shape == (0, 0) and found.stats.forwards == 0


@pytest.mark.parametrize(
    "inputs, settings, error, says",
    [
        ([[]], {}, ValueError, "at least one token"),
        ([[5, VOCAB]], {}, ValueError, "must lie in"),
        ([[5, VOCAB - 1]], {}, ValueError, "image token"),
        ([[5]], {"t_max": 0.0, "t_min": 0.0}, ValueError, "t_max must be above 0"),
        ([[5]], {"t_min": 0.9}, ValueError, "at least t_min"),
        ([[5]], {"entropy_bound": 0.0}, ValueError, "entropy_bound"),
        ([[5]], {"max_new_tokens": 0}, ValueError, "max_new_tokens"),
        ([[5]], {"eos_token_ids": [VOCAB]}, ValueError, "eos_token_ids"),
        ([[5]], {"temperature": 1.0}, TypeError, "no setting temperature"),
    ],
)
def test_bad_input_is_refused_before_the_model_runs(model, monkeypatch, inputs, settings, error, says):
    made = sampler(model)
    monkeypatch.setattr(type(model.model.encoder), "forward", lambda *a, **k: pytest.fail("the model has run"))
    with pytest.raises(error, match=says):
        made.sample(inputs, seed=1, **settings)


def test_logits_that_are_not_finite_are_reported(prompts):
    broken = tiny_diffusion_gemma()
    with torch.no_grad():
        broken.model.decoder.norm.weight.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="row 0: no logit was finite at step 0"):
        sampler(broken).sample(prompts[:2], seed=1, **FEW)


def test_another_model_is_refused():
    from tests.models import tiny

    with pytest.raises(TypeError, match="DiffusionGemmaForBlockDiffusion"):
        sampler(tiny("bert"))


def test_settings_are_those_of_the_generation_config(model):
    from dllm.core.samplers import DiffusionGemmaSamplerConfig

    generation = type(model.generation_config)
    from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSamplerConfig

    stated = generation(max_denoising_steps=7, sampler_config=EntropyBoundSamplerConfig(entropy_bound=0.5), t_max=0.9)
    made = DiffusionGemmaSamplerConfig.of(type("Model", (), {"generation_config": stated})())
    assert (made.max_denoising_steps, made.entropy_bound, made.t_max, made.t_min) == (7, 0.5, 0.9, 0.4)
