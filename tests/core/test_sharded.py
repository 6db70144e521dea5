"""FSDP2 on two processes over gloo, the LM head sharded, is one process with batches twice as large.

ModernBERT, because torch's FSDP2 (from 2.13) refuses modules that share a weight and are sharded apart, and accelerate
shards a BERT so: its head's bias belongs to two modules. How accelerate is brought to FSDP on a CPU: rank.py.
"""

from __future__ import annotations

import pytest
import torch
import transformers

from dllm_kernels.testing import assert_no_worse, assert_sum_no_worse
from tests.core.rank import TRAINERS, two_ranks
from tests.core.reference import Objective
from tests.core.runs import KINDS, VOCABULARY, model_of, objective_of, samples_for, samples_of
from tests.core.test_mdlm import truth
from tests.families.toys import load

pytestmark = pytest.mark.usefixtures("one_thread")

# every normalisation; both kinds of forward; the head tied to the embedding or not, or sharded by itself and given up
# after its forward, which accelerate does not; one forward and several; of MDLM and of Dream
CASES = [
    ("MDLM", "token", "LooseModern", "tied", 2, 2),
    ("MDLM", "sequence", "StrictModern", "untied", 1, 4),
    ("MDLM", "batch", "LooseModern", "alone", 2, 2),
    ("MDLM", "batch", "StrictModern", "tied", 4, 1),
    ("Dream", "token", "LooseModern", "tied", 2, 2),
]
RATE = 0.1
V4 = transformers.__version__.startswith("4.")
MIXTURE = "lladamoe"  # a small official checkpoint: the layers of a mixture of experts
# 8 samples, four a step: two steps an epoch, a checkpoint after each
LONG = dict(per_device_train_batch_size=2, num_train_epochs=2, learning_rate=1e-2)
LONG_RUNS = ("MDLM", "Dream")
KEPT = dict(save_strategy="steps", save_steps=1, save_only_model=False)


def truths(case: tuple, model: torch.nn.Module, count: int, seed: int = 0) -> list[tuple]:
    """Loss, NLL and gradient of a model in plain PyTorch, in float64 and in float32."""
    trainer, norm = TRAINERS[case[0]], case[1]
    given = samples_for(trainer, count, seed), objective_of(trainer, norm)
    return [truth(model, *given, dtype) for dtype in (torch.float64, torch.float32)]


