"""A request's tokens depend on itself alone: not on who runs beside it, came before it or left."""

import random
import threading
import time

import pytest
import torch

pytest.importorskip("fastapi")

from types import SimpleNamespace

from dllm.core.samplers import MDLMSampler, ThresholdSampler
from dllm.demo.shipped import load_shipped
from dllm.demo.training.questions import TASKS
from dllm.fast.sampling import step as steps
from dllm.serve.batcher import Batcher
from dllm.serve.tickets import FAILED, FINISHED, Listener, Work
from tests.models import FIRST_WORD, MASK_ID, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

T = 4.0  # at 1 the shipped model is so sure that most answers are those of 0, and another seed would not show
WAIT = 300.0


class Told(Listener):
    """Keeps how a row ended."""

    def __init__(self):
        self.end, self.ended = None, threading.Event()

    def on_end(self, end):
        self.end = end
        self.ended.set()

    def tokens(self):
        assert self.ended.wait(WAIT) and self.end.kind == FINISHED, self.end
        return self.end.tokens


class Requests:
    """Prompts of a sampler with settings of their own."""

    def __init__(self, sampler, prompts, seed=0):
        self.sampler, self.prompts = sampler, prompts
        rng = random.Random(seed)
        kind = isinstance(sampler, MDLMSampler)
        self.own = []
        for _ in prompts:
            new = rng.randint(3, 24)
            own = dict(max_new_tokens=new, block_size=None, temperature=T, seed=[rng.randrange(2**63)])
            self.own.append(own | (dict(steps=rng.randint(2, new)) if kind else {}))

    def work(self, number):
        return Work.of(self.sampler.plan([self.prompts[number]], **self.own[number]))

    def alone(self, number):
        """What a call of `sample` gives."""
        return self.sampler.sample([self.prompts[number]], **self.own[number])[0].tolist()


def shipped(count, kind=MDLMSampler):
    """Word problems for the shipped model."""
    model, tokenizer = load_shipped()
    texts = [question.text for question in TASKS["problems"](count, 0)]
    return Requests(
        kind(model, tokenizer), [tokenizer(text).input_ids[: 5 + 3 * (i % 12)] for i, text in enumerate(texts)]
    )


def untrained(count, kind=MDLMSampler):
    """Random prompts for a model that is sure of nothing."""
    tokenizer, rng = SimpleNamespace(mask_token_id=MASK_ID, eos_token_id=40, pad_token_id=1), random.Random(1)
    prompts = [[rng.randrange(FIRST_WORD, 97) for _ in range(rng.randint(1, 60))] for _ in range(count)]
    return Requests(kind(tiny("modernbert"), tokenizer), prompts)


def in_traffic(requests, *, rows, gap=0.0, leaving=0.0, seed=2):
    """The tokens of all requests by number, through a batcher.

    Args:
        rows: at once, at most.
        gap: mean seconds between arrivals.
        leaving: share of them that are given up at random moments; these are absent.
    """
    rng, count = random.Random(seed), len(requests.prompts)
    batcher, told, gone = Batcher(requests.sampler.model, rows=rows, max_queue=count), {}, set()
    batcher.start()
    try:
        for number in rng.sample(range(count), count):
            told[number] = Told()
            tickets = batcher.submit(requests.work(number), [told[number]])
            if rng.random() < leaving:
                gone.add(number)
                threading.Timer(rng.random() * 0.1, batcher.cancel, [tickets]).start()
            if gap:
                time.sleep(rng.expovariate(1 / gap))
        return {number: each.tokens() for number, each in told.items() if number not in gone}
    finally:
        batcher.close()


# alone: rows 1. 8 and 16 at once. As they come, 2 ms apart, a tenth of them leaving.
TRAFFIC = {
    "alone": dict(rows=1),
    "8 rows": dict(rows=8),
    "16 rows": dict(rows=16),
    "as they come": dict(rows=16, gap=0.002, leaving=0.1),
}


def check(requests):
    expected = {number: requests.alone(number) for number in range(len(requests.prompts))}
    for name, how in TRAFFIC.items():
        found = in_traffic(requests, **how)
        wrong = [number for number, tokens in found.items() if tokens != expected[number]]
        assert wrong == [], f"{len(wrong)} of {len(found)} {name}"
        assert len(found) == len(expected) or (name == "as they come" and len(found) >= 0.7 * len(expected))


@pytest.mark.parametrize(
    ("source", "kind", "count"),
    [(shipped, MDLMSampler, 8), (untrained, MDLMSampler, 16), (untrained, ThresholdSampler, 12)],
)
def test_tokens_are_those_of_sample(source, kind, count):
    check(source(count, kind))


@pytest.mark.exhaustive
@pytest.mark.parametrize("source", [shipped, untrained])
def test_tokens_of_three_hundred(source):
    check(source(300))


@pytest.mark.parametrize("source", [shipped, untrained])
def test_the_seed_decides(source):
    """The power of the comparison: with other seeds most of the tokens are others."""
    requests = source(5)
    before = [requests.alone(number) for number in range(5)]
    for own in requests.own:
        own["seed"] = [own["seed"][0] ^ 1]
    assert sum(requests.alone(number) != tokens for number, tokens in enumerate(before)) >= 4


@pytest.mark.parametrize("source", [shipped, untrained])
def test_seeds_by_row_number_are_found_out(source, monkeypatch):
    """The comparison fails for a loop that draws by a row's place in the batch."""
    requests, real = source(6), steps.list_candidates
    expected = [requests.alone(number) for number in range(6)]

    def by_place(tokens, schedule, seeds, **options):
        return real(tokens, schedule, torch.arange(len(seeds)), **options)

    monkeypatch.setattr(steps, "list_candidates", by_place)
    found = in_traffic(requests, rows=8)
    assert sum(tokens != expected[number] for number, tokens in found.items()) >= 5


def test_a_row_without_a_finite_logit_leaves_the_others_as_they_are():
    """It fails alone; those beside it have their tokens."""
    poison, requests = 96, untrained(12)
    requests.prompts = [[min(token, 95) for token in prompt] for prompt in requests.prompts]
    expected = [requests.alone(number) for number in range(12)]
    requests.prompts[5] = [*requests.prompts[5][:-1], poison]

    def poisoned(module, arguments, states):
        return torch.where((arguments[0] == poison)[..., None], torch.nan, states)

    requests.sampler.model.get_input_embeddings().register_forward_hook(poisoned)
    batcher, told = Batcher(requests.sampler.model, rows=16), [Told() for _ in range(12)]
    for number, listener in enumerate(told):
        batcher.submit(requests.work(number), [listener])
    batcher.start()
    try:
        assert told[5].ended.wait(WAIT) and told[5].end.kind == FAILED
        assert "no logit was finite" in str(told[5].end.error)
        assert all(told[number].tokens() == expected[number] for number in range(12) if number != 5)
    finally:
        batcher.close()
