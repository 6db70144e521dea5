"""NemotronDiffusionSampler: the decisions of a plain loop over each row alone, which keeps nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from dllm.core.samplers import NemotronDiffusionSampler, NemotronDiffusionSamplerConfig
from dllm.fast.sampling.running import Running
from tests import graph_stand_in
from tests.causal_models import EOS, causal_model
from tests.models import MASK_ID
from tests.reference_samplers import first_difference
from tests.reference_samplers.nemotron_diffusion import NemotronTrace, nemotron_diffusion
from tests.samplers.test_cached import prompts

pytestmark = pytest.mark.usefixtures("one_thread")

THINK_END = 41
TOKENIZER = SimpleNamespace(
    mask_token_id=MASK_ID,
    eos_token_id=EOS,
    eot_token_id=EOS,
    unk_token_id=0,
    convert_tokens_to_ids={"</think>": THINK_END}.get,
)
ROWS = {"one": (5,), "equal": (6, 6, 6), "unequal": (5, 1, 11)}
CASES = {
    "threshold": dict(threshold=0.3),
    "threshold, warm": dict(threshold=0.3, temperature=1.0),
    "schedule, warm": dict(threshold=None, temperature=1.0),
    "few steps": dict(threshold=None, steps=3),
    "few steps and a threshold": dict(threshold=0.3, steps=3, temperature=0.5),
    "thinking": dict(threshold=0.3, max_thinking_tokens=11),
    "no thinking": dict(threshold=0.9, max_thinking_tokens=0, temperature=1.0),
    "guided": dict(threshold=0.3, cfg_scale=0.5),
    "suppressed": dict(threshold=0.3, suppress_tokens=[*range(20, 60)]),
}


def judged(model, rows, *, seed=11, stop_at_eos=False, **settings) -> list[NemotronTrace]:
    settings |= dict(mask_id=MASK_ID, think_end_id=THINK_END, eos_token_id=EOS if stop_at_eos else None)
    return [nemotron_diffusion(model, row, seed=seed + i, **settings) for i, row in enumerate(rows)]


def check(sampler, rows, *, seed=11, stop_at_eos=False, **settings):
    """Hold a batch against the loop: the canvas after every step, and how often each row ran."""
    out = sampler.sample(rows, seed=seed, return_dict=True, stop_at_eos=stop_at_eos, **settings)
    judges = judged(sampler.model, rows, seed=seed, stop_at_eos=stop_at_eos, **settings)
    for i, (trace, causal, _) in enumerate(judges):
        width = len(trace.canvas)
        got = out.sequences[i, :width] if stop_at_eos else [canvas[i, :width] for canvas in out.histories]
        difference = first_difference(got, trace)
        assert difference is None, (i, difference)
        assert out.stats.row_forwards[i] == trace.forwards + causal
    return out, judges


@pytest.mark.covering(2)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
@pytest.mark.parametrize("name", CASES)
def test_decisions_of_the_plain_loop(name, family, rows, device):
    model = causal_model(family, str(device))
    sampler = NemotronDiffusionSampler(model, TOKENIZER)
    out, judges = check(sampler, prompts(model, ROWS[rows]), max_new_tokens=18, block_size=8, **CASES[name])
    assert out.stats.masks_left == 0 and out.stats.cache_bytes > 0
    if "thinking" in name:
        for i, length in enumerate(ROWS[rows]):
            assert THINK_END in out.sequences[i, length : length + CASES[name]["max_thinking_tokens"] + 1]
    assert any(trace.forwards > 3 for trace, _, _ in judges)


@pytest.mark.parametrize("temperature, favoured", [(0.0, 3.0), (1.0, 3.0)])
def test_rows_end_at_their_own_eos(temperature, favoured):
    """In the first block, in the second, and at the first token of a block."""
    model, places = causal_model("Llama", favoured=favoured), set()
    sampler = NemotronDiffusionSampler(model, TOKENIZER)
    settings = dict(max_new_tokens=16, block_size=4, threshold=0.3, temperature=temperature, stop_at_eos=True)
    for lengths in ROWS.values():
        rows = prompts(model, lengths, seed=4)
        out, judges = check(sampler, rows, **settings)
        assert not bool((out.sequences == MASK_ID).any())
        generated = [trace.canvas[len(row) :].tolist() for row, (trace, _, _) in zip(rows, judges, strict=True)]
        places |= {tokens.index(EOS) for tokens in generated if EOS in tokens}
        assert out.stats.useful_tokens == sum([*tokens, EOS].index(EOS) + (EOS in tokens) for tokens in generated)
    assert {place // 4 for place in places} >= {0, 1} and any(place % 4 == 0 for place in places), places


@pytest.mark.parametrize("new", [3, 8, 9, 17])
def test_any_number_of_new_tokens(new):
    model = causal_model()
    rows = prompts(model, (5, 3))
    out, _ = check(NemotronDiffusionSampler(model, TOKENIZER), rows, max_new_tokens=new, block_size=8, threshold=0.3)
    assert out.sequences.shape == (2, 5 + new)


def test_a_row_is_the_same_alone_and_in_any_company():
    model = causal_model()
    sampler, rows = NemotronDiffusionSampler(model, TOKENIZER), prompts(model)
    settings = dict(max_new_tokens=20, threshold=0.3, temperature=[0.0, 1.0, 0.7, 0.2], stop_at_eos=False)
    together = sampler.sample(rows, seed=[4, 3, 2, 1], **settings)
    many = sampler.sample_many(rows, rows=2, seed=[4, 3, 2, 1], **settings)
    for i, row in enumerate(rows):
        alone = sampler.sample([row], seed=[4 - i], **settings | {"temperature": settings["temperature"][i]})
        assert alone[0].tolist() == together[i, : len(row) + 20].tolist() == many[i].tokens.tolist()


def test_steps_beyond_the_masks_cost_nothing():
    sampler = NemotronDiffusionSampler(plain_llama(), TOKENIZER)
    settings = dict(max_new_tokens=6, block_size=4, threshold=None)
    many, enough = (sampler.sample([[5, 6]], steps=steps, **settings) for steps in (10**12, 4))
    assert torch.equal(many, enough)


def plain_llama():
    """A causal Llama of transformers, which nobody has made bidirectional."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size = dict(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    return LlamaForCausalLM(LlamaConfig(**size, initializer_range=0.5)).eval()


