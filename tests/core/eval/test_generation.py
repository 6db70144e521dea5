"""Requests of unequal length to texts: the same in any batch, ended early, and refused before the model runs."""

import logging
import random
from types import SimpleNamespace

import pytest
import torch

from dllm.core import samplers
from dllm.core.eval.generation import GenerationRequest, generate_requests
from dllm.core.eval.stopping import Stopping
from tests.causal_models import causal_model
from tests.core.eval.letters import END_OF_TURN, LetterTokenizer
from tests.models import FIRST_WORD, MASK_ID, favour, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

NEW = 20
OVERRIDES = [{}, {"max_new_tokens": 13}, {"temperature": 0.0}]
KINDS = {
    "mdlm": (samplers.MDLMSampler, dict(steps=20, block_size=8)),
    "bd3lm": (samplers.BD3LMSampler, dict(steps=20, block_size=8)),
    "dual": (samplers.FastDLLMSampler, dict(cache="dual", threshold=0.3, block_size=8)),
    "dream": (samplers.DreamSampler, dict(steps=20, alg="entropy", block_size=10)),
    "llada2": (samplers.LLaDA2Sampler, dict(cache=True, threshold=0.3, steps=8, block_size=8)),
    "llada21": (
        samplers.LLaDA21Sampler,
        dict(cache=True, threshold=0.3, steps=8, block_size=8, edit_threshold=0.3, edit_steps=4),
    ),
    "rnd1": (samplers.RND1Sampler, dict(steps=20, block_size=10)),
}


def sampler_of(name, tokenizer=None):
    """A toy that ends some rows with an EOS of its own."""
    model = tiny("bert") if name == "mdlm" else causal_model(favoured=2.0)
    return KINDS[name][0](model, tokenizer or LetterTokenizer())


def config_of(name, sampler, **changed):
    return sampler.config_class(**dict(max_new_tokens=NEW, temperature=0.9) | KINDS[name][1] | changed)


def requests_of(count=11, seed=0):
    """Prompts of 1 to 12 tokens; stop strings that come early, late or never. No prompt is empty: in a row of nothing
    but masks, rotary positions tell none from another, and rounding alone ranks them."""
    rng = random.Random(seed)
    return [
        GenerationRequest(
            [rng.randrange(FIRST_WORD, 97) for _ in range(rng.randint(1, 12))],
            rng.choice([("ab",), ("dda", "cc"), (), ("abcdabcd",)]),
            seed=rng.randrange(2**63),
            overrides=rng.choice(OVERRIDES),
        )
        for _ in range(count)
    ]


def told(results):
    return [(one.text, one.tokens, one.forwards) for one in results]


@pytest.mark.parametrize("name", KINDS)
def test_texts_do_not_depend_on_the_batch(name):
    sampler, requests = sampler_of(name), requests_of()
    config = config_of(name, sampler)
    alone = generate_requests(sampler, requests, config, batch_size=1)
    assert told(generate_requests(sampler, requests, config, batch_size=3)) == told(alone)
    order = random.Random(1).sample(range(len(requests)), len(requests))
    shuffled = generate_requests(sampler, [requests[i] for i in order], config, batch_size=16)
    assert told(shuffled) == [told(alone)[i] for i in order]
    assert len({one.text for one in alone}) > len(requests) // 2


@pytest.mark.parametrize("name", KINDS)
def test_texts_are_those_of_whole_rows(name):
    """The text is what a row that runs to its end says, up to the end of the answer; it costs fewer forwards."""
    sampler, requests = sampler_of(name), requests_of(seed=2)
    config = config_of(name, sampler)
    done = generate_requests(sampler, requests, config, batch_size=4)
    saved = 0
    for request, one in zip(requests, done, strict=True):
        settings = dict(return_dict=True, stop_at_eos=False, seed=[request.seed])
        whole = sampler.sample(
            [request.prompt],
            config.with_length(request.overrides.get("max_new_tokens", NEW)),
            **settings | dict(request.overrides),
        )
        row = whole.sequences[0, len(request.prompt) :].tolist()
        stopping = Stopping(sampler.tokenizer, request.until)
        assert (one.text, one.tokens) == stopping.read(row)
        assert not any(stop in one.text for stop in request.until)
        assert one.forwards <= whole.stats.forwards
        saved += whole.stats.forwards - one.forwards
    assert saved > 0


