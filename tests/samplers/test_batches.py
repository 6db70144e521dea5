"""A row does not know its batch: random samplers, settings and rows; alone, and among others in another order."""

import random
from types import SimpleNamespace

import pytest
import torch

from dllm.core import samplers
from tests.models import FIRST_WORD, MASK_ID, favour, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

EOS = 40
TOKENIZER = SimpleNamespace(mask_token_id=MASK_ID, eos_token_id=EOS, pad_token_id=1)
LONGEST = 10  # rows; short enough for many cases, long enough for several blocks
CASES = 20


def schedule(rng):
    return dict(steps=rng.choice((1, 3, 8, 30)), remasking=rng.choice(("low_confidence", "random")))


def dream(rng):
    alg = rng.choice(("origin", "maskgit_plus", "topk_margin", "entropy"))
    return dict(
        alg=alg,
        alg_temp=0.0 if alg == "origin" else rng.choice((None, 0.2, 1.0)),
        steps=rng.choice((1, 4, 9, 40)),
        top_p=rng.choice((None, 0.9, 0.3)),
        top_k=rng.choice((None, 1, 5, 1000)),
        schedule=rng.choice(("alpha", "time")),
    )


def rnd1(rng):
    filters = dict(top_p=rng.choice((None, 0.9, 0.3)), top_k=rng.choice((None, 1, 5, 100)))
    steps = dict(steps=rng.choice((1, 4, 9, 40)), max_new_tokens=rng.randint(2, LONGEST))
    return filters | steps | dict(greedy=rng.random() < 0.3, add_eos_at_end=rng.random() < 0.5)


OWN = {
    samplers.MDLMSampler: lambda rng: schedule(rng) | dict(stochastic_transfer=rng.random() < 0.5),
    samplers.LLaDASampler: lambda rng: schedule(rng) | dict(steps=2520),  # so many that up to 10 blocks divide them
    samplers.DreamSampler: dream,
    samplers.RND1Sampler: rnd1,
    samplers.ThresholdSampler: lambda rng: rng.choice(
        (dict(threshold=0.0), dict(threshold=0.3), dict(threshold=None, factor=rng.choice((0.1, 1.0, 1.5))))
    ),
    samplers.LLaDA2Sampler: lambda rng: dict(steps=rng.choice((1, 3, 8)), threshold=rng.choice((0.0, 0.3, 0.95))),
    samplers.EntropyBoundSampler: lambda rng: dict(gamma=rng.choice((0.0, 0.5, 3.0, 100.0))),
}


def shared(rng, vocab_size):
    words = range(FIRST_WORD, vocab_size)
    return dict(
        max_new_tokens=rng.randint(1, LONGEST),
        block_size=rng.choice((None, 1, 3, 5, 50)),
        temperature=rng.choice((0.0, 0.3, 1.0, 2.0)),
        cfg_scale=rng.choice((0.0, 0.0, 0.5)),
        cfg_keep_tokens=rng.choice((None, [*range(5, 50)])),
        suppress_tokens=rng.choice((None, rng.sample(words, 30))),
        begin_suppress_tokens=rng.choice((None, rng.sample(words, 30))),
        right_shift_logits=rng.random() < 0.3,
    )


@pytest.mark.covering(1)
@pytest.mark.parametrize("case", range(CASES))
@pytest.mark.parametrize("bias", [None, EOS, MASK_ID], ids=["plain", "ends", "holes"])
def test_alone_and_in_any_batch(bias, case, models):
    rng, model = random.Random(f"{bias} {case}"), models[bias]
    kind = rng.choice(list(OWN))
    settings = shared(rng, model.config.vocab_size) | OWN[kind](rng)
    fill = rng.random() < 0.3
    if not fill:
        settings["stop_at_eos"] = rng.random() < 0.5
    rows = [
        [rng.randrange(FIRST_WORD, model.config.vocab_size) for _ in range(rng.randint(1, LONGEST))]
        for _ in range(rng.randint(2, 4))
    ]
    if fill:
        rows = [[MASK_ID if rng.random() < 0.6 else token for token in row] for row in rows]
    seeds = [rng.randrange(2**64) for _ in rows]
    sampler = kind(model, TOKENIZER)

    def run(chosen):
        call = sampler.infill if fill else sampler.sample
        return call([rows[i] for i in chosen], seed=[seeds[i] for i in chosen], return_dict=True, **settings)

    order = rng.sample(range(len(rows)), len(rows))
    together = run(order)
    for place, i in enumerate(order):
        alone = run([i])
        width = alone.sequences.shape[1]
        row = together.sequences[place]
        assert torch.equal(row[-width:] if sampler.pads_left else row[:width], alone.sequences[0])
        assert alone.stats.row_forwards == [together.stats.row_forwards[place]]
    assert together.stats.forwards == max(together.stats.row_forwards)
    assert 0 <= together.stats.useful_tokens <= together.stats.tokens


@pytest.fixture(scope="module")
def models(device):
    """One that ends rows early and one that leaves holes besides a plain one; positions are learned: no two alike."""
    raised = {None: 0.0, EOS: 5.0, MASK_ID: 23.0}
    return {token: favour(tiny("bert"), token or 0, by).to(device) for token, by in raised.items()}
