"""Samplers in the hands of scripts, callbacks and odd tokenizers: what they must survive, and what they must refuse."""

import logging
import math
import pickle
import threading
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from dllm.core import samplers
from tests.models import MASK_ID, favour, shared, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

EOS = 40
TOKENIZER = SimpleNamespace(mask_token_id=MASK_ID, eos_token_id=EOS, pad_token_id=1)
# settings with which each sampler takes several steps, some of several tokens
ALL = {
    samplers.MDLMSampler: dict(steps=5),
    samplers.LLaDASampler: dict(steps=5),
    samplers.DreamSampler: dict(steps=5),
    samplers.RND1Sampler: dict(steps=5),
    samplers.ThresholdSampler: dict(threshold=0.2),
    samplers.LLaDA2Sampler: dict(threshold=0.2, steps=5),
    samplers.EntropyBoundSampler: dict(gamma=2.0),
}
PROMPTS = [[7, 8, 9], [5]]
every_sampler = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)


@pytest.fixture
def model(device):
    return shared("bert", device)


def sample(kind, model, rows=PROMPTS, **options):
    settings = dict(max_new_tokens=8, temperature=0.5, seed=3) | ALL[kind] | options
    return kind(model, TOKENIZER).sample(rows, **settings)


def carried(model):
    """What every module carries around its forward."""
    return [
        (id(part), part.__dict__.get("forward"), tuple(part._forward_hooks), tuple(part._forward_pre_hooks))
        for part in model.modules()
    ]


@pytest.fixture
def never_run(model):
    """Fails when the model has run."""
    calls = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    yield
    handle.remove()
    assert not calls


# Configurations


def test_a_script_with_a_seed_of_its_own_parses_a_config():
    """The scripts of dLLM 0.1 parse their own arguments, a seed among them, beside a subclass of the config."""
    transformers = pytest.importorskip("transformers")

    @dataclass
    class Script:
        seed: int = 42
        visualize: bool = True

    @dataclass
    class Config(samplers.MDLMSamplerConfig):
        steps: int = 32
        block_size: int = 16
        note: str = "mine"

    parser = transformers.HfArgumentParser((Script, Config))
    script, config = parser.parse_args_into_dataclasses(
        "--seed 7 --steps 9 --max_length 20 --suppress_tokens 5 6 --cuda_graph False --return_dict".split()
    )
    assert script.seed == 7 and (config.steps, config.block_size, config.note) == (9, 16, "mine")
    assert (config.max_length, config.suppress_tokens, config.cuda_graph) == (20, [5, 6], False)
    assert config.return_dict and config.cfg_keep_tokens is None and config.max_new_tokens == 128
    config.check()


@every_sampler
def test_every_config_parses_and_pickles(kind):
    transformers = pytest.importorskip("transformers")
    config = kind.config_class(max_new_tokens=4)
    assert pickle.loads(pickle.dumps(config)) == config
    assert transformers.HfArgumentParser(kind.config_class).parse_args_into_dataclasses(["--max_new_tokens", "4"]) == (
        config,
    )


WORDS = [
    (samplers.MDLMSampler, "return_dict"),
    (samplers.MDLMSampler, "stop_at_eos"),
    (samplers.MDLMSampler, "right_shift_logits"),
    (samplers.MDLMSampler, "stochastic_transfer"),
    (samplers.DreamSampler, "stochastic_transfer"),
    (samplers.RND1Sampler, "greedy"),
    (samplers.RND1Sampler, "add_eos_at_end"),
    (samplers.BD3LMSampler, "cache"),
    (samplers.LLaDA2Sampler, "cache"),
    (samplers.LLaDASampler, "logits_eos_inf"),
    (samplers.LLaDASampler, "confidence_eos_eot_inf"),
]


@pytest.mark.parametrize("kind, name", WORDS, ids=[f"{kind.__name__} {name}" for kind, name in WORDS])
def test_a_word_is_no_truth_value(kind, name, model, never_run):
    """The word "False" is true."""
    with pytest.raises(TypeError, match=f"{name} must be True or False, got 'False'"):
        kind(model, TOKENIZER).sample([[7]], **{name: "False"})


@pytest.mark.parametrize("gamma", [65536.0, 1e30, -0.5, math.nan, -math.inf])
def test_a_gamma_that_costs_cannot_be_counted_to(gamma, model, never_run):
    with pytest.raises(ValueError, match="gamma must be infinite or from"):
        sample(samplers.EntropyBoundSampler, model, gamma=gamma)


WRITTEN_DOWN = [
    (samplers.MDLMSampler, "steps"),
    (samplers.BD3LMSampler, "steps_per_block"),
    (samplers.DreamSampler, "steps"),
    (samplers.RND1Sampler, "steps"),
    (samplers.LLaDA2Sampler, "steps"),
    (samplers.LLaDA21Sampler, "edit_steps"),
]


