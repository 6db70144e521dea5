"""Requests of mixed lengths in traffic: each gets, bit for bit, what it gets alone."""

import random
from types import SimpleNamespace

import pytest
import torch

from dllm.core import samplers
from dllm.fast.sampling import step as steps
from dllm.fast.sampling.running import Running
from tests.models import FIRST_WORD, MASK_ID, favour, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

EOS = 40
TOKENIZER = SimpleNamespace(mask_token_id=MASK_ID, eos_token_id=EOS, pad_token_id=1)
MULTIPLE = 16  # 3 widths for the lengths below
# At a temperature of 4 the proposals of a step are nearly uniform: another seed is another text.
SETTINGS = dict(temperature=4.0, block_size=6)
CASES = {
    "mdlm": (samplers.MDLMSampler, dict(steps=6)),
    "drawn steps": (samplers.MDLMSampler, dict(steps=6, stochastic_transfer=True, stop_at_eos=True)),
    "guided, shifted": (samplers.MDLMSampler, dict(steps=6, cfg_scale=0.5, right_shift_logits=True)),
    "threshold": (samplers.ThresholdSampler, dict(threshold=0.05, stop_at_eos=True)),
}


def requests(number, kind, model, settings):
    """Plans of one row each: prompts of 1 to 20 tokens, 3 to 16 new ones, seeds of their own."""
    rng, sampler = random.Random(5), kind(model, TOKENIZER)
    plans = []
    for _ in range(number):
        prompt = [rng.randrange(FIRST_WORD, 97) for _ in range(rng.randint(1, 20))]
        own = dict(max_new_tokens=rng.randint(3, 16), seed=[rng.randrange(2**63)])
        plans.append(sampler.plan([prompt], **SETTINGS | settings | own))
    return plans


def alone(model, plan):
    """Tokens and forwards of one request."""
    running = Running(model, plan.policy, width_multiple=MULTIPLE)
    running.join(plan.batch)
    while True:
        for row in running.step():
            return row.tokens.tolist(), row.forwards


def in_traffic(model, plans, at_once=7, gives_up=0.1):
    """The same of each, with requests that come at random and some that are given up; those are absent."""
    rng, running, waiting, found, number = random.Random(6), None, list(enumerate(plans)), {}, {}
    while waiting or running:
        if running is None:
            running = Running(model, waiting[0][1].policy, width_multiple=MULTIPLE)
        while waiting and len(running) < at_once and rng.random() < 0.6:
            place, plan = waiting.pop(0)
            (id_,) = running.join(plan.batch, plan.policy)
            number[id_] = place
        if running and rng.random() < gives_up:
            running.leave([rng.choice(running.ids)])
        for row in running.step():
            found[number[row.id]] = row.tokens.tolist(), row.forwards
    return found


@pytest.mark.parametrize("name", CASES)
def test_alone_and_in_traffic(name):
    kind, settings = CASES[name]
    model = favour(tiny("bert"), EOS, 2.0)  # rows end early, too
    plans = requests(100 if name == "mdlm" else 40, kind, model, settings)
    found = in_traffic(model, plans)
    assert len(plans) / 2 < len(found) < len(plans)
    assert {place: alone(model, plans[place]) for place in found} == found


def test_seeds_by_row_number_are_found_out(monkeypatch):
    """The same comparison fails for a loop that draws by a row's place in the batch."""
    kind, settings = CASES["mdlm"]
    model, real = tiny("bert"), steps.list_candidates

    def by_place(tokens, schedule, seeds, **options):
        return real(tokens, schedule, torch.arange(len(seeds)), **options)

    plans = requests(12, kind, model, settings)
    monkeypatch.setattr(steps, "list_candidates", by_place)
    found = in_traffic(model, plans, gives_up=0.0)
    wrong = sum(alone(model, plans[place]) != tokens for place, tokens in found.items())
    assert wrong > len(found) / 2


@pytest.mark.parametrize("family", ["bert", "modernbert", "roberta"])
def test_a_batch_as_wide_as_its_widest_row(family):
    """Without fixed widths the tokens are those of `sample`, but for near ties: here there are none."""
    model = tiny(family)
    sampler, rng = samplers.MDLMSampler(model, TOKENIZER), random.Random(7)
    prompts = [[rng.randrange(FIRST_WORD, 97) for _ in range(length)] for length in (20, 3, 9)]
    settings = dict(steps=12, max_new_tokens=12, block_size=6, temperature=1.0)
    plans = [sampler.plan([prompt], seed=[place], **settings) for place, prompt in enumerate(prompts)]
    running, widths, found = Running(model, plans[0].policy), [], {}
    for plan in plans:
        running.join(plan.batch, plan.policy)
        running.advance()
        assert running.collect() == []
    while running:
        widths.append(running.state.tokens.shape[1])
        found |= {row.id: row.tokens.tolist() for row in running.step()}
    assert sorted(set(widths), reverse=True) == widths[:1] + [21] * (21 in widths)  # the longest row ends first
    for place, prompt in enumerate(prompts):
        assert found[place] == sampler.sample([prompt], seed=[place], **settings)[0].tolist()


def test_padding_ends_no_row():
    """The padding of a batch is EOS: it must not end a row whose masks are gone before its steps are."""
    sampler = samplers.MDLMSampler(tiny("bert"), TOKENIZER)
    settings = dict(steps=12, max_new_tokens=3, stochastic_transfer=True, stop_at_eos=True, return_dict=True)
    settings |= dict(temperature=1.0)
    rows = [[7], [8, 9, 10, 11], [12, 13]]
    together = sampler.sample(rows, seed=[1, 2, 3], **settings)
    apart = [sampler.sample([row], seed=[1 + place], **settings) for place, row in enumerate(rows)]
    assert together.stats.row_forwards == [one.stats.row_forwards[0] for one in apart]
