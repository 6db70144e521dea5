"""DiffuGRPOTrainer on two ranks, by DDP and by FSDP2, is one process with forwards twice as large."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from dllm_kernels.testing import assert_no_worse
from tests import launch
from tests.core.rl.grpo_runs import flat, run
from tests.core.runs import LooseModern

pytestmark = pytest.mark.usefixtures("one_thread")

# Three steps, the first two on the same eight completions. The reference follows after the second.
STEPS = dict(num_iterations=2, max_steps=3, num_train_epochs=9, optim="sgd", learning_rate=3e-3)
STEPS |= dict(beta=0.1, per_device_eval_batch_size=1)
FOLLOWED = dict(sync_ref_model=True, ref_model_sync_steps=2)
# Forwards of four and of two completions on each rank, in groups of two (on one rank), of four and of eight (on both);
# every normalisation, of completions that differ in length; adapters, whose reference is the model without them.
CASES = [
    dict(per_device_train_batch_size=4, num_generations=8, scale_rewards=True, **FOLLOWED),
    dict(per_device_train_batch_size=2, num_generations=4, loss_type="grpo", generation_batch_size=3),
    dict(per_device_train_batch_size=4, num_generations=8, loss_type="dr_grpo", adapter=True),
    dict(per_device_train_batch_size=2, num_generations=4, fsdp=True, **FOLLOWED),
    # a seed whose steps are small: where a ratio explodes, float32 and float64 part
    dict(per_device_train_batch_size=4, num_generations=2, fsdp=True, adapter=True, seed=1),
]
# Seven steps, three on the same completions; a checkpoint after the fourth is amid an iteration.
LONG = dict(per_device_train_batch_size=4, num_generations=8, num_iterations=3, max_steps=7, num_train_epochs=9)
LONG |= dict(learning_rate=1e-3, beta=0.1, sync_ref_model=True, ref_model_sync_steps=2)
KEPT = dict(save_strategy="steps", save_steps=4, save_only_model=False)
LONG_RUNS = ("ddp", "fsdp")
# by task and reward: the rank on which it fails, and the error there
FAILURES = {
    ("train", "raises_on_one_rank"): (1, "RewardError", "ArithmeticError: no reward here"),
    ("evaluate", "one_too_few_on_one_rank"): (0, "ValueError", "must return"),
}


def settings(case: dict, processes: int) -> dict:
    """The arguments of a case: eight completions a step, of one process or two."""
    size = case["per_device_train_batch_size"] * 2 // processes
    return STEPS | case | dict(per_device_train_batch_size=size, gradient_accumulation_steps=8 // size // processes)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the ranks found: in each case; in a long run by DDP, itself resumed; the same by FSDP2; what rewards that
    fail on one rank say. A rank that waits for another gives up after a minute."""
    folder = tmp_path_factory.mktemp("ranks")
    runs = [settings(case, processes=2) | dict(ddp_timeout=60) for case in CASES]
    for name in LONG_RUNS:
        long, own = LONG | dict(fsdp=name == "fsdp"), folder / name
        runs.append(long | KEPT | dict(output_dir=str(own), saved=str(own / "whole")))
        runs.append(long | dict(resume=str(own / "checkpoint-4"), saved=str(own / "resumed")))
    runs += [dict(task=task, reward=reward) for task, reward in FAILURES]
    return folder, launch.two_ranks(folder, "tests.core.rl.grpo_runs", json.dumps(runs))


def of_all(ranks: list[dict], name: str) -> Tensor:
    """An entry of the last rollouts of all ranks, by places."""
    places = torch.cat([rank["places"] for rank in ranks])
    return torch.cat([rank["rollouts"][name] for rank in ranks])[places.argsort()]


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: str(CASES[number]))
def test_two_ranks_are_one_process(number, found, tmp_path):
    alone = settings(CASES[number] | dict(fsdp=False), processes=1)
    truth, plain = (run(tmp_path, plain=dtype, **alone) for dtype in ("float64", "float32"))
    ranks = [rank[number] for rank in found[1]]
    for name in ("completions", "lengths", "advantages"):
        assert torch.equal(of_all(ranks, name), truth["rollouts"][name])
    assert len(truth["rollouts"]["lengths"].unique()) > 1 and truth["rollouts"]["advantages"].any()
    for rank in ranks:
        assert rank["sharded"] == CASES[number].get("fsdp", False)
        assert_no_worse(*map(rounded, (rank, plain, truth)), entries=False)
        assert torch.equal(rank["weights"], ranks[0]["weights"])
        check_logs(rank, truth)


def rounded(one: dict) -> dict[str, Tensor]:
    """What a run computes in floating point: gradients of its steps, weights at its end."""
    gradients = {f"gradient {step}": gradient for step, gradient in enumerate(one["gradients"])}
    return gradients | {name: one[name] for name in ("weights", "reference") if one[name] is not None}


def check_logs(one: dict, other: dict) -> None:
    """The same rewards, also in evaluation: of its three prompts two ranks answer one twice, which must not count."""
    for name in ("reward", "rewards/spread", "completion_length"):
        assert logged(one, name) == logged(other, name)
        assert one["evaluation"][f"eval_{name}"] == other["evaluation"][f"eval_{name}"]
    for name in ("loss", "kl", "clip_ratio", "reward_std", "zero_std"):
        # four digits, as transformers 4 logs a loss
        assert logged(one, name) == pytest.approx(logged(other, name), rel=1e-4, abs=1e-4)


def logged(one: dict, name: str) -> list[float]:
    return [entry[name] for entry in one["logs"] if name in entry]


@pytest.mark.parametrize("name", LONG_RUNS)
def test_a_run_resumed_amid_an_iteration_follows_the_uninterrupted_one(name, found):
    folder, first = found[0] / name, len(CASES) + 2 * LONG_RUNS.index(name)
    for rank in found[1]:
        whole, resumed = rank[first : first + 2]
        assert len(whole["gradients"]) == 7 and len(resumed["gradients"]) == 3
        assert all(torch.equal(a, b) for a, b in zip(whole["gradients"][4:], resumed["gradients"], strict=True))
        assert all(torch.equal(whole[part], resumed[part]) for part in ("weights", "reference"))
        assert not torch.equal(whole["weights"], whole["reference"])
        assert whole["evaluation"]["eval_reward"] == resumed["evaluation"]["eval_reward"]
    models = [LooseModern.from_pretrained(folder / saved) for saved in ("whole", "resumed")]
    assert all(torch.equal(flat(model), whole["weights"]) for model in models)


@pytest.mark.parametrize("task, reward", FAILURES)
def test_a_reward_that_fails_on_one_rank_ends_all(task, reward, found):
    number = list(FAILURES).index((task, reward)) - len(FAILURES)
    told = [rank[number] for rank in found[1]]
    failed, kind, message = FAILURES[task, reward]
    assert told[failed].startswith(kind)
    assert told[1 - failed].startswith(f"RewardError: the rewards failed on rank {failed}: {kind}")
    assert all(message in one for one in told)
