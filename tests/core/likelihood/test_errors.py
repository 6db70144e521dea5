"""Bad input is refused before a target has run."""

from __future__ import annotations

import logging

import pytest
import torch
import transformers

from dllm.core.likelihood import LikelihoodConfig, Target, count_rows, log_likelihoods
from tests.models import MASK_ID, POSITIONS, tiny

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    return tiny("bert")


def refuse(*args, **kwargs):
    raise AssertionError("the model has run")


@pytest.mark.parametrize(
    "target, error, message",
    [
        (Target([5], []), ValueError, "a target must have at least one token, got none in target 1"),
        (Target([5, MASK_ID], [6]), ValueError, "context must not contain the mask token 3, got one in target 1"),
        (Target([5], [MASK_ID]), ValueError, "target must not contain the mask token 3, got one in target 1"),
        (Target([5], [6], 0, [MASK_ID]), ValueError, "after must not contain the mask token 3"),
        (Target([5], [131]), ValueError, r"tokens must lie in \[0, 131\), got 131 in the target of target 1"),
        (Target([-1], [6]), ValueError, r"got -1 in the context of target 1"),
        (
            Target([], [5] * 97),
            ValueError,
            "a target must fit into 96 tokens, with what comes after it; target 1 has 97",
        ),
        (Target([], [5] * 96, 0, [6]), ValueError, "target 1 has 97"),
        (Target("text", [6]), TypeError, "context must hold token ids, got str in target 1"),
        (Target([5.0], [6]), TypeError, "context must hold integers, got float in target 1"),
        (Target([5], [6], 0.5), TypeError, "a seed must be an integer, got float"),
        ([5, 6], TypeError, "targets must be of the class Target, got list as target 1"),
    ],
)
def test_targets(model, monkeypatch, target, error, message):
    monkeypatch.setattr(model, "forward", refuse)
    with pytest.raises(error, match=message):
        log_likelihoods(model, [Target([5], [6]), target], mask_id=MASK_ID)


def test_nothing_to_be_masked_in_the_form_of_dream(model):
    with pytest.raises(ValueError, match="target 0 has no context and one token"):
        log_likelihoods(model, [Target([], [6], 0, [7])], LikelihoodConfig(form="dream"), mask_id=MASK_ID)


def test_a_causal_model_is_refused():
    size = dict(vocab_size=97, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4)
    causal = transformers.LlamaForCausalLM(transformers.LlamaConfig(**size)).eval()
    with pytest.raises(ValueError, match="masked diffusion needs a model that sees tokens on both sides"):
        log_likelihoods(causal, [Target([5], [6])], mask_id=MASK_ID)


def test_other_arguments(model):
    with pytest.raises(ValueError, match="no mask token is known"):
        log_likelihoods(model, [Target([5], [6])])
    with pytest.raises(ValueError, match="the mask token must lie in the vocabulary of 131 tokens, got 131"):
        log_likelihoods(model, [Target([5], [6])], mask_id=131)
    with pytest.raises(TypeError, match="config must be a LikelihoodConfig, got dict"):
        log_likelihoods(model, [Target([5], [6])], {}, mask_id=MASK_ID)
    with pytest.raises(TypeError, match="on_estimate must be callable, got int"):
        log_likelihoods(model, [Target([5], [6])], mask_id=MASK_ID, on_estimate=1)
    with pytest.raises(ValueError, match="model's 96 positions, got 97"):
        log_likelihoods(model, [Target([5], [6])], LikelihoodConfig(max_length=97), mask_id=MASK_ID)
    with pytest.raises(ValueError, match="n_target_tokens must be at least 1, got 0"):
        count_rows(0, LikelihoodConfig())
    assert log_likelihoods(model, [], mask_id=MASK_ID) == []


@pytest.mark.parametrize(
    "settings, error, message",
    [
        (
            dict(likelihood="monte-carlo"),
            ValueError,
            "likelihood must be one of exact, as-published, ar_ftb, ar_btf, got 'monte-carlo'",
        ),
        (dict(form="bert"), ValueError, "form must be one of llada, dream, got 'bert'"),
        (dict(impl="cuda"), ValueError, "impl must be one of"),
        (dict(blocks_from="prompt"), ValueError, "blocks_from must be one of row, context"),
        (dict(mc_num=0), ValueError, "mc_num must be at least 1, got 0"),
        (dict(mc_num=2**40), ValueError, "mc_num must be at most 65536, got 1099511627776"),
        (dict(mc_num="8"), TypeError, "mc_num must be an integer, got str"),
        (dict(batch_size=0), ValueError, "batch_size must be at least 1, got 0"),
        (dict(tokens_per_forward=0), ValueError, "tokens_per_forward must be at least 1"),
        (dict(exact_up_to=17), ValueError, "exact_up_to must be from 0 to 16, got 17"),
        (dict(sampling_eps=1.0), ValueError, "sampling_eps must be below 1, got 1.0"),
        (dict(cfg_scale=-1.0), ValueError, "cfg_scale must be finite and at least 0"),
        (dict(check_greedy="yes"), TypeError, "check_greedy must be True or False, got 'yes'"),
        (dict(right_shift_logits=1), TypeError, "right_shift_logits must be True or False"),
        (dict(likelihood="as-published", batch_size=3), ValueError, "mc_num must be a multiple of batch_size"),
        (dict(mc=3), TypeError, "mc"),
    ],
)
def test_settings(settings, error, message):
    with pytest.raises(error, match=message):
        LikelihoodConfig(**settings)


def test_long_contexts_lose_their_beginning_and_that_is_counted(model, caplog):
    context = [5 + i % 100 for i in range(POSITIONS + 4)]
    with caplog.at_level(logging.WARNING, "dllm.core.likelihood"):
        cut, fits = log_likelihoods(model, [Target(context, [6]), Target([5], [6])], mask_id=MASK_ID)
    assert (cut.cut, fits.cut) == (5, 0)
    assert "1 of 2 contexts were cut on the left to rows of 96 tokens" in caplog.text
    (same,) = log_likelihoods(model, [Target(context[5:], [6])], mask_id=MASK_ID)
    assert cut.log_likelihood == pytest.approx(same.log_likelihood, rel=1e-5)
    config = LikelihoodConfig(max_length=4)
    (short,) = log_likelihoods(model, [Target(context, [6])], config, mask_id=MASK_ID)
    assert short.cut == len(context) - 3


def test_logits_that_are_no_numbers_are_reported():
    model = tiny("bert")
    with torch.no_grad():
        model.get_output_embeddings().bias[7] = torch.nan
    with pytest.raises(RuntimeError, match="logits must be numbers, got NaN for target 0"):
        log_likelihoods(model, [Target([5], [6])], mask_id=MASK_ID)


def test_a_token_that_can_never_be_has_no_likelihood():
    model = tiny("bert")
    with torch.no_grad():
        model.get_output_embeddings().bias[7] = -torch.inf
    impossible, possible = log_likelihoods(model, [Target([5], [7]), Target([5], [6])], mask_id=MASK_ID)
    assert impossible.log_likelihood == -torch.inf and possible.log_likelihood > -torch.inf
