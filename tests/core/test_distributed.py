"""Two processes over gloo are one process with batches twice as large."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dllm.core.trainers import MDLMConfig
from dllm_kernels.testing import assert_no_worse, assert_sum_no_worse
from tests.core.rank import two_ranks
from tests.core.reference import Objective
from tests.core.runs import KINDS, model_of, samples_of
from tests.core.test_mdlm import truth

pytestmark = pytest.mark.usefixtures("one_thread")

UNUSED, STRICT = dict(ddp_find_unused_parameters=True), dict(ddp_find_unused_parameters=False)
STATIC = dict(ddp_static_graph=True)
CHECKPOINTED = dict(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False})

# one forward and several; every normalisation; both kinds of forward; DDP that looks for unused weights, that relies
# on there being none, that learns the order of gradients from the first step (an option since transformers 5)
CASES = [
    ("token", "Strict", 4, 1, {}),
    ("token", "Loose", 2, 2, UNUSED),
    ("sequence", "Loose", 1, 4, STRICT),
    ("batch", "Strict", 2, 2, STRICT | CHECKPOINTED),
]
if "ddp_static_graph" in {known.name for known in dataclasses.fields(MDLMConfig)}:
    CASES.append(("token", "Loose", 4, 1, STATIC))
    CASES.append(("sequence", "Strict", 4, 1, STATIC | CHECKPOINTED))


def run_settings(norm: str, kind: str, size: int, accumulation: int, further: dict) -> dict:
    options = dict(per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, num_train_epochs=1)
    options |= dict(learning_rate=0.0, per_device_eval_batch_size=2)
    return dict(norm=norm, kind=kind, samples=8, evaluated=7, options=options | further)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[list[dict]]:
    return two_ranks(tmp_path_factory.mktemp("ranks"), [run_settings(*case) for case in CASES])


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_are_one_batch(case, ranks):
    norm, kind, *_ = case
    objective, (first, second) = Objective(norm=norm), (rank[CASES.index(case)] for rank in ranks)
    model, samples = model_of(KINDS[kind]), samples_of(8)
    loss64, nll64, exact = truth(model, samples, objective, torch.float64)
    _, nll32, plain = truth(model, samples, objective, torch.float32)
    for rank in (first, second):
        (step,) = rank["gradients"]
        assert_no_worse({"gradient": step}, {"gradient": plain}, {"gradient": exact}, entries=False)
        assert rank["used"] == "linear"
    (entry,) = [entry for entry in first["logs"] if "loss" in entry]
    assert abs(entry["loss"] - float(loss64.sum())) < 1e-4  # transformers 4 logs four digits
    assert_sum_no_worse(entry["nll"], nll32, nll64)


@pytest.mark.parametrize("case", CASES)
def test_evaluation_counts_no_sample_twice(case, ranks):
    """Seven samples on two ranks: the last batch is filled up with one that must not count."""
    norm, kind, *_ = case
    objective, model, samples = Objective(norm=norm), model_of(KINDS[kind]), samples_of(7, seed=5)
    loss64, nll64, _ = truth(model, samples, objective, torch.float64)
    loss32, nll32, _ = truth(model, samples, objective, torch.float32)
    for rank in ranks:
        found = rank[CASES.index(case)]["evaluation"]
        assert_sum_no_worse(found["eval_loss"], loss32, loss64)
        assert_sum_no_worse(found["eval_nll"], nll32, nll64)