def run_settings(norm: str, kind: str, head: str, options: dict, **others) -> dict:
    options = dict(per_device_eval_batch_size=2) | options
    model = dict(tie_word_embeddings=head == "tied")
    settings = dict(norm=norm, kind=kind, model=model, sharded=True, samples=8, evaluated=7, options=options)
    return settings | dict(head_alone=head == "alone") | others


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the ranks found: in each case, in long runs with checkpoints, each followed by itself resumed, in one of a
    mixture of experts, under bfloat16."""
    folder = tmp_path_factory.mktemp("sharded")
    runs = []
    for i, (trainer, norm, kind, head, size, accumulation) in enumerate(CASES):
        options = dict(per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, num_train_epochs=1)
        options |= dict(learning_rate=RATE, optim="sgd")
        runs.append(run_settings(norm, kind, head, options, trainer=trainer, saved=str(folder / f"case{i}")))
    for trainer in LONG_RUNS:
        own = folder / trainer
        settings = dict(trainer=trainer, saved=str(own / "whole"))
        runs.append(run_settings("token", "LooseModern", "tied", LONG | KEPT | dict(output_dir=str(own)), **settings))
        settings |= dict(resume=str(own / "checkpoint-3"), saved=str(own / "resumed"))
        runs.append(run_settings("token", "LooseModern", "tied", LONG, **settings))
    experts = dict(per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=1)
    if not V4:
        runs.append(run_settings("token", "", "untied", experts, family=MIXTURE))
    halves = dict(per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=1, bf16=True)
    runs.append(run_settings("token", "LooseModern", "tied", halves | dict(learning_rate=0.0)))
    return folder, two_ranks(folder, runs)


def logged(rank: dict, name: str) -> float:
    (value,) = [entry[name] for entry in rank["logs"] if name in entry]
    return value


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_are_one_batch(case, found):
    _, _, kind, head, *_ = case
    number, model = CASES.index(case), model_of(KINDS[kind], tie_word_embeddings=head == "tied")
    (loss64, nll64, exact), (loss32, nll32, plain) = truths(case, model, 8)
    for rank in found[1]:
        (step,) = rank[number]["gradients"]
        assert_no_worse({"gradient": step}, {"gradient": plain}, {"gradient": exact}, entries=False)
        assert rank[number]["used"] == "linear"
        assert_sum_no_worse(logged(rank[number], "train_loss"), loss32, loss64)
        assert_sum_no_worse(logged(rank[number], "nll"), nll32, nll64)


@pytest.mark.parametrize("case", CASES)
def test_the_saved_model_is_whole_and_the_one_that_was_evaluated(case, found):
    _, _, kind, head, *_ = case
    number, start = CASES.index(case), model_of(KINDS[kind], tie_word_embeddings=head == "tied")
    (*_, exact), (*_, plain) = truths(case, start, 8)
    saved = KINDS[kind].from_pretrained(found[0] / f"case{number}")
    assert saved.get_output_embeddings().weight.shape == (VOCABULARY, 32)
    assert (saved.get_output_embeddings().weight is saved.get_input_embeddings().weight) == (head == "tied")
    weights, before = (torch.cat([p.detach().double().flatten() for p in m.parameters()]) for m in (saved, start))
    ulp = torch.finfo(torch.float32).eps * float(before.norm())  # a step of SGD rounds the weights once
    assert float((weights - (before - RATE * exact)).norm()) <= 2 * RATE * float((plain - exact).norm()) + ulp
    (loss64, nll64, _), (loss32, nll32, _) = truths(case, saved, 7, seed=5)
    for rank in found[1]:
        evaluation = rank[number]["evaluation"]
        assert_sum_no_worse(evaluation["eval_loss"], loss32, loss64)
        assert_sum_no_worse(evaluation["eval_nll"], nll32, nll64)


@pytest.mark.parametrize("trainer", LONG_RUNS)
def test_a_resumed_run_follows_the_uninterrupted_one(trainer, found):
    folder, first = found[0] / trainer, len(CASES) + 2 * LONG_RUNS.index(trainer)
    for rank in found[1]:
        whole, resumed = rank[first : first + 2]
        assert len(whole["gradients"]) == 4 and len(resumed["gradients"]) == 1
        assert torch.equal(whole["gradients"][-1], resumed["gradients"][-1])
        assert whole["evaluation"]["eval_loss"] == resumed["evaluation"]["eval_loss"]
    models = [KINDS["LooseModern"].from_pretrained(folder / name).state_dict() for name in ("whole", "resumed")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


@pytest.mark.skipif(
    V4, reason="transformers 4 skips experts without tokens, whose gradients FSDP2 then lacks on a rank"
)
def test_a_mixture_of_experts(found):
    model, samples = load(MIXTURE), samples_of(8)
    loss64, nll64, exact = truth(model, samples, Objective(), torch.float64)
    loss32, nll32, plain = truth(model, samples, Objective(), torch.float32)
    for *_, rank, _ in found[1]:
        (step,) = rank["gradients"]
        assert_no_worse({"gradient": step}, {"gradient": plain}, {"gradient": exact}, entries=False)
        assert_sum_no_worse(logged(rank, "train_loss"), loss32, loss64)
        assert_sum_no_worse(logged(rank, "nll"), nll32, nll64)


def test_bfloat16(found):
    """FSDP rounds all that leaves the model to the precision of its policy: a gradient may bear it, a loss may not."""
    objective, model, samples = Objective(), model_of(KINDS["LooseModern"]), samples_of(8)
    loss64, nll64, exact = truth(model, samples, objective, torch.float64)
    loss16, nll16, plain = truth(model, samples, objective, torch.bfloat16)
    for rank in found[1]:
        (step,) = rank[-1]["gradients"]
        assert_no_worse({"gradient": step}, {"gradient": plain}, {"gradient": exact}, entries=False)
        loss, nll = logged(rank[-1], "train_loss"), logged(rank[-1], "nll")
        assert_sum_no_worse(loss, loss16, loss64)
        assert_sum_no_worse(nll, nll16, nll64)
        # one number, summed in float32 in two ways, by a forward of at most 24 rows or by samples
        assert loss == pytest.approx(nll, rel=32 * torch.finfo(torch.float32).eps)
