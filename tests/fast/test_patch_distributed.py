"""A patched model under DDP, FSDP2 and FSDP1 on two gloo processes: served, or real and said so, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dllm_kernels.testing import assert_no_worse
from tests.fast.patch_rank import STEPS, batch_of, loss_of
from tests.fast.test_masked_loss import model_of
from tests.launch import two_ranks

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[2]
DEFERRED = ("ddp", "ddp, unused parameters", "ddp, static graph", "fsdp2")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    return two_ranks(folder, "tests.fast.patch_rank")


def truth(real: bool) -> dict:
    """float64 gradients of both ranks' losses, averaged over ranks, summed over steps."""
    model = model_of().double()
    for step in range(STEPS):
        for rank in range(2):
            (loss_of(model, *batch_of(rank, step), real)[1] / 2).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def flat(gradients: dict, exact: dict) -> dict:
    assert gradients.keys() == exact.keys()
    return {"gradient": torch.cat([gradients[name].flatten() for name in exact])}


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("case", DEFERRED)
def test_served(case, when, real, ranks):
    exact = truth(real)
    for rank in ranks:
        assert rank[case, when, real]["deferred"] and not rank[case, "never", real]["deferred"]
        found, plain = (rank[case, who, real]["gradients"] for who in (when, "never"))
        assert_no_worse(flat(found, exact), flat(plain, exact), flat(exact, exact), entries=False)


@pytest.mark.parametrize("case, when", [("fsdp2, head by itself", "before"), ("fsdp1", "before"), ("fsdp1", "after")])
def test_real_where_the_weight_is_only_lent(case, when, ranks):
    for rank in ranks:
        found, expected = rank[case, when, False], rank[case, "never", False]["gradients"]
        assert not found["deferred"] and found["gradients"].keys() == expected.keys()
        assert all(gradient.equal(expected[name]) for name, gradient in found["gradients"].items())


def test_refused(ranks):
    for rank in ranks:
        for when in ("before", "after"):
            assert "it has been given back" in rank["fsdp2, root resharded", when, False]["refused"]
        assert "must be an nn.Linear, got" in rank["fsdp2, head by itself", "after", False]["refused"]
