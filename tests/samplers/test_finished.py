"""Rows that the caller ends: with every kind of sampler, alone and in a batch, eager and as graph replays."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from dllm.core import samplers
from dllm.fast.sampling import graphs, running
from tests import graph_stand_in
from tests.causal_models import EOS, causal_model
from tests.models import FIRST_WORD, MASK_ID, favour, tiny
from tests.samplers.test_cached_calls import CACHED

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = SimpleNamespace(mask_token_id=MASK_ID, eos_token_id=EOS, pad_token_id=1)
NEW = 20
# Rows end after one of these, a fifth of the vocabulary: some early, some late, some not at all.
STOPS = frozenset(range(FIRST_WORD, 97, 5))
PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16, 17], [8, 30], [60, 61, 62, 63]]
PLAIN = {
    "mdlm": (samplers.MDLMSampler, dict(steps=14)),
    "mdlm, guided": (samplers.MDLMSampler, dict(steps=14, cfg_scale=0.5)),
    "mdlm, shifted": (samplers.MDLMSampler, dict(steps=20, right_shift_logits=True)),
    "llada": (samplers.LLaDASampler, dict(steps=12)),
    "dream": (samplers.DreamSampler, dict(steps=20, block_size=None)),
    "rnd1": (samplers.RND1Sampler, dict(steps=20, block_size=None)),
    "threshold": (samplers.ThresholdSampler, dict(threshold=0.3)),
    "entropy bound": (samplers.EntropyBoundSampler, dict(gamma=1.0)),
    "llada2, whole rows": (samplers.LLaDA2Sampler, dict(threshold=0.3, steps=8)),
}
CASES = PLAIN | CACHED


def stops(row, tokens):
    return not STOPS.isdisjoint(tokens)


def sampler_of(name, device):
    kind = CASES[name][0]
    model = causal_model(device=str(device)) if name in CACHED or name == "rnd1" else tiny("bert").to(device)
    return kind(model, TOKENIZER)


def call(name, sampler, rows=PROMPTS, **changed):
    settings = dict(max_new_tokens=NEW, block_size=8, temperature=0.9, seed=3, stop_at_eos=False)
    return sampler.sample(rows, return_dict=True, **settings | CASES[name][1] | changed)


def generated(output, sampler, i, prompt):
    """The tokens that row i of a batch got after its prompt."""
    row = output.sequences[i].tolist()
    begin = len(row) - NEW if sampler.pads_left else len(prompt)
    return row[begin : begin + NEW]


@pytest.mark.parametrize("name", CASES)
def test_the_tokens_before_the_end_stay(name, device):
    """Nothing else changes: not for a row that ends, nor for the others; and every call is a longer final prefix."""
    sampler, asked = sampler_of(name, device), {i: [] for i in range(len(PROMPTS))}

    def finished(row, tokens):
        asked[row].append(tokens)
        return stops(row, tokens)

    whole, ended = call(name, sampler), call(name, sampler, finished=finished)
    for i, prompt in enumerate(PROMPTS):
        before, after = generated(whole, sampler, i, prompt), generated(ended, sampler, i, prompt)
        calls = asked[i]
        assert all(len(a) < len(b) for a, b in itertools.pairwise(calls))
        assert all(tokens == before[: len(tokens)] for tokens in calls)
        assert not any(stops(i, tokens) for tokens in calls[:-1])
        if calls and stops(i, calls[-1]):
            assert after == calls[-1] + [EOS] * (NEW - len(calls[-1]))
            assert ended.stats.row_forwards[i] < whole.stats.row_forwards[i]
        else:
            assert after == before and ended.stats.row_forwards[i] == whole.stats.row_forwards[i]
    assert any(calls and stops(i, calls[-1]) for i, calls in asked.items())
    assert ended.stats.forwards == max(ended.stats.row_forwards)


@pytest.mark.parametrize("name", CASES)
def test_alone_and_in_a_batch(name, device):
    sampler = sampler_of(name, device)
    both = call(name, sampler, finished=stops, stop_at_eos=True)
    for i, prompt in enumerate(PROMPTS):
        alone = call(name, sampler, [prompt], seed=3 + i, finished=stops, stop_at_eos=True)
        assert generated(alone, sampler, 0, prompt) == generated(both, sampler, i, prompt)
        assert alone.stats.row_forwards == [both.stats.row_forwards[i]]


REPLAYED = ["mdlm", "mdlm, guided", "dream", "bd3lm", "llada21"]
STEP_BY_STEP = ["prefix", "dual, shifted, guided"]  # their passes are not known in advance


@pytest.mark.parametrize(
    ("name", "count"), [(name, 1) for name in REPLAYED + STEP_BY_STEP] + [(name, 4) for name in REPLAYED]
)
def test_replays(name, count, monkeypatch):
    """Rows end where a GPU is asked, which may be later; the tokens before are the same. No step waits for it."""
    sampler = sampler_of(name, "cpu")
    eager = call(name, sampler, finished=stops, cuda_graph=False)
    whole = call(name, sampler, cuda_graph=False)
    monkeypatch.setitem(running.POLL_EVERY, "cpu", 3)
    monkeypatch.setattr(graphs, "WORTH_SEVERAL", 0 if count > 1 else 1000)
    stand_in = graph_stand_in.install_sampling(monkeypatch)
    call(name, sampler, keep_histories=False)
    waited = set(stand_in.waited)  # the model's own mask of padded rows
    graphed = call(name, sampler, finished=stops, keep_histories=False)
    assert graphed.stats.mode == "graph" and set(stand_in.waited) == waited
    assert max(stand_in.replayed) == count
    assert not bool((graphed.sequences == MASK_ID).any())
    for i, prompt in enumerate(PROMPTS):
        row, soon = generated(graphed, sampler, i, prompt), generated(eager, sampler, i, prompt)
        full = generated(whole, sampler, i, prompt)
        end = next((n for n in range(NEW) if row[n:] == [EOS] * (NEW - n)), NEW)
        assert row[:end] == full[:end]
        first = next((n for n, token in enumerate(full) if token in STOPS), NEW)
        assert soon[: first + 1] == row[: first + 1]
    assert sum(graphed.stats.row_forwards) < sum(whole.stats.row_forwards)


def test_a_mask_that_stays_hides_what_follows(device):
    """A model that commits masks: only the tokens before the first of them are final."""
    model, seen = favour(tiny("bert"), MASK_ID, 23.0).to(device), []
    sampler = samplers.MDLMSampler(model, TOKENIZER)
    call("mdlm", sampler, finished=lambda row, tokens: seen.append(tokens))
    assert not any(MASK_ID in tokens for tokens in seen)


def test_all_rows_at_once(device):
    """The call ends with its last row."""
    sampler = sampler_of("threshold", device)
    out = call("threshold", sampler, finished=lambda row, tokens: True)
    assert out.stats.forwards < call("threshold", sampler).stats.forwards
    assert call("threshold", sampler, [], finished=stops).sequences.shape == (0, 0)


def test_stats_without_histories(device):
    sampler = sampler_of("mdlm", device)
    kept, bare = call("mdlm", sampler), call("mdlm", sampler, keep_histories=False)
    assert bare.histories is None and torch.equal(kept.sequences, bare.sequences)
    assert bare.stats.row_forwards == kept.stats.row_forwards


def test_what_is_refused(device):
    sampler = sampler_of("mdlm", device)
    with pytest.raises(TypeError, match="finished must be callable, got str"):
        call("mdlm", sampler, finished="x")
    sampler.tokenizer = SimpleNamespace(mask_token_id=MASK_ID, pad_token_id=1)
    with pytest.raises(ValueError, match="finished needs a tokenizer with an eos_token_id"):
        call("mdlm", sampler, finished=stops)
    with pytest.raises(TypeError, match="keep_histories must be True or False, got 1"):
        call("mdlm", sampler, keep_histories=1)


def test_an_error_of_the_caller_leaves_the_sampler_usable(device):
    sampler = sampler_of("mdlm", device)

    def fails(row, tokens):
        raise KeyError(row)

    with pytest.raises(KeyError):
        call("mdlm", sampler, finished=fails)
    assert not bool((call("mdlm", sampler).sequences == MASK_ID).any())