def test_the_first_token_of_a_block_is_that_of_an_autoregressive_model():
    model = plain_llama()
    sampler = NemotronDiffusionSampler(model, TOKENIZER)
    rows = [[5, 6, 7], [8, 9, 10, 11, 12]]
    found = sampler.sample(rows, max_new_tokens=16, threshold=0.5, stop_at_eos=False)
    for row, sequence in zip(rows, found, strict=True):
        for begin in (len(row), len(row) + 8):
            assert int(sequence[begin]) == int(model(sequence[None, :begin]).logits[0, -1].argmax())


def test_first_tokens_have_the_log_probability_of_an_autoregressive_model():
    sampler, rows = NemotronDiffusionSampler(plain_llama(), TOKENIZER), [[5, 6, 7], [8, 9, 10, 11, 12]]
    plan = sampler.plan(rows, seed=0, max_new_tokens=8, block_size=4, stop_at_eos=False)
    running = Running(sampler.model, plan.policy)
    running.join(plan.batch, keeps_log_probs=True)
    finished = []
    while running:
        finished += running.step()
    for prompt, row in zip(rows, sorted(finished, key=lambda row: row.id), strict=True):
        assert row.log_probs[: len(prompt)].isnan().all() and row.log_probs[len(prompt) :].isfinite().all()
        with torch.no_grad():
            logits = sampler.model(row.tokens[None, : len(prompt)]).logits[0, -1]
        expected = logits.log_softmax(-1)[row.tokens[len(prompt)]]
        assert row.log_probs[len(prompt)].item() == pytest.approx(expected.item(), abs=1e-4)


def test_a_first_token_that_is_a_mask_is_denoised():
    model = causal_model("Llama", favoured=0.0, tie_word_embeddings=False, vocab_size=97, max_position_embeddings=65)
    with torch.no_grad():
        model.get_output_embeddings().bias[MASK_ID] = 9.0
    rows = prompts(model, (5, 3))
    sampler = NemotronDiffusionSampler(model, TOKENIZER)
    out = sampler.sample(rows, max_new_tokens=8, threshold=None, stop_at_eos=False, return_dict=True)
    trace, causal, chosen = judged(model, rows, max_new_tokens=8, threshold=None)[0]
    assert chosen[0] == MASK_ID
    assert out.sequences[0, : len(trace.canvas)].tolist() == trace.canvas.tolist()
    assert out.stats.row_forwards[0] == trace.forwards + causal == 8 + 1


def test_early_ends_and_stop_strings_can_end_a_row():
    model = causal_model()
    sampler, rows = NemotronDiffusionSampler(model, TOKENIZER), prompts(model, (5, 3))
    whole = sampler.sample(rows, max_new_tokens=24, threshold=0.3)
    asked = []

    def finished(row: int, tokens: list[int]) -> bool:
        asked.append((row, len(tokens)))
        return row == 0 and len(tokens) >= 8

    ended = sampler.sample(rows, max_new_tokens=24, threshold=0.3, finished=finished)
    assert torch.equal(ended[0, :13], whole[0, :13]) and set(ended[0, 21:].tolist()) == {EOS}
    assert torch.equal(ended[1, :27], whole[1, :27]) and asked


def test_weights_of_8_bits():
    from dllm.fast.quantize import quantize

    model = quantize(causal_model("Llama", max_position_embeddings=68), "int8")
    sampler, rows = NemotronDiffusionSampler(model, TOKENIZER), prompts(model, (5, 3))
    settings = dict(max_new_tokens=12, threshold=0.3, stop_at_eos=False)
    together = sampler.sample(rows, **settings)
    assert together[0].tolist() == sampler.sample(rows[:1], **settings)[0].tolist()
    assert not bool((together == MASK_ID).any())


