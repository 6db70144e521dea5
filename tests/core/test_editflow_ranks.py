"""EditFlowTrainer on two ranks, by DDP and by FSDP2, is one process with batches twice as large."""

from __future__ import annotations

import json

import pytest
import torch

from dllm.models import get_model
from dllm_kernels.testing import assert_sum_no_worse
from tests import launch
from tests.core.edit_runs import check_step, model_of, one_kind_each, prompted, trainer_of, truth

pytestmark = pytest.mark.usefixtures("one_thread")

# With one kind each, a forward of one sample has nothing to learn for one of the heads, which is another one on the
# other rank: DDP waits for its gradient all the same, and FSDP gathers and scatters it on both.
STRICT = dict(ddp_find_unused_parameters=False)
CASES = [
    dict(size=2, accumulation=2, **STRICT),
    dict(size=4, accumulation=1, x0_sampler="empty", **STRICT),
    dict(size=1, accumulation=4, x0_sampler="one kind each", **STRICT),
    dict(size=2, accumulation=2, fsdp=True),
    dict(size=1, accumulation=4, x0_sampler="one kind each", fsdp=True),
    dict(size=4, accumulation=1, fsdp=True, bf16=True, loss_norm_type="batch"),
]
# four steps with a checkpoint after each
LONG = dict(size=2, accumulation=1, num_train_epochs=2, learning_rate=1e-2, dropout=0.1)
KEPT = dict(save_strategy="steps", save_steps=1, save_only_model=False)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the ranks found: in each case; in a long run by DDP, itself resumed, the same by FSDP2."""
    folder = tmp_path_factory.mktemp("ranks")
    runs = list(CASES)
    for name in ("ddp", "fsdp"):
        long, own = LONG | dict(fsdp=name == "fsdp"), folder / name
        runs.append(long | KEPT | dict(output_dir=str(own), saved=str(own / "whole")))
        runs.append(long | dict(resume=str(own / "checkpoint-2"), saved=str(own / "resumed")))
    return folder, launch.two_ranks(folder, "tests.core.edit_runs", json.dumps(runs))


def trainer_of_case(folder, case):
    """A trainer whose collator makes the pairs and edits of the case."""
    named = case.get("x0_sampler", "masks[length:5]")
    options = dict(x0_sampler=one_kind_each if named == "one kind each" else named)
    return trainer_of(folder, model_of(), [], loss_norm_type=case.get("loss_norm_type", "sequence"), **options)


def logged(rank: dict, name: str) -> float:
    (value,) = [entry[name] for entry in rank["logs"] if name in entry]
    return value


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: str(CASES[number]))
def test_two_ranks_are_one_batch(number, found, tmp_path):
    case, trainer = CASES[number], trainer_of_case(tmp_path, CASES[number])
    dtype = torch.bfloat16 if case.get("bf16") else torch.float32
    loss64, plain = (truth(trainer, prompted(8), each)[0] for each in (torch.float64, dtype))
    for rank in found[1]:
        (step,) = rank[number]["gradients"]
        check_step(step, trainer, prompted(8), dtype)
        assert_sum_no_worse(logged(rank[number], "train_loss"), plain / 8, loss64 / 8)
        assert rank[number]["sharded"] == (len(list(model_of().parameters())) if case.get("fsdp") else 0)


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: str(CASES[number]))
def test_evaluation_counts_no_sample_twice(number, found, tmp_path):
    """Seven samples on two ranks: the last batch is filled up with one that must not count."""
    case, trainer, samples = CASES[number], trainer_of_case(tmp_path, CASES[number]), prompted(7, seed=5)
    dtype = torch.bfloat16 if case.get("bf16") else torch.float32
    loss64, plain = (truth(trainer, samples, each)[0] for each in (torch.float64, dtype))
    tokens = trainer._make_collator()(samples)["corruption"]["maskable"]
    share = tokens / tokens.sum() if trainer.args.loss_norm_type == "sequence" else 1 / tokens.sum()
    for rank in found[1]:
        evaluation = rank[number]["evaluation"]
        assert_sum_no_worse(evaluation["eval_loss"], plain / 7, loss64 / 7)
        assert_sum_no_worse(evaluation["eval_loss_per_token"], plain * share, loss64 * share)


def test_fsdp_rounds_no_loss(found, tmp_path):
    """It rounds all that leaves the model to bfloat16: a gradient may bear it, a loss may not."""
    number = next(number for number, case in enumerate(CASES) if case.get("bf16"))
    tokens = trainer_of_case(tmp_path, CASES[number])._make_collator()(prompted(8))["corruption"]["maskable"]
    for rank in found[1]:
        # one number, summed in float32 in two ways, over kinds of edits or by samples
        of_samples = logged(rank[number], "loss_per_token") * float(tokens.sum()) / 8
        rounded = 32 * torch.finfo(torch.float32).eps
        assert logged(rank[number], "train_loss") == pytest.approx(of_samples, rel=rounded)


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_a_resumed_run_follows_the_uninterrupted_one(name, found):
    folder, first = found[0] / name, len(CASES) + 2 * (name == "fsdp")
    for rank in found[1]:
        whole, resumed = rank[first : first + 2]
        assert len(whole["gradients"]) == 4 and len(resumed["gradients"]) == 2
        assert all(torch.equal(a, b) for a, b in zip(whole["gradients"][2:], resumed["gradients"], strict=True))
        assert whole["evaluation"]["eval_loss"] == resumed["evaluation"]["eval_loss"]
    models = [get_model(model_name_or_path=str(folder / name), dtype="float32") for name in ("whole", "resumed")]
    start = model_of().state_dict()
    for key, weight in models[0].state_dict().items():
        assert torch.equal(weight, models[1].state_dict()[key]), key
        assert weight.shape == start[key].shape
    changed = {key for key, weight in models[0].state_dict().items() if not torch.equal(weight, start[key])}
    assert {"sub_logits.weight", "ins_logits.weight", "rate_heads.weight", "rate_heads.bias"} <= changed
