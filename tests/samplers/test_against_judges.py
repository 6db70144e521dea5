"""Every sampler on the one fast loop, held against its plain loop over a row alone: same tokens after every step."""

import functools

import pytest
import torch

from dllm.core import samplers
from dllm.core.schedulers import CosineAlphaScheduler
from tests import reference_samplers as judges
from tests.models import MASK_ID, PAD_ID, favour, make_prompt, shared, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

EOS, EOT = 40, 41
LENGTHS = (5, 1, 8)  # of the prompts in a batch


class Tokenizer:
    mask_token_id, eos_token_id, pad_token_id = MASK_ID, EOS, PAD_ID

    def get_vocab(self):
        return {"<|eot_id|>": EOT}


def prompts(model, lengths=LENGTHS, seed=0):
    return [make_prompt(model, 1, length, seed + i)[0].tolist() for i, length in enumerate(lengths)]


def assert_same(got: torch.Tensor, trace, history):
    """Equal to the judge's after every step, up to near ties, of which none is expected."""
    difference = judges.first_difference([h.cpu() for h in history], trace)
    assert difference is None or difference.near_tie, difference
    assert difference is None, f"a near tie on a fixed seed: {difference}"
    assert torch.equal(got, history[-1])


def check(sampler, judge, model, rows, *, infill=False, seed=11, **settings):
    """A batch, row by row against the judge."""
    call = sampler.infill if infill else sampler.sample
    out = call(rows, seed=seed, return_dict=True, **settings)
    for i, row in enumerate(rows):
        trace = judge(model, torch.tensor(row, device=out.sequences.device), mask_id=MASK_ID, seed=seed + i)
        width = len(trace.canvas)
        column = slice(-width, None) if sampler.pads_left and width else slice(width)
        got = out.sequences[i, column]
        assert_same(got, trace, [canvas[i, column] for canvas in out.histories])
        rest = torch.ones(out.sequences.shape[1], dtype=torch.bool)
        rest[column] = False
        assert bool((out.sequences[i, rest.to(got.device)] == EOS).all())
        assert out.stats.row_forwards[i] == trace.forwards
    assert out.stats.forwards == max(out.stats.row_forwards, default=0)
    return out


MDLM = {
    "plain": dict(steps=12),
    "one step a token": dict(steps=40),
    "one step a block": dict(steps=1),
    "random": dict(steps=10, remasking="random"),
    "warm": dict(steps=12, temperature=0.8),
    "warm random binomial": dict(steps=12, temperature=1.0, remasking="random", stochastic_transfer=True),
    "guided": dict(steps=9, cfg_scale=0.7, temperature=0.5),
    "guided, some kept": dict(steps=9, cfg_scale=0.7, cfg_keep_tokens=[*range(5, 60)]),
    "suppressed": dict(steps=12, suppress_tokens=[*range(20, 60)], begin_suppress_tokens=[*range(60, 90)]),
    "shifted": dict(steps=12, right_shift_logits=True, temperature=0.6),
    "whole": dict(steps=7, block_size=64),
}


@pytest.mark.covering(2)
@pytest.mark.parametrize("scheduler", [None, CosineAlphaScheduler()], ids=["linear", "cosine"])
@pytest.mark.parametrize("family", ["modernbert", "bert", "roberta"])
@pytest.mark.parametrize("name", MDLM)
def test_mdlm(name, family, scheduler, device):
    model, settings = shared(family, device), dict(max_new_tokens=20, block_size=8) | MDLM[name]
    judge = functools.partial(judges.mdlm_sample, scheduler=scheduler, **settings)
    check(samplers.MDLMSampler(model, Tokenizer(), scheduler), judge, model, prompts(model), **settings)


def test_mdlm_up_to_a_length(device):
    model, settings = shared("bert", device), dict(max_new_tokens=None, max_length=24, block_size=6, steps=9)
    judge = functools.partial(judges.mdlm_sample, **settings)
    out = check(samplers.MDLMSampler(model, Tokenizer()), judge, model, prompts(model), **settings)
    assert out.sequences.shape == (3, 24)


@pytest.mark.parametrize("block_size", [None, 4, 7])
@pytest.mark.parametrize("name", ["plain", "warm random binomial", "guided", "shifted"])
def test_infill(name, block_size, device):
    """Rows of different length, with many masks, a few, none."""
    model, settings = shared("modernbert", device), MDLM[name] | dict(block_size=block_size)
    rows = prompts(model, (14, 9, 6, 3))
    generator = torch.Generator().manual_seed(6)
    for i in (0, 1, 3):
        rows[i] = [MASK_ID if torch.rand((), generator=generator) < 0.5 else token for token in rows[i]]
    judge = functools.partial(judges.mdlm_infill, **settings)
    out = check(samplers.MDLMSampler(model, Tokenizer()), judge, model, rows, infill=True, **settings)
    assert out.sequences[2].tolist() == rows[2] + [EOS] * 8 and out.stats.row_forwards[2] == 0


