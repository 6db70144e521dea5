"""Two processes over gloo are one process with batches twice as large."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dllm.core.trainers import MDLMConfig
from dllm_kernels.testing import assert_no_worse, assert_sum_no_worse
from tests.core.rank import TRAINERS, two_ranks
from tests.core.runs import KINDS, model_of, objective_of, samples_for
from tests.core.test_mdlm import truth

pytestmark = pytest.mark.usefixtures("one_thread")

UNUSED, STRICT = dict(ddp_find_unused_parameters=True), dict(ddp_find_unused_parameters=False)
STATIC = dict(ddp_static_graph=True)
CHECKPOINTED = dict(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False})

# one forward and several; every normalisation; both kinds of forward; DDP that looks for unused weights, that relies
# on there being none, that learns the order of gradients from the first step (an option since transformers 5); of MDLM
# and of Dream
CASES = [
    ("MDLM", "token", "Strict", 4, 1, {}),
    ("MDLM", "token", "Loose", 2, 2, UNUSED),
    ("MDLM", "sequence", "Loose", 1, 4, STRICT),
    ("MDLM", "batch", "Strict", 2, 2, STRICT | CHECKPOINTED),
    ("Dream", "token", "Loose", 2, 2, STRICT),
    ("Dream", "sequence", "Strict", 4, 1, {}),
]
if "ddp_static_graph" in {known.name for known in dataclasses.fields(MDLMConfig)}:
    CASES.append(("MDLM", "token", "Loose", 4, 1, STATIC))
    CASES.append(("MDLM", "sequence", "Strict", 4, 1, STATIC | CHECKPOINTED))

# a checkpoint after each of four steps, with dropout
LONG = dict(per_device_train_batch_size=2, num_train_epochs=2, learning_rate=1e-2, per_device_eval_batch_size=2)
KEPT = dict(save_strategy="steps", save_steps=1, save_only_model=False)


def run_settings(trainer: str, norm: str, kind: str, size: int, accumulation: int, further: dict) -> dict:
    options = dict(per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, num_train_epochs=1)
    options |= dict(learning_rate=0.0, per_device_eval_batch_size=2)
    return dict(trainer=trainer, norm=norm, kind=kind, samples=8, evaluated=7, options=options | further)


def truths(case: tuple, count: int, seed: int = 0) -> list[tuple]:
    """Loss, NLL and gradient of a case in plain PyTorch, in float64 and in float32."""
    trainer, norm, kind, *_ = case
    given = samples_for(TRAINERS[trainer], count, seed), objective_of(TRAINERS[trainer], norm)
    return [truth(model_of(KINDS[kind]), *given, dtype) for dtype in (torch.float64, torch.float32)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the ranks found: in each case, in a long run of Dream with checkpoints, in that run resumed."""
    folder = tmp_path_factory.mktemp("ranks")
    runs = [run_settings(*case) for case in CASES]
    long = dict(trainer="Dream", norm="token", kind="Loose", model=dict(dropout=0.1), samples=8, evaluated=7)
    runs.append(long | dict(options=LONG | KEPT, saved=str(folder / "whole")))
    resumed = dict(resume=str(folder / "checkpoint-2"), saved=str(folder / "resumed"))
    return folder, two_ranks(folder, [*runs, long | dict(options=LONG) | resumed])


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_are_one_batch(case, found):
    (loss64, nll64, exact), (_, nll32, plain) = truths(case, 8)
    first, second = (rank[CASES.index(case)] for rank in found[1])
    for rank in (first, second):
        (step,) = rank["gradients"]
        assert_no_worse({"gradient": step}, {"gradient": plain}, {"gradient": exact}, entries=False)
        assert rank["used"] == "linear"
    (entry,) = [entry for entry in first["logs"] if "loss" in entry]
    assert abs(entry["loss"] - float(loss64.sum())) < 1e-4  # transformers 4 logs four digits
    assert_sum_no_worse(entry["nll"], nll32, nll64)


@pytest.mark.parametrize("case", CASES)
def test_evaluation_counts_no_sample_twice(case, found):
    """Seven samples on two ranks: the last batch is filled up with one that must not count."""
    (loss64, nll64, _), (loss32, nll32, _) = truths(case, 7, seed=5)
    for rank in found[1]:
        evaluation = rank[CASES.index(case)]["evaluation"]
        assert_sum_no_worse(evaluation["eval_loss"], loss32, loss64)
        assert_sum_no_worse(evaluation["eval_nll"], nll32, nll64)


def test_a_resumed_run_of_dream_follows_the_uninterrupted_one(found):
    folder, ranks = found
    for rank in ranks:
        whole, resumed = rank[-2:]
        assert len(whole["gradients"]) == 4 and len(resumed["gradients"]) == 2
        assert all(torch.equal(a, b) for a, b in zip(whole["gradients"][2:], resumed["gradients"], strict=True))
        assert whole["evaluation"]["eval_loss"] == resumed["evaluation"]["eval_loss"]
    models = [KINDS["Loose"].from_pretrained(folder / name).state_dict() for name in ("whole", "resumed")]
    assert all(torch.equal(weight, models[1][name]) for name, weight in models[0].items())
