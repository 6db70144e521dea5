"""The greedy flag against a loop that unmasks one token at a time."""

from __future__ import annotations

import pytest
import torch

from dllm.core.likelihood import LikelihoodConfig, Target, log_likelihoods
from dllm.fast.model import MARKER
from tests.causal_models import causal_model
from tests.core.likelihood.counting import forwards_counted
from tests.core.likelihood.likelihood_reference import Reference
from tests.models import MASK_ID, tiny

pytestmark = pytest.mark.usefixtures("one_thread")


def decoded(reference: Reference, context: list[int], n: int, after=()) -> list[int]:
    """What greedy decoding gives."""
    row = [*context, *[MASK_ID] * n, *after]
    while MASK_ID in row:
        log_prob, token = reference.log_probs(row, len(context)).max(-1)
        best = max((c for c, t in enumerate(row) if t == MASK_ID), key=lambda c: float(log_prob[c]))
        row[best] = int(token[best])
    return row[len(context) : len(context) + n]


@pytest.mark.parametrize("family, shift", [("modernbert", False), ("Qwen2", True)])
@pytest.mark.parametrize("cfg_scale", [0.0, 1.0])
def test_against_the_loop(family, shift, cfg_scale):
    model = causal_model("Qwen2") if family == "Qwen2" else tiny(family)
    reference = Reference(model, shift=shift, cfg_scale=cfg_scale)
    targets, expected = [], []
    for n in (1, 2, 4, 9):  # the last is not summed exactly, so it is decoded in forwards of its own
        for seed in range(3):
            context = torch.randint(5, 97, (4 + seed,), generator=torch.Generator().manual_seed(10 * n + seed)).tolist()
            right = decoded(reference, context, n)
            for change in (None, 0, n - 1):
                target = [t if i != change else 5 + (t - 4) % 92 for i, t in enumerate(right)]
                targets.append(Target(context, target, seed))
                expected.append(target == right)
                assert reference.greedy(context, target) == expected[-1]
    assert True in expected and False in expected
    config = LikelihoodConfig(check_greedy=True, right_shift_logits=shift, mc_num=16, cfg_scale=cfg_scale)
    found = log_likelihoods(model, targets, config, mask_id=MASK_ID)
    assert [estimate.greedy for estimate in found] == expected
    plain = LikelihoodConfig(right_shift_logits=shift, mc_num=16, cfg_scale=cfg_scale)
    unasked = log_likelihoods(model, targets, plain, mask_id=MASK_ID)
    assert [estimate._replace(greedy=None) for estimate in found] == unasked


def test_targets_that_are_summed_exactly_are_decided_by_the_same_rows():
    model = tiny("modernbert")
    target = Target([5, 6], decoded(Reference(model), [5, 6], 3))
    config = LikelihoodConfig(check_greedy=True)
    with forwards_counted() as shapes:
        (found,) = log_likelihoods(model, [target], config, mask_id=MASK_ID)
    assert found.greedy is True and shapes == [(7, 5)]


def test_blocks_are_decoded_one_after_the_other():
    model = causal_model("Llama", max_position_embeddings=69)
    setattr(model.config, MARKER, {"block_size": 4})
    reference = Reference(model, block_size=4)
    context, right = [5, 6, 7, 8, 9], []
    for n in (3, 4, 2):  # the rest of the second block, the third, a part of the fourth
        right += decoded(reference, context + right, n)
    wrong = [*right[:-1], 5 + (right[-1] - 4) % 92]
    for config in (LikelihoodConfig(check_greedy=True), LikelihoodConfig(check_greedy=True, exact_up_to=2, mc_num=5)):
        found = log_likelihoods(model, [Target(context, right), Target(context, wrong)], config, mask_id=MASK_ID)
        assert [estimate.greedy for estimate in found] == [True, False]
