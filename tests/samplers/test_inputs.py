"""What samplers are given: shapes that are odd but right, and what is wrong."""

import copy
from types import SimpleNamespace

import pytest
import torch

import dllm
from dllm.core import samplers
from dllm.core.samplers import utils
from dllm.core.schedulers import LinearAlphaScheduler
from dllm.fast import generate
from dllm.models import bidirectional
from tests import reference_samplers as judges
from tests.models import MASK_ID, make_prompt, shared, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

EOS = 40
TOKENIZER = SimpleNamespace(mask_token_id=MASK_ID, eos_token_id=EOS, pad_token_id=1)
ALL = [
    samplers.MDLMSampler,
    samplers.LLaDASampler,
    samplers.DreamSampler,
    samplers.RND1Sampler,
    samplers.ThresholdSampler,
    samplers.LLaDA2Sampler,
    samplers.EntropyBoundSampler,
]
every_sampler = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)


@pytest.fixture
def model(device):
    return shared("modernbert", device)


@every_sampler
def test_one_token(kind, model):
    reserved = kind is samplers.RND1Sampler  # its last column is not generated
    out = kind(model, TOKENIZER).sample([[7, 8]], max_new_tokens=1 + reserved, seed=0, return_dict=True)
    assert (
        out.sequences.shape == (1, 3 + reserved) and out.sequences[0, :2].tolist() == [7, 8] and out.stats.tokens == 1
    )
    assert int(out.sequences[0, 2]) != MASK_ID and out.histories[0][0, 2] == MASK_ID


@every_sampler
def test_no_rows_and_no_masks(kind, model):
    sampler = kind(model, TOKENIZER)
    forwards = []
    handle = model.register_forward_pre_hook(lambda *_: forwards.append(1))
    try:
        assert sampler.sample([]).shape == (0, 0) and sampler.infill([]).shape == (0, 0)
        assert sampler.infill([[7, 8], [9]], seed=0).tolist() == (
            [[7, 8], [EOS, 9]] if kind.pads_left else [[7, 8], [9, EOS]]
        )
    finally:
        handle.remove()
    assert not forwards


@every_sampler
def test_an_empty_prompt(kind, device):
    # absolute positions: under rotary ones all masks of such a row have one hidden state, and rounding would order them
    model = shared("bert", device)
    out = kind(model, TOKENIZER).sample([[], [7, 8]], max_new_tokens=6, seed=0)
    alone = kind(model, TOKENIZER).sample([[]], max_new_tokens=6, seed=0)
    row = out[0, -6:] if kind.pads_left else out[0, :6]
    assert torch.equal(row, alone[0]) and out.shape == (2, 8)


@every_sampler
def test_the_callback_and_the_history_agree(kind, model):
    steps = []
    sampler = kind(model, TOKENIZER)
    out = sampler.sample([[7], [8, 9]], max_new_tokens=6, seed=0, return_dict=True, on_step=steps.append)
    assert len(steps) == out.stats.forwards == len(out.histories) - 1
    before = out.histories[0]
    for step, canvas in zip(steps, out.histories[1:], strict=True):
        assert torch.equal(step.canvas, canvas) and step.step < step.steps and step.block < step.blocks
        changed = canvas != before
        assert bool((before[changed] == MASK_ID).all()) and torch.equal(step.tentative[changed], canvas[changed])
        assert bool(step.confidence[changed].isfinite().all())
        before = canvas
    assert torch.equal(before, out.sequences)