@pytest.mark.parametrize("kind, name", WRITTEN_DOWN, ids=[kind.__name__ for kind, _ in WRITTEN_DOWN])
def test_no_schedule_of_a_billion_steps_is_written_down(kind, name, model, never_run):
    with pytest.raises(ValueError, match="a block must take at most 16384 steps, got 4611686018427387904"):
        kind(model, TOKENIZER).check([[7]], **{"block_size": 32, "max_new_tokens": 32, name: 2**62})


@pytest.mark.parametrize("kind", [samplers.LLaDASampler, samplers.FastDLLMSampler])
def test_steps_that_nothing_is_left_for(kind, model, never_run):
    """One token a step: the steps beyond are none."""
    options = dict(threshold=None) if kind is samplers.FastDLLMSampler else {}
    span = samplers.base.Span(start=1, stop=33, masks=32, blocks=1, seed=0)
    assert kind(model, TOKENIZER).amounts(kind.config_class(steps=2**62, **options), span) == [1] * 32


def test_no_bound_at_all(model):
    """An infinite gamma spends everything at once, and no probability exceeds a threshold however high."""
    options = dict(return_dict=True, max_new_tokens=6, block_size=3)
    assert sample(samplers.EntropyBoundSampler, model, gamma=math.inf, **options).stats.row_forwards == [2, 2]
    for threshold in (1.0, 1e30):
        out = sample(samplers.LLaDA2Sampler, model, steps=3, threshold=threshold, **options)
        assert out.stats.row_forwards == [6, 6]


@pytest.mark.parametrize("alg", ["maskgit_plus", "topk_margin", "entropy"])
def test_positions_drawn_at_almost_no_temperature_are_the_surest(alg, device):
    """Confidences of 1 and entropies of 0 among them: with one token kept there is no other."""
    model = favour(tiny("bert"), 60, 30.0).to(device)
    options = dict(alg=alg, steps=8, top_k=None, temperature=1.0, return_dict=True)
    cold = sample(samplers.DreamSampler, model, alg_temp=1e-320, **options)
    ranked = sample(samplers.DreamSampler, model, alg_temp=0.0, **options)
    assert all(map(torch.equal, cold.histories, ranked.histories))


# Inputs


def test_what_a_tokenizer_returns(model):
    """transformers 5 tokenizes to a mapping; its padding, on either side, is no prompt."""
    transformers = pytest.importorskip("transformers")
    want = sample(samplers.MDLMSampler, model)
    left = {"input_ids": [[7, 8, 9], [1, 1, 5]], "attention_mask": [[1, 1, 1], [0, 0, 1]]}
    right = {"input_ids": torch.tensor([[7, 8, 9], [5, 1, 1]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]])}
    for inputs in ({"input_ids": PROMPTS}, left, right, transformers.BatchEncoding(left)):
        assert torch.equal(sample(samplers.MDLMSampler, model, inputs), want)


BAD_MAPPINGS = [
    ({"labels": [[7]]}, TypeError, "inputs must hold input_ids, got a mapping with labels"),
    ({"input_ids": [7]}, TypeError, "a row of inputs must be a vector of token ids"),
    ({"input_ids": [[7, 8]], "attention_mask": [[1]]}, ValueError, "attention_mask must have the shape of input_ids"),
]


@pytest.mark.parametrize("inputs, error, message", BAD_MAPPINGS, ids=[message for *_, message in BAD_MAPPINGS])
def test_bad_mappings(inputs, error, message, model, never_run):
    with pytest.raises(error, match=message):
        sample(samplers.MDLMSampler, model, inputs)


def test_integers_of_any_kind(model):
    numpy = pytest.importorskip("numpy")
    rows = [torch.tensor([7, 8, 9], dtype=torch.int16), numpy.array([5], dtype=numpy.uint8)]
    options = dict(suppress_tokens=[numpy.int64(33)])
    got = sample(samplers.MDLMSampler, model, rows, **options)
    assert torch.equal(got, sample(samplers.MDLMSampler, model, suppress_tokens=[33]))


def test_infill_asks_for_no_length(model):
    out = samplers.MDLMSampler(model, TOKENIZER).infill([[7, MASK_ID, 8]], max_new_tokens=None, steps=2)
    assert bool((out != MASK_ID).all())


def test_padding_that_is_no_token(model, never_run):
    """Padding in the vocabulary, or an error before the model meets it."""
    for pad, message in (
        (-1, "pad_token_id must lie in"),
        (131, "pad_token_id must lie in"),
        (MASK_ID, "the mask tok"),
    ):
        tokenizer = SimpleNamespace(mask_token_id=MASK_ID, eos_token_id=None, pad_token_id=pad)
        with pytest.raises(ValueError, match=message):
            samplers.MDLMSampler(model, tokenizer).sample(PROMPTS, max_new_tokens=4)