@pytest.mark.parametrize("settings", [{}, dict(logits_eos_inf=True), dict(confidence_eos_eot_inf=True)], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_llada(settings, temperature, device):
    model = favour(favour(tiny("bert"), EOS, 2.0), EOT, 2.0).to(device)
    lengths = dict(steps=8, temperature=temperature)
    judge = functools.partial(
        judges.llada, gen_length=16, block_length=8, eos_id=EOS, eot_id=EOT, **lengths, **settings
    )
    sampler = samplers.LLaDASampler(model, Tokenizer())
    check(sampler, judge, model, prompts(model), max_new_tokens=16, block_size=8, **lengths, **settings)


DREAM = {
    "origin": dict(top_k=None),
    "origin, filtered": dict(top_k=9, top_p=0.8),
    "maskgit": dict(alg="maskgit_plus", top_k=None),
    "maskgit, cold": dict(alg="maskgit_plus", temperature=0.0, top_k=None),
    "maskgit, cold, filtered": dict(alg="maskgit_plus", temperature=0.0, top_p=0.7),
    "margin": dict(alg="topk_margin", temperature=0.5, top_k=5),
    "entropy": dict(alg="entropy", temperature=0.7, top_p=0.9, top_k=20),
    "maskgit, drawn": dict(alg="maskgit_plus", alg_temp=0.4, top_k=None),
    "margin, drawn": dict(alg="topk_margin", alg_temp=0.2, top_k=30),
    "entropy, drawn": dict(alg="entropy", alg_temp=0.3, top_p=0.95, top_k=None),
}


@pytest.mark.parametrize("schedule", ["alpha", "time"])
@pytest.mark.parametrize("name", DREAM)
def test_dream(name, schedule, device):
    model, settings = shared("modernbert", device), dict(max_new_tokens=16, steps=9) | DREAM[name]
    judge = functools.partial(judges.dream, schedule="B" if schedule == "alpha" else "time", **settings)
    sampler = samplers.DreamSampler(model, Tokenizer())
    check(sampler, judge, model, prompts(model), schedule=schedule, **settings)


def test_dream_more_steps_than_tokens(device):
    model, settings = shared("bert", device), dict(max_new_tokens=6, steps=50, alg="entropy", top_k=None)
    judge = functools.partial(judges.dream, schedule="B", stochastic_transfer=True, **settings)
    check(samplers.DreamSampler(model, Tokenizer()), judge, model, prompts(model), stochastic_transfer=True, **settings)


RND1 = {
    "defaults": {},
    "warm": dict(temperature=1.0),
    "greedy": dict(greedy=True, temperature=0.4),
    "greedy, at temperature 0": dict(temperature=0.0),
    "top k": dict(temperature=0.9, top_k=7),
    "top p": dict(temperature=0.9, top_p=0.7),
    "top k, then top p": dict(temperature=1.3, top_k=12, top_p=0.8),
    "top k, then top p, greedy": dict(temperature=0.7, top_k=12, top_p=0.8, greedy=True),
}


@pytest.mark.covering(2)
@pytest.mark.parametrize("last_token", [PAD_ID, EOS])
@pytest.mark.parametrize("steps", [5, 9, 40])
@pytest.mark.parametrize("name", RND1)
def test_rnd1(name, steps, last_token, device):
    """Rows of different length share one batch, so those that are shorter end before the batch's last column."""
    model, settings = shared("modernbert", device), dict(max_new_tokens=16, steps=steps) | RND1[name]
    judge = functools.partial(judges.rnd1, last_token=last_token, **settings)
    sampler = samplers.RND1Sampler(model, Tokenizer())
    out = check(sampler, judge, model, prompts(model), add_eos_at_end=last_token == EOS, **settings)
    ends = [length + 15 for length in LENGTHS]
    assert [row[end] for row, end in zip(out.sequences.tolist(), ends, strict=True)] == [last_token] * 3


def test_rnd1_up_to_a_length(device):
    model, settings = shared("bert", device), dict(max_length=24, steps=7)
    judge = functools.partial(judges.rnd1, last_token=PAD_ID, **settings)
    out = check(samplers.RND1Sampler(model, Tokenizer()), judge, model, prompts(model), **settings)
    assert out.sequences.shape == (3, 24)


THRESHOLD = {
    "all but always": dict(threshold=0.01),
    "some": dict(threshold=0.3),
    "some, warm": dict(threshold=0.3, temperature=0.7),
    "one at a time": dict(threshold=1.5),
    "factor": dict(threshold=None, factor=1.2),
    "factor, warm, guided": dict(threshold=None, factor=1.0, temperature=0.5, cfg_scale=0.4),
}


@pytest.mark.parametrize("block_size", [5, 32])
@pytest.mark.parametrize("name", THRESHOLD)
def test_threshold(name, block_size, device):
    model, settings = shared("modernbert", device), dict(max_new_tokens=18, block_size=block_size) | THRESHOLD[name]
    judge = functools.partial(judges.threshold_decode, **settings)
    check(samplers.ThresholdSampler(model, Tokenizer()), judge, model, prompts(model), **settings)


@pytest.mark.covering(2)
@pytest.mark.parametrize("blocks_from", ["row", "prompt"])
@pytest.mark.parametrize("threshold", [0.2, 0.95])
@pytest.mark.parametrize("steps", [3, 8, 20])
def test_llada2(threshold, steps, blocks_from, device):
    model = shared("bert", device)
    settings = dict(max_new_tokens=20, block_size=8, steps=steps, threshold=threshold, temperature=0.4)
    settings["blocks_from"] = blocks_from
    judge = functools.partial(judges.llada2, **settings)
    check(samplers.LLaDA2Sampler(model, Tokenizer()), judge, model, prompts(model), **settings)


FILTERS = {
    "top k": dict(top_k=5, tempered=True),
    "top p": dict(top_p=0.7, tempered=True),
    "top k, confidence of the logits": dict(top_k=5),
    "temperature in the confidence": dict(tempered=True),
}


@pytest.mark.parametrize("name", FILTERS)
def test_llada2_filtered(name, device):
    model = shared("bert", device)
    settings = dict(max_new_tokens=20, block_size=8, steps=8, threshold=0.3, temperature=0.6, blocks_from="row")
    settings |= FILTERS[name]
    judge = functools.partial(judges.llada2, **settings)
    check(samplers.LLaDA2Sampler(model, Tokenizer()), judge, model, prompts(model), **settings)


def test_llada2_commits_so_many_tokens_a_step(device):
    model = shared("bert", device)
    settings = dict(max_new_tokens=20, block_size=10, threshold=1.0)
    judge = functools.partial(judges.llada2, blocks_from="row", steps=5, **settings)
    check(samplers.LLaDA2Sampler(model, Tokenizer()), judge, model, prompts(model), minimal_topk=4, **settings)


@pytest.mark.parametrize("block_size", [None, 6])
@pytest.mark.parametrize("gamma", [0.0, 1.5, 6.0, 100.0])
def test_entropy_bound(gamma, block_size, device):
    model = shared("modernbert", device)
    settings = dict(max_new_tokens=20, block_size=block_size, gamma=gamma, temperature=0.4)
    judge = functools.partial(judges.entropy_bound, **settings)
    check(samplers.EntropyBoundSampler(model, Tokenizer()), judge, model, prompts(model), **settings)


STOPPING = {
    "MDLMSampler": (judges.mdlm_sample, dict(steps=20, block_size=8)),
    "DreamSampler": (functools.partial(judges.dream, schedule="B"), dict(steps=10, top_k=None)),
    "RND1Sampler": (functools.partial(judges.rnd1, last_token=PAD_ID), dict(steps=20)),
    "ThresholdSampler": (judges.threshold_decode, dict(threshold=0.3, block_size=8)),
    "LLaDA2Sampler": (judges.llada2, dict(threshold=0.3, block_size=8, blocks_from="prompt")),
    "EntropyBoundSampler": (judges.entropy_bound, dict(gamma=2.0, block_size=8)),
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", STOPPING)
def test_stop_at_eos(name, temperature, device):
    """Rows stop one by one; one has nothing to say at all."""
    model = favour(tiny("bert"), EOS, 6.0).to(device)
    judge, settings = STOPPING[name]
    settings = settings | dict(max_new_tokens=20, temperature=temperature)
    judge = functools.partial(judge, eos_token_id=EOS, **settings)
    sampler, rows = getattr(samplers, name)(model, Tokenizer()), prompts(model, (5, 1, 8, 2, 3))
    out = check(sampler, judge, model, rows, stop_at_eos=True, **settings)
    assert out.stats.useful_tokens < out.stats.tokens and len(set(out.stats.row_forwards)) > 1


class TurnTokenizer(Tokenizer):
    eot_token_id = EOT


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", ["MDLMSampler", "RND1Sampler"])
def test_stop_at_the_end_of_a_turn(name, temperature, device):
    """It stays in the row; what follows becomes EOS, and a row that it ends costs nothing more."""
    model = favour(favour(tiny("bert"), EOT, 6.0), EOS, 2.0).to(device)
    judge, settings = STOPPING[name]
    settings = settings | dict(max_new_tokens=20, temperature=temperature)
    judge = functools.partial(judge, eos_token_id=EOS, eot_token_id=EOT, **settings)
    sampler, rows = getattr(samplers, name)(model, TurnTokenizer()), prompts(model, (5, 1, 8, 2, 3))
    out = check(sampler, judge, model, rows, stop_at_eos=True, **settings)
    ended = [row for row in out.sequences.tolist() if EOT in row and all(t == EOS for t in row[row.index(EOT) + 1 :])]
    assert ended and out.stats.useful_tokens < out.stats.tokens


@pytest.mark.parametrize("name", STOPPING)
def test_a_model_that_commits_masks(name, device):
    """Holes: what was committed as a mask may be filled by a later step."""
    model = favour(tiny("modernbert"), MASK_ID, 24.0).to(device)
    judge, settings = STOPPING[name]
    settings = settings | dict(max_new_tokens=16, temperature=1.0)
    judge = functools.partial(judge, **settings)
    out = check(getattr(samplers, name)(model, Tokenizer()), judge, model, prompts(model), **settings)
    assert bool((out.sequences == MASK_ID).any())