def test_the_longest_come_first_and_equal_settings_share_batches(monkeypatch):
    sampler, requests, batches = sampler_of("mdlm"), requests_of(20), []
    sample = sampler.sample

    def noted(rows, *args, **options):
        batches.append(rows)
        return sample(rows, *args, **options)

    monkeypatch.setattr(sampler, "sample", noted)
    seen = {}
    done = generate_requests(sampler, requests, config_of("mdlm", sampler), batch_size=4, on_generated=seen.__setitem__)
    sizes = [sum(request.overrides == kind for request in requests) for kind in OVERRIDES]
    assert len(batches) == sum(-(-size // 4) for size in sizes)
    columns = [len(request.prompt) + request.overrides.get("max_new_tokens", NEW) for request in requests]
    assert columns[next(iter(seen))] == max(columns)
    assert [seen[i] for i in range(20)] == done
    for overrides in ({}, {"max_new_tokens": 13}):
        own = [columns[i] for i in seen if requests[i].overrides == overrides]
        assert own == sorted(own, reverse=True)


def test_seconds_add_up(monkeypatch):
    """By forwards, to those of the batches."""
    sampler, spent = sampler_of("mdlm"), []
    sample = sampler.sample

    def noted(*args, **options):
        output = sample(*args, **options)
        spent.append(output.stats.seconds)
        return output

    monkeypatch.setattr(sampler, "sample", noted)
    done = generate_requests(sampler, requests_of(9), config_of("mdlm", sampler), batch_size=4)
    assert sum(one.seconds for one in done) == pytest.approx(sum(spent))


def test_an_interrupt_leaves_what_was_generated():
    sampler, requests, seen = sampler_of("mdlm"), requests_of(), {}

    def keep(number, result):
        seen[number] = result
        if len(seen) == 5:
            raise KeyboardInterrupt

    config = config_of("mdlm", sampler)
    with pytest.raises(KeyboardInterrupt):
        generate_requests(sampler, requests, config, batch_size=2, on_generated=keep)
    whole = generate_requests(sampler, requests, config, batch_size=2)
    assert len(seen) == 5 and all(told([whole[i]]) == told([one]) for i, one in seen.items())


def test_no_requests():
    sampler = sampler_of("mdlm")
    assert generate_requests(sampler, [], config_of("mdlm", sampler), batch_size=2) == []


@pytest.mark.parametrize("turn", [dict(turn="dad"), dict(turn="<turn>", turn_token=True)])
@pytest.mark.parametrize("keep", [False, True])
def test_the_end_of_a_turn(turn, keep):
    """Of one token or of several; texts with special tokens keep the first kind."""
    sampler = sampler_of("mdlm", LetterTokenizer(**turn))
    favour(sampler.model, END_OF_TURN, 3.0)
    requests = [request._replace(until=()) for request in requests_of(20)]
    done = generate_requests(
        sampler, requests, config_of("mdlm", sampler, temperature=1.5), batch_size=8, keep_special_tokens=keep
    )
    texts = [one.text for one in done]
    if keep and "turn_token" in turn:
        assert any(text.endswith("<turn>") for text in texts) and not any("<turn>" in text[:-6] for text in texts)
    else:
        assert not any(turn["turn"] in text for text in texts)
    assert any(one.tokens < 13 for one in done)
    assert not any("<end>" in text for text in texts)


class TestLongPrompts:
    def test_they_lose_their_first_tokens(self, caplog):
        """The bert toy has 96 positions."""
        sampler = sampler_of("mdlm")
        long, config = [*range(5, 35)] * 4, config_of("mdlm", sampler)
        with caplog.at_level(logging.WARNING, logger="dllm"):
            one, short = generate_requests(
                sampler, [GenerationRequest(long), GenerationRequest([7])], config, batch_size=2
            )
        assert (one.cut, short.cut) == (len(long) + NEW - 96, 0)
        assert "1 of 2 prompts leave no room for their answers and are cut on the left, by up to 44" in caplog.text
        (kept,) = generate_requests(sampler, [GenerationRequest(long[44:])], config, batch_size=1)
        assert kept.text == one.text and kept.cut == 0

    def test_a_length_of_ones_own(self):
        sampler = sampler_of("mdlm")
        config = config_of("mdlm", sampler)
        one, two = generate_requests(
            sampler, [GenerationRequest([*range(5, 45)])] * 2, config, batch_size=1, max_length=50
        )
        assert one.cut == two.cut == 10

    def test_an_answer_that_leaves_no_room(self):
        sampler = sampler_of("mdlm")
        with pytest.raises(ValueError, match=r"request 0: max_new_tokens must be less than the 96 tokens .* got 96"):
            generate_requests(
                sampler, [GenerationRequest([7])], config_of("mdlm", sampler, max_new_tokens=96), batch_size=1
            )


class TestRefused:
    """Before any forward, with the number of the request."""

    @pytest.fixture
    def sampler(self, monkeypatch):
        found = sampler_of("mdlm")
        monkeypatch.setattr(found, "sample", lambda *_, **__: pytest.fail("the sampler has run"))
        return found

    @pytest.mark.parametrize(
        ("request_", "error", "message"),
        [
            (GenerationRequest([5, MASK_ID]), ValueError, "request 1: a prompt must not hold the mask token"),
            (GenerationRequest([5, 500]), ValueError, r"must lie in \[0, 131\), got 500 in row 1"),
            (GenerationRequest("text"), TypeError, "request 1: a row of inputs must hold token ids"),
            (GenerationRequest([5], "ab"), TypeError, "request 1: until must be a list of stop strings, got 'ab'"),
            (GenerationRequest([5], [7]), TypeError, "request 1: until must be a list of stop strings"),
            (GenerationRequest([5], seed=2**64), ValueError, "request 1: "),
            (GenerationRequest([5], seed="x"), TypeError, "request 1: "),
            (GenerationRequest([5], overrides={"stepps": 3}), TypeError, r"request 1: .* has no setting stepps"),
            (GenerationRequest([5], overrides=[3]), TypeError, "request 1: overrides must be a mapping"),
            (GenerationRequest([5], overrides={"temperature": -1}), ValueError, "request 1: temperature"),
            (GenerationRequest([5], overrides={"max_new_tokens": 0}), ValueError, "request 1: max_new_tokens"),
            (GenerationRequest([5], overrides={"max_new_tokens": None}), ValueError, "request 1: max_new_tokens"),
        ],
    )
    def test_requests(self, request_, error, message, sampler):
        with pytest.raises(error, match=message):
            generate_requests(sampler, [GenerationRequest([7]), request_], config_of("mdlm", sampler), batch_size=2)

    def test_arguments(self, sampler):
        requests, config = [GenerationRequest([7])], config_of("mdlm", sampler)
        with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
            generate_requests(sampler, requests, config, batch_size=0)
        with pytest.raises(TypeError, match="config must be a MDLMSamplerConfig, got DreamSamplerConfig"):
            generate_requests(sampler, requests, samplers.DreamSamplerConfig(), batch_size=1)
        with pytest.raises(TypeError, match="on_generated must be callable, got list"):
            generate_requests(sampler, requests, config, batch_size=1, on_generated=[])
        with pytest.raises(ValueError, match="max_length must be at least 2, got 1"):
            generate_requests(sampler, requests, config, batch_size=1, max_length=1)
        sampler.tokenizer = SimpleNamespace(mask_token_id=MASK_ID, eos_token_id=None, pad_token_id=1)
        with pytest.raises(ValueError, match="stop_at_eos needs a tokenizer with an eos_token_id"):
            generate_requests(sampler, requests, config, batch_size=1)

    def test_steps_that_do_not_fit_the_blocks(self):
        sampler = samplers.LLaDASampler(tiny("bert"), LetterTokenizer())
        config = samplers.LLaDASamplerConfig(max_new_tokens=16, steps=15, block_size=8)
        with pytest.raises(ValueError, match="request 0: steps must be a multiple of the 2 blocks, got 15"):
            generate_requests(sampler, [GenerationRequest([7])], config, batch_size=1)


class TestSteps:
    """Steps follow another number of new tokens."""

    @pytest.mark.parametrize(
        ("config", "new", "steps"),
        [
            (samplers.MDLMSamplerConfig(), 64, 64),
            (samplers.MDLMSamplerConfig(), 300, 384),  # three blocks of 128 steps
            (samplers.MDLMSamplerConfig(steps=64), 256, 128),
            (samplers.MDLMSamplerConfig(max_new_tokens=256, steps=256, block_size=32), 100, 128),
            (samplers.LLaDASamplerConfig(max_new_tokens=1024, steps=512, block_size=32), 100, 64),
            (samplers.DreamSamplerConfig(max_new_tokens=128, steps=128), 512, 512),
            (samplers.RND1SamplerConfig(steps=256), 40, 40),
            (samplers.FastDLLMSamplerConfig(), 128, 128),
            (samplers.LLaDA2SamplerConfig(), 77, 32),
        ],
    )
    def test_of_a_config(self, config, new, steps):
        assert config.with_length(new).steps == steps and config.with_length(new).max_new_tokens == new
        assert config.with_length(new).block_size == config.block_size

    def test_no_steps(self):
        assert samplers.ThresholdSamplerConfig().with_length(40).max_new_tokens == 40
        with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
            samplers.ThresholdSamplerConfig().with_length(0)

    def test_of_a_request(self):
        """One token a step, as in the configuration, unless the request says otherwise."""
        sampler = sampler_of("mdlm")
        config = config_of("mdlm", sampler, block_size=20)

        def cost(**overrides):
            request = GenerationRequest([7, 8], overrides={"max_new_tokens": 10, "stop_at_eos": False, **overrides})
            return generate_requests(sampler, [request], config, batch_size=1)[0].forwards

        assert torch.equal(torch.tensor([cost(), cost(steps=5)]), torch.tensor([10, 5]))
