"""Many prompts, some at a time: the rows of `sample`, each told of as soon as it is finished."""

from types import SimpleNamespace

import pytest
import torch

from dllm.core import samplers
from dllm.fast.sampling.rows import NoFiniteLogit
from tests.causal_models import causal_model
from tests.models import MASK_ID, favour, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

EOS = 40
TOKENIZER = SimpleNamespace(mask_token_id=MASK_ID, eos_token_id=EOS, pad_token_id=1)
PROMPTS = [[5 + (7 * row + 3 * i) % 80 for i in range(1 + (5 * row) % 9)] for row in range(11)]
CASES = {
    "mdlm": (samplers.MDLMSampler, dict(steps=8, temperature=0.9)),
    "threshold": (samplers.ThresholdSampler, dict(threshold=0.2, temperature=0.9, stop_at_eos=True)),
    "dream": (samplers.DreamSampler, dict(steps=8, block_size=None)),  # pads on the left
    "bd3lm": (samplers.BD3LMSampler, dict(steps=8, temperature=0.9)),  # has a cache
}


def sampler_of(name):
    return CASES[name][0](causal_model() if name == "bd3lm" else favour(tiny("bert"), EOS, 2.0), TOKENIZER)


def settings_of(name, **changed):
    return dict(max_new_tokens=8, block_size=4) | CASES[name][1] | changed


@pytest.mark.parametrize("multiple", [None, 8])
@pytest.mark.parametrize("name", CASES)
def test_the_rows_of_single_calls(name, multiple):
    sampler, seeds, told = sampler_of(name), list(range(7, 18)), []
    if name == "bd3lm" and multiple is not None:
        with pytest.raises(ValueError, match="width_multiple needs attention to whole rows"):
            sampler.sample_many(PROMPTS, seed=seeds, width_multiple=multiple, **settings_of(name))
        return
    done = sampler.sample_many(
        PROMPTS,
        rows=3,
        seed=seeds,
        width_multiple=multiple,
        on_row=lambda number, row: told.append(number),
        **settings_of(name),
    )
    assert sorted(told) == list(range(len(PROMPTS)))
    for prompt, seed, row in zip(PROMPTS, seeds, done, strict=True):
        alone = sampler.sample([prompt], seed=[seed], return_dict=True, **settings_of(name))
        assert torch.equal(row.tokens, alone.sequences[0])
        assert [row.forwards] == alone.stats.row_forwards
        assert row.seconds > 0


def test_places_are_taken_at_once(monkeypatch):
    """Three rows run until fewer are left, also where some end early."""
    from dllm.fast.sampling.running import Running

    sampler, widths, real = sampler_of("threshold"), [], Running.advance
    monkeypatch.setattr(Running, "advance", lambda self: widths.append(len(self)) or real(self))
    done = sampler.sample_many(PROMPTS, rows=3, seed=0, **settings_of("threshold"))
    assert len({row.forwards for row in done}) > 1
    assert widths[: widths.index(2)] == [3] * widths.index(2) and sorted(widths, reverse=True) == widths
    assert sum(widths) == sum(row.forwards for row in done)


def test_rows_that_the_caller_ends():
    sampler, asked = sampler_of("mdlm"), set()

    def finished(number, tokens):
        asked.add(number)
        return number % 2 == 0

    whole = sampler.sample_many(PROMPTS, rows=4, seed=0, **settings_of("mdlm"))
    ended = sampler.sample_many(PROMPTS, rows=4, seed=0, finished=finished, **settings_of("mdlm"))
    assert asked == set(range(len(PROMPTS)))
    for number, (one, other) in enumerate(zip(whole, ended, strict=True)):
        if number % 2:
            assert torch.equal(one.tokens, other.tokens)
        else:
            assert other.forwards < one.forwards and int(other.tokens[-1]) == EOS


def test_graphs_keep_their_batches(monkeypatch):
    from tests import graph_stand_in

    sampler = sampler_of("mdlm")
    eager = sampler.sample_many(PROMPTS, rows=4, seed=0, **settings_of("mdlm"))
    stand_in = graph_stand_in.install_sampling(monkeypatch)
    graphed = sampler.sample_many(PROMPTS, rows=4, seed=0, **settings_of("mdlm"))
    assert stand_in.captured and all(torch.equal(a.tokens, b.tokens) for a, b in zip(eager, graphed, strict=True))


def test_what_is_refused_and_what_fails():
    sampler = sampler_of("mdlm")
    assert sampler.sample_many([], **settings_of("mdlm")) == []
    with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
        sampler.sample_many(PROMPTS, rows=0)
    with pytest.raises(ValueError, match="width_multiple must be at least 1, got 0"):
        sampler.sample_many(PROMPTS, width_multiple=0, **settings_of("mdlm"))
    with pytest.raises(TypeError, match="on_row must be callable, got int"):
        sampler.sample_many(PROMPTS, on_row=3)
    with pytest.raises(ValueError, match="in row 1"):
        sampler.sample_many([[5], [MASK_ID]], **settings_of("mdlm"))
    with torch.no_grad():
        sampler.model.get_output_embeddings().bias.fill_(torch.nan)
    with pytest.raises(NoFiniteLogit, match="row 7: no logit was finite at step 0"):  # the longest, which is the first
        sampler.sample_many(PROMPTS, rows=2, **settings_of("mdlm"))