class Pointwise(torch.nn.Module):
    """Says of each position what its token makes it say: cheap at any length."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = torch.nn.Embedding(97, 4), torch.nn.Linear(4, 97)
        torch.nn.init.normal_(self.head.weight)
        self.head.bias.data[MASK_ID] = -30.0

    def get_output_embeddings(self):
        return self.head

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, attention_mask=None):
        return SimpleNamespace(logits=self.head(self.embedding(input_ids)))


def test_more_tokens_than_a_step_looks_at():
    """8192 columns at most: of a block, not of what is generated."""
    torch.manual_seed(0)
    sampler, settings = samplers.MDLMSampler(Pointwise(), TOKENIZER), dict(max_new_tokens=8200, temperature=1.0, seed=3)
    out = sampler.sample([[7, 8], [9]], block_size=2050, steps=4, **settings)
    assert out.shape == (2, 8202) and not bool((out == MASK_ID).any())
    prompt = torch.tensor([[7, 8]])
    given = dict(gen_length=8200, block_length=2050, temperature=1.0, mask_id=MASK_ID, seed=3)
    assert torch.equal(out[:1], generate(sampler.model, prompt, steps=4, **given))
    with pytest.raises(ValueError, match="a block must have at most 8192 columns, got 8200: set block_size"):
        sampler.sample([[7]], block_size=None, steps=1, **settings)


def test_inputs_of_any_kind(model):
    sampler = samplers.MDLMSampler(model, TOKENIZER)
    rows = [[7, 8, 9], [10, 11, 12]]
    want = sampler.sample(rows, max_new_tokens=4)
    for inputs in (torch.tensor(rows), [torch.tensor(row, dtype=torch.int32) for row in rows], tuple(map(tuple, rows))):
        assert torch.equal(sampler.sample(inputs, max_new_tokens=4), want)


def test_what_a_tokenizer_returns(model):
    from transformers import BatchEncoding

    sampler, rows = samplers.MDLMSampler(model, TOKENIZER), [[7, 8, 9], [10]]
    want = sampler.sample(rows, max_new_tokens=4)
    ragged = BatchEncoding({"input_ids": rows})
    padded = BatchEncoding({"input_ids": [[7, 8, 9], [1, 1, 10]], "attention_mask": [[1, 1, 1], [0, 0, 1]]})
    for inputs in (ragged, padded, padded.convert_to_tensors("pt")):
        assert torch.equal(sampler.sample(inputs, max_new_tokens=4), want)
    with pytest.raises(TypeError, match="inputs must hold input_ids, got a mapping with ids"):
        sampler.sample({"ids": rows})


def test_config_and_overrides(model):
    sampler = samplers.MDLMSampler(model, TOKENIZER)
    config = samplers.MDLMSamplerConfig(max_new_tokens=4, steps=2, return_dict=True)
    before = copy.copy(config)
    assert sampler.sample([[7]], config).stats.forwards == 2
    assert sampler.sample([[7]], config, steps=4).stats.forwards == 4 and config == before
    assert isinstance(sampler.sample([[7]], config, return_dict=False), torch.Tensor)


def test_seeds_of_rows(model):
    sampler = samplers.MDLMSampler(model, TOKENIZER)
    options = dict(max_new_tokens=8, steps=8, temperature=1.0)
    both = sampler.sample([[7], [7]], seed=[5, 9], **options)
    for row, seed in zip(both, (5, 9), strict=True):
        assert torch.equal(sampler.sample([[7]], seed=seed, **options)[0], row)
    torch.manual_seed(0)
    first, second = sampler.sample([[7]], **options), sampler.sample([[7]], **options)
    torch.manual_seed(0)
    assert torch.equal(sampler.sample([[7]], **options), first) and not torch.equal(first, second)


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3"])
def test_causal_architectures(family, device):
    """Made bidirectional by hooks, read one position to the left, prompts of different length in one batch."""
    import transformers

    size = dict(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    config = getattr(transformers, f"{family}Config")(**size, num_key_value_heads=2, max_position_embeddings=64)
    torch.manual_seed(0)
    model = bidirectional(getattr(transformers, f"{family}ForCausalLM")(config).eval()).to(device)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=2 / parameter.shape[1] ** 0.5)
    rows = [[7, 8, 9], [10], [11, 12, 13, 14, 15]]
    settings = dict(max_new_tokens=10, block_size=5, steps=6, right_shift_logits=True, temperature=0.7)
    out = samplers.MDLMSampler(model, TOKENIZER).sample(rows, seed=3, **settings)
    for i, row in enumerate(rows):
        trace = judges.mdlm_sample(model, torch.tensor(row, device=device), mask_id=MASK_ID, seed=3 + i, **settings)
        assert judges.first_difference(out[i, : len(trace.canvas)], trace) is None


def test_the_pieces_of_a_loop():
    masked = torch.tensor([[True] * 10, [True] * 2 + [False] * 8, [False] * 10])
    counts = utils.get_num_transfer_tokens(masked, 4, LinearAlphaScheduler())
    assert counts.tolist() == [[2, 3, 2, 3], [1, 1, 0, 0], [0, 0, 0, 0]] and counts.dtype == torch.int64
    sampled = utils.get_num_transfer_tokens(masked, 4, LinearAlphaScheduler(), stochastic=True)
    assert sampled.sum(1).tolist() == [10, 2, 0]
    logits = torch.randn(3, 5)
    assert utils.add_gumbel_noise(logits, 0) is logits
    noisy = utils.add_gumbel_noise(logits.expand(4000, 3, 5), 0.7)
    share = torch.nn.functional.one_hot(noisy.argmax(-1), 5).double().mean(0)
    assert torch.allclose(share, (logits / 0.7).softmax(-1).double(), atol=0.04)  # 5 standard deviations
    assert dllm.core.samplers is samplers


BAD = [
    (dict(max_new_tokens=0), ValueError, "max_new_tokens must be at least 1, got 0"),
    (dict(max_new_tokens=None), ValueError, "expected max_new_tokens or max_length, got None for both"),
    (dict(max_new_tokens=None, max_length=2), ValueError, "max_length must exceed every prompt, got 2 and 3"),
    (dict(block_size=0), ValueError, "block_size must be at least 1, got 0"),
    (dict(steps=0), ValueError, "steps must be at least 1, got 0"),
    (dict(steps=2.5), TypeError, "steps must be an integer, got float"),
    (dict(temperature=-1.0), ValueError, "temperature must be"),
    (dict(cfg_scale=float("nan")), ValueError, "cfg_scale must be"),
    (dict(remasking="high_confidence"), ValueError, "remasking must be one of low_confidence, random, got 'high_conf"),
    (dict(suppress_tokens=[97]), ValueError, r"suppress_tokens must lie in \[0, 97\), got 97"),
    (dict(begin_suppress_tokens=7), TypeError, "begin_suppress_tokens must be a list of token ids, got 7"),
    (dict(step=5), TypeError, "MDLMSamplerConfig has no setting step"),
    (dict(on_step=3), TypeError, "on_step must be callable, got int"),
    (dict(seed=[1, 2]), ValueError, "seed must be one integer or one per row, got 2 for 1 rows"),
    (dict(impl="cuda"), ValueError, "impl must be one of"),
    (dict(config=samplers.DreamSamplerConfig()), TypeError, "config must be a MDLMSamplerConfig, got DreamSamplerC"),
]


@pytest.mark.parametrize("options, error, message", BAD, ids=[message for *_, message in BAD])
def test_bad_settings(options, error, message, model):
    calls = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        with pytest.raises(error, match=message):
            samplers.MDLMSampler(model, TOKENIZER).sample([[7, 8, 9]], **dict(max_new_tokens=6) | options)
    finally:
        handle.remove()
    assert not calls


BAD_INPUTS = [
    ("What is 2 + 2?", TypeError, "inputs must be a list of token rows, got str"),
    ([torch.tensor([7], device="meta")], TypeError, "got a tensor on the device meta, which holds none"),
    (["What"], TypeError, "a row of inputs must hold token ids, got text 'What': tokenize it first"),
    ([[1.5]], TypeError, "a row of inputs must hold integers, got float32"),
    ([[[7]]], TypeError, r"a row of inputs must be a vector of token ids, got shape \[1, 1\]"),
    (torch.tensor([7]), TypeError, r"inputs must have shape \[B, P\] or be a list of rows, got shape \[1\]"),
    ([[7, MASK_ID]], ValueError, "inputs must not hold the mask token, got one in row 0"),
    ([[7], [97]], ValueError, r"tokens must lie in \[0, 97\), got 97 in row 1"),
    ([[-1]], ValueError, r"tokens must lie in \[0, 97\), got -1 in row 0"),
]


@pytest.mark.parametrize("inputs, error, message", BAD_INPUTS, ids=[message for *_, message in BAD_INPUTS])
def test_bad_inputs(inputs, error, message, model):
    with pytest.raises(error, match=message):
        samplers.MDLMSampler(model, TOKENIZER).sample(inputs, max_new_tokens=4)


BAD_OF_OTHERS = [
    (samplers.DreamSampler, dict(alg="random"), ValueError, "alg must be one of origin, maskgit_plus"),
    (samplers.DreamSampler, dict(alg_temp=0.5), ValueError, "'origin' ranks nothing, so alg_temp must be 0, got 0.5"),
    (samplers.DreamSampler, dict(top_p=0.0), ValueError, r"top_p must lie in \(0, 1\], got 0.0"),
    (samplers.DreamSampler, dict(top_k=0), ValueError, "top_k must be at least 1, got 0"),
    (samplers.DreamSampler, dict(eps=1.0), ValueError, "eps must lie between 0 and 1, got 1.0"),
    (samplers.RND1Sampler, dict(top_p=1.5), ValueError, r"top_p must lie in \(0, 1\], got 1.5"),
    (samplers.RND1Sampler, dict(greedy=1), TypeError, "greedy must be True or False, got 1"),
    (samplers.ThresholdSampler, dict(threshold=None), ValueError, "expected threshold or factor, got None and None"),
    (samplers.ThresholdSampler, dict(factor=1.0), ValueError, "expected threshold or factor, got 0.9 and 1.0"),
    (samplers.ThresholdSampler, dict(threshold=None, factor=0.0), ValueError, "factor must be above 0, got 0.0"),
    (samplers.LLaDASampler, dict(steps=9, block_size=3), ValueError, "steps must be a multiple of the 2 blocks, got 9"),
    (samplers.LLaDA2Sampler, dict(threshold=-0.1), ValueError, "threshold must be"),
    (samplers.EntropyBoundSampler, dict(gamma=-1.0), ValueError, "gamma must be"),
]


@pytest.mark.parametrize("kind, options, error, message", BAD_OF_OTHERS, ids=[row[-1] for row in BAD_OF_OTHERS])
def test_bad_settings_of_others(kind, options, error, message, model):
    with pytest.raises(error, match=message):
        kind(model, TOKENIZER).sample([[7]], **{"max_new_tokens": 6} | options)


def test_bad_models_and_tokenizers(model):
    with pytest.raises(ValueError, match="no mask token"):
        samplers.MDLMSampler(model, SimpleNamespace(eos_token_id=2)).sample([[7]])
    bare = SimpleNamespace(mask_token_id=MASK_ID)
    with pytest.raises(ValueError, match="rows of different length need a tokenizer with an eos_token_id or a pad"):
        samplers.MDLMSampler(model, bare).sample([[7], [8, 9]], max_new_tokens=4)
    assert samplers.MDLMSampler(model, bare).sample([[7]], max_new_tokens=4).shape == (1, 5)
    with pytest.raises(ValueError, match="stop_at_eos needs a tokenizer with an eos_token_id"):
        samplers.MDLMSampler(model, bare).sample([[7]], max_new_tokens=4, stop_at_eos=True)
    turns = SimpleNamespace(mask_token_id=MASK_ID, eos_token_id=2, eot_token_id=MASK_ID)
    with pytest.raises(ValueError, match="eot_token_id must differ from the mask token, got 3 for both"):
        samplers.MDLMSampler(model, turns).sample([[7]], max_new_tokens=4, stop_at_eos=True)
    with pytest.raises(ValueError, match="infill fills every mask, so stop_at_eos must be False"):
        samplers.MDLMSampler(model, TOKENIZER).infill([[MASK_ID]], stop_at_eos=True)
    with pytest.raises(ValueError, match="output embeddings"):
        samplers.MDLMSampler(model.base_model, TOKENIZER).sample([[7]])


def test_logits_that_are_not_finite():
    broken = tiny("bert")
    with torch.no_grad():
        broken.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="row 0: no logit was finite at step 0"):
        samplers.ThresholdSampler(broken, TOKENIZER).sample([make_prompt(broken, 1, 4)[0]], max_new_tokens=4)