def test_the_last_block_is_not_read_again():
    model = causal_model()
    calls, forward = [], model.model.forward
    model.model.forward = lambda *args, **kwargs: calls.append(kwargs["input_ids"].shape) or forward(*args, **kwargs)
    try:
        sampler = NemotronDiffusionSampler(model, TOKENIZER)
        warm = dict(max_new_tokens=16, threshold=None, stop_at_eos=False, return_dict=True)
        sampler.sample(prompts(model, (5,)), **warm)
        calls.clear()
        out = sampler.sample(prompts(model, (5,)), **warm)
    finally:
        del model.model.forward
    ours = [shape for shape in calls if shape[0] == 1 and shape[1] in (5, 8)]
    assert ours == [(1, 5), *[(1, 8)] * 7, (1, 8), *[(1, 8)] * 7]
    assert out.stats.forwards == out.stats.row_forwards[0] == 16 and out.stats.idle_forwards == 0


@pytest.mark.parametrize("settings", [dict(threshold=0.3), dict(threshold=None, temperature=0.8)])
def test_captured_steps_give_the_eager_tokens(monkeypatch, settings):
    stand_in = graph_stand_in.install_sampling(monkeypatch)
    model = causal_model()
    sampler, rows = NemotronDiffusionSampler(model, TOKENIZER), prompts(model, (11, 2, 5))
    options = dict(max_new_tokens=20, seed=1, stop_at_eos=False, **settings)
    eager = sampler.sample(rows, cuda_graph=False, return_dict=True, **options)
    graphed = sampler.sample(rows, return_dict=True, **options)
    assert graphed.stats.mode == "graph" and torch.equal(graphed.sequences, eager.sequences)
    assert graphed.stats.row_forwards == eager.stats.row_forwards
    assert all(map(torch.equal, graphed.histories, eager.histories))
    assert not stand_in.waited and not stand_in.foreign and stand_in.left == 0


@pytest.mark.parametrize(
    "inputs, settings, error, says",
    [
        ([[5], []], {}, ValueError, "at least one token.*row 1"),
        ([[5]], {"block_size": 1}, ValueError, "block_size must be at least 2"),
        ([[5]], {"block_size": None}, ValueError, "block_size must be at least 2"),
        ([[5]], {"threshold": -0.1}, ValueError, "threshold"),
        ([[5]], {"steps": 0}, ValueError, "steps must be at least 1"),
        ([[5]], {"max_thinking_tokens": -1}, ValueError, "max_thinking_tokens"),
        ([[5]], {"eos_token_id": 97}, ValueError, "eos_token_id"),
        ([[5]], {"right_shift_logits": True}, ValueError, "right_shift_logits"),
        ([[MASK_ID]], {}, ValueError, "mask token"),
        ([[5]], {"block_length": 8}, TypeError, "no setting block_length"),
        ([[5]], {"max_new_tokens": 0}, ValueError, "max_new_tokens"),
    ],
)
def test_bad_input_is_refused_before_the_model_runs(monkeypatch, inputs, settings, error, says):
    model = causal_model()
    sampler = NemotronDiffusionSampler(model, TOKENIZER)
    monkeypatch.setattr(type(model), "forward", lambda *a, **k: pytest.fail("the model has run"))
    with pytest.raises(error, match=says):
        sampler.sample(inputs, **settings)


def test_what_a_tokenizer_lacks_is_taken_from_the_model_or_said():
    model = causal_model("Llama", max_position_embeddings=66)
    model.config.mask_token_id, model.config.eos_token_id = MASK_ID, EOS
    bare = NemotronDiffusionSampler(model, SimpleNamespace(mask_token_id=None, eos_token_id=None))
    rows = prompts(model, (5, 3))
    assert torch.equal(bare.sample(rows, max_new_tokens=8), NemotronDiffusionSampler(model, TOKENIZER).sample(
        rows, max_new_tokens=8))  # fmt: skip
    model.config.eos_token_id, stops = 77, dict(max_new_tokens=24, threshold=0.3)
    own = NemotronDiffusionSampler(model, SimpleNamespace(mask_token_id=MASK_ID, eos_token_id=EOS))
    free = own.sample(rows, stop_at_eos=False, **stops)
    model.config.eos_token_id = int(free[0, 9])
    ended = own.sample(rows, **stops)
    assert torch.equal(ended[0, :10], free[0, :10]) and set(ended[0, 10:29].tolist()) == {EOS}
    with pytest.raises(ValueError, match="tokenizer with a token </think>"):
        bare.sample(rows, max_thinking_tokens=4)
    with pytest.raises(ValueError, match="infill"):
        bare.infill([[5, MASK_ID]])


def test_logits_that_are_not_finite_are_reported():
    model = causal_model("Llama", max_position_embeddings=67)
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="row 0: no logit was finite at step 0"):
        NemotronDiffusionSampler(model, TOKENIZER).sample(prompts(model, (5, 3)), max_new_tokens=8)


def test_defaults_are_those_of_the_field():
    config = NemotronDiffusionSamplerConfig()
    assert (config.block_size, config.threshold, config.temperature) == (8, 0.9, 0.0)
    assert config.with_length(100).steps is None