def test_no_model_and_no_scheduler():
    with pytest.raises(ValueError, match="NoneType has none"):
        samplers.MDLMSampler(None, TOKENIZER).sample([[7]])
    with pytest.raises(TypeError, match="scheduler must be a BaseAlphaScheduler, got str"):
        samplers.MDLMSampler(None, TOKENIZER, "linear")


# Callbacks


@every_sampler
def test_a_callback_may_spoil_what_it_is_shown(kind, model):
    def spoil(step):
        step.canvas.fill_(5)
        step.tentative.fill_(6)
        step.confidence.fill_(7)

    want, got = sample(kind, model, return_dict=True), sample(kind, model, return_dict=True, on_step=spoil)
    assert len(got.histories) == len(want.histories) and torch.equal(got.sequences, want.sequences)
    assert all(map(torch.equal, got.histories, want.histories))


@every_sampler
def test_interrupted_and_called_again_from_within(kind, model):
    """What a callback raises passes through and leaves the model as it was; a callback may sample itself."""
    before, want, inner = carried(model), sample(kind, model), []

    def interrupt(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(kind, model, on_step=interrupt)
    assert carried(model) == before
    outer = sample(kind, model, on_step=lambda step: inner.append(sample(kind, model)))
    assert torch.equal(outer, want) and all(torch.equal(tokens, want) for tokens in inner)
    assert carried(model) == before


def test_interrupted_inside_the_model(model):
    before, calls = carried(model), []

    def interrupt(*_):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    handle = model.get_input_embeddings().register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        sample(samplers.MDLMSampler, model)
    handle.remove()
    assert carried(model) == before


# The model's surroundings


@every_sampler
def test_two_threads_share_a_sampler(kind, model):
    want, found = [sample(kind, model, [row]) for row in PROMPTS], {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: sample(kind, model, [PROMPTS[i % 2]])})) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[i], want[i % 2]) for i in range(4))


def test_modes_of_torch(model):
    want = sample(samplers.MDLMSampler, model)
    with torch.enable_grad():
        assert torch.equal(sample(samplers.MDLMSampler, model), want)
    with torch.inference_mode():
        assert torch.equal(sample(samplers.MDLMSampler, model), want)


def test_dropout_is_told_of(caplog):
    """A model in training mode is run as it is, and the log says what that means."""
    model = tiny("bert")
    with caplog.at_level(logging.WARNING, logger="dllm.fast"):
        sample(samplers.MDLMSampler, model)
        assert not caplog.messages
        sample(samplers.MDLMSampler, model.train())
    assert model.training and "dropout of" in caplog.text
    without = tiny("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    caplog.clear()
    sample(samplers.MDLMSampler, without)
    assert not caplog.messages


# Stats


@pytest.mark.parametrize("stop_at_eos", [False, True])
def test_useful_tokens_end_at_the_first_eos(stop_at_eos, device):
    """Whether the row stopped there or went on; in a text that is filled every token is of use."""
    model = favour(tiny("bert"), EOS, 6.0).to(device)
    sampler = samplers.MDLMSampler(model, TOKENIZER)
    settings = dict(max_new_tokens=12, steps=12, block_size=4, temperature=1.0, seed=0, return_dict=True)
    out = sampler.sample([[7, EOS, 9], [5]], stop_at_eos=stop_at_eos, **settings)
    generated = [out.sequences[0, 3:15].tolist(), out.sequences[1, 1:13].tolist()]
    assert any(EOS in row[:-1] for row in generated)
    assert out.stats.useful_tokens == sum([*row, EOS].index(EOS) + (EOS in row) for row in generated)
    assert out.stats.tokens == 24
    filled = sampler.infill([[MASK_ID] * 9], **settings)
    assert EOS in filled.sequences[0, :-1].tolist() and filled.stats.useful_tokens == filled.stats.tokens == 9


def test_seeds_near_the_end(model):
    """Seeds are 64 bits: 2^64 - 1 is -1, and the row after it has seed 0."""
    options = dict(rows=[[7]] * 2, temperature=1.5)
    want = sample(samplers.MDLMSampler, model, seed=[-1, 0], **options)
    assert not torch.equal(want[0], want[1])
    for seed in (2**64 - 1, -1, torch.tensor([-1, 0]), [2**64 - 1, 0]):
        assert torch.equal(sample(samplers.MDLMSampler, model, seed=seed, **options), want)
    with pytest.raises(ValueError, match="a seed must fit into 64 bits"):
        sample(samplers.MDLMSampler, model, seed=2**64, **options)
