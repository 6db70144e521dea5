"""DiffuGRPOTrainer: its loss against scalars, its step against full logits, and what it must not depend on."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from peft import LoraConfig

from dllm.core.rl import DiffuGRPOConfig
from dllm.core.rl.loss import group_advantages, policy_loss
from dllm.core.rl.policies import Reference
from dllm.core.rl.prompts import Prompts, RepeatedPrompts
from dllm.core.rl.rollouts import lengths_to_eos, rollout_seeds
from dllm.core.trainers.batches import CORRUPTION
from dllm.fast.training.loss import loss_of_nll
from dllm_kernels.testing import assert_no_worse
from tests.core.rl.grpo_runs import EOS, ROWS, Words, trainer_of
from tests.core.rl.plain_rewards import counted, equal, spread
from tests.core.runs import Gradients, KillAt, Killed, losses, model_of
from tests.models import MASK_ID

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("advantage", [-1.5, 0.0, 2.0])
@pytest.mark.parametrize("change", [-0.5, 0.0, 0.1, 0.5])
def test_the_loss_of_a_token(advantage, change):
    """The ratio has a gradient unless it is beyond its bound on the side that the advantage pushes to."""
    new, old, reference, beta = -1.0 + change, -1.0, -1.3, 0.04
    ratio, d = math.exp(change), reference - new
    bounded = min(max(ratio, 0.8), 1.3)
    l = torch.tensor([new], dtype=torch.float64, requires_grad=True)
    given = (torch.tensor([x], dtype=torch.float64) for x in (old, reference, advantage))
    found = policy_loss(l, *given, epsilon=0.2, epsilon_high=0.3, beta=beta)
    kl = math.exp(d) - d - 1
    assert found.loss.item() == pytest.approx(-min(ratio * advantage, bounded * advantage) + beta * kl, rel=1e-12)
    assert found.kl.item() == pytest.approx(kl, rel=1e-9)
    stopped = (advantage > 0 and ratio > 1.3) or (advantage < 0 and ratio < 0.8)
    found.loss.sum().backward()
    slope = (0.0 if stopped else -ratio * advantage) + beta * (1 - math.exp(d))
    assert l.grad.item() == pytest.approx(slope, rel=1e-9, abs=1e-12)
    assert found.clipped.item() == stopped


def test_advantages():
    rewards = torch.tensor([1.0, 2.0, 6.0, 4.0, 4.0, 4.0], dtype=torch.float64)
    assert group_advantages(rewards, 3).tolist() == [-2, -1, 3, 0, 0, 0]
    deviation = math.sqrt((4 + 1 + 9) / 2) + 1e-4
    expected = [advantage / deviation for advantage in (-2, -1, 3, 0, 0, 0)]
    assert group_advantages(rewards, 3, scaled=True).tolist() == pytest.approx(expected)


def stepped(folder, rewards=spread, model=None, **options):
    """The trainer after its steps, the gradients of each, and the model before."""
    watch, model = Gradients(), model_of() if model is None else model
    before = copy.deepcopy(model)
    trainer = trainer_of(folder, rewards, model, callbacks=[watch], **options)
    trainer.train()
    return trainer, watch.seen, before


def plain_gradient(trainer, model, dtype, norm):
    """Of one step on new completions, from full logits: the ratio is 1, its gradient that of the log-probability."""
    model, total, count = model.to(dtype), 0.0, 0
    width = trainer.args.max_completion_length
    for number in range(len(trainer._rollouts.prompts)):
        inputs = trainer._batch(slice(number, number + 1), 0)["input_ids"]
        length, first = int(trainer._rollouts.lengths[number]), inputs.shape[1] - width
        assert (inputs[0, first:] == MASK_ID).all()
        logits = model(input_ids=inputs).logits[0, first : first + length]
        targets = trainer._rollouts.completions[number, :length]
        terms = -trainer._rollouts.advantages[number] * logits.log_softmax(-1)[range(length), targets].sum()
        total = total + terms / {"bnpo": 1, "grpo": length, "dr_grpo": width}[norm]
        count += length if norm == "bnpo" else 1
    (total / count).backward()
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("norm", ["bnpo", "grpo", "dr_grpo"])
def test_a_step_is_that_of_full_logits(norm, tmp_path):
    trainer, (step,), before = stepped(tmp_path, loss_type=norm)
    assert trainer._rollouts.advantages.abs().max() > 0.5
    exact, plain = (
        plain_gradient(trainer, copy.deepcopy(before), dtype, norm) for dtype in (torch.float64, torch.float32)
    )
    assert_no_worse({"gradient": step}, {"gradient": plain}, {"gradient": exact}, entries=False)


def test_completions_and_step_do_not_depend_on_the_size_of_forwards(tmp_path):
    """Prompts of different length, padded or not; completions generated together or by three."""
    whole, _, before = stepped(tmp_path, per_device_train_batch_size=8)
    exact = plain_gradient(whole, copy.deepcopy(before), torch.float64, "bnpo")
    plain = plain_gradient(whole, copy.deepcopy(before), torch.float32, "bnpo")
    for size, together in ((4, None), (1, 3)):
        options = dict(per_device_train_batch_size=size, gradient_accumulation_steps=8 // size)
        trainer, (step,), _ = stepped(tmp_path, generation_batch_size=together, **options)
        assert torch.equal(trainer._rollouts.completions, whole._rollouts.completions)
        assert_no_worse({"gradient": step}, {"gradient": plain}, {"gradient": exact}, entries=False)
        together = trainer._batch(slice(0, 8), 1)["input_ids"]
        for number in range(8):
            alone = trainer._batch(slice(number, number + 1), 1)["input_ids"][0]
            assert torch.equal(together[number, : len(alone)], alone)


@pytest.mark.parametrize("scaled", [False, True])
def test_equal_rewards_have_no_gradient(scaled, tmp_path):
    trainer, (step,), _ = stepped(tmp_path, equal, scale_rewards=scaled)
    assert not step.any()
    (entry,) = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert entry["loss"] == 0 and entry["zero_std"] == 1 and entry["reward"] == 1


def test_tokens_behind_the_end_are_not_scored(tmp_path):
    completions = torch.tensor([[5, EOS, 7, EOS], [EOS, 5, 6, 7], [5, 6, 7, 8]])
    assert lengths_to_eos(completions, [EOS]).tolist() == [2, 1, 4]
    assert lengths_to_eos(completions, []).tolist() == [4, 4, 4]
    trainer, *_ = stepped(tmp_path)
    trainer._rollouts.lengths[:2] = torch.tensor([2, 1])
    corruption = trainer._batch(slice(0, 2), 0)[CORRUPTION]
    assert corruption["sample"].tolist() == [0, 0, 1] and corruption["column"].tolist() == [0, 1, 0]


def test_the_old_policy_is_the_present_one_before_it_moves(tmp_path):
    """With a learning rate of 0 every ratio is 1, bit for bit, and all iterations see masks of their own."""
    trainer, steps, _ = stepped(tmp_path, num_iterations=3, max_steps=3, beta=0.1)
    old, reference = trainer._rollouts.old, trainer._rollouts.reference
    assert torch.equal(old[1:], reference[1:]) and not torch.equal(old[1], old[2])
    entries = [entry for entry in trainer.state.log_history if "kl" in entry]
    assert [entry["kl"] for entry in entries] == [0, 0, 0] and [entry["clip_ratio"] for entry in entries] == [0, 0, 0]
    assert len({float(step.norm()) for step in steps}) == 3


def test_a_resumed_run_follows_the_uninterrupted_one(tmp_path):
    """Killed between two steps on the same completions, with a reference that follows."""
    options = dict(num_iterations=3, max_steps=7, learning_rate=1e-3, beta=0.1, sync_ref_model=True)
    options |= dict(ref_model_sync_steps=2, save_strategy="steps", save_steps=1, save_only_model=False)
    options |= dict(num_train_epochs=9)
    whole, steps, _ = stepped(tmp_path / "whole", **options)
    with pytest.raises(Killed):
        trainer_of(tmp_path / "cut", callbacks=[KillAt(4)], **options).train()
    watch = Gradients()
    resumed = trainer_of(tmp_path / "cut", callbacks=[watch], **options)
    resumed.train(resume_from_checkpoint=True)
    assert len(watch.seen) == 3 and all(torch.equal(a, b) for a, b in zip(steps[4:], watch.seen, strict=True))
    assert losses(resumed) == losses(whole)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))
    checkpoint = tmp_path / "cut" / "checkpoint-4"
    with pytest.raises(ValueError, match="must hold the 4 completions of a process in a step, got 8"):
        trainer_of(tmp_path / "cut", **options, per_device_train_batch_size=4).train(str(checkpoint))
    (checkpoint / "rollouts-0-of-1.pt").unlink()
    with pytest.raises(ValueError, match="as many processes"):
        trainer_of(tmp_path / "cut", **options).train(str(checkpoint))


def test_the_reference_follows_by_its_share():
    """Also a weight that embedding and head share, which is moved once."""
    model = model_of()
    before, reference = copy.deepcopy(model), Reference(model, "cpu")
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1.0)
    reference.follow(model, 0.5)
    with reference.of(model) as followed:
        for weight, was in zip(followed.parameters(), before.parameters(), strict=True):
            assert torch.allclose(weight, was + 0.5, rtol=0, atol=1e-6) and not weight.requires_grad


def test_the_reference_of_an_adapter_is_its_base(tmp_path):
    config = LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)
    trainer = trainer_of(tmp_path, peft_config=config, beta=0.1)
    trainer.train()
    base = trainer.model.unload()
    inputs = trainer._batch(slice(0, 8), 0)
    corruption = inputs[CORRUPTION]
    with torch.no_grad():
        logits = base.eval()(input_ids=inputs["input_ids"], attention_mask=inputs.get("attention_mask")).logits
    expected = logits.log_softmax(-1).flatten(0, 1)[corruption["rows"], corruption["targets"]]
    assert torch.allclose(corruption["reference"], expected, rtol=0, atol=1e-5)
    (entry,) = [entry for entry in trainer.state.log_history if "kl" in entry]
    assert entry["kl"] > 0


@pytest.mark.parametrize("head", ["linear", "module"])
def test_guidance_is_that_of_full_logits(head):
    model, scale = model_of(tie_word_embeddings=False), 0.7
    if head == "module":
        model.cls.predictions.decoder = torch.nn.Sequential(model.cls.predictions.decoder)
    tokens = torch.randint(5, 90, (4, 6), generator=torch.Generator().manual_seed(0))
    rows, targets = torch.tensor([1, 7, 11]), torch.tensor([9, 10, 11])
    kept = dict(rows=rows, targets=targets, objective=torch.sum, guidance=scale)
    found = loss_of_nll(model, {"input_ids": tokens}, **kept)
    given, hidden = model(input_ids=tokens).logits.double().chunk(2)
    logits = (hidden + (scale + 1) * (given - hidden)).flatten(0, 1)[rows]
    expected = -logits.log_softmax(-1)[range(3), targets]
    assert torch.allclose(found.nll.double(), expected, rtol=0, atol=1e-5)
    assert float(found.loss.detach()) == pytest.approx(float(expected.detach().sum()), rel=1e-5)


def test_guidance_reaches_completions_and_scores(tmp_path):
    guided, (step,), _ = stepped(tmp_path, cfg_scale=1.0)
    _, (other,), _ = stepped(tmp_path)
    assert step.isfinite().all() and not torch.equal(step, other)
    with pytest.raises(ValueError, match="even number of rows"):
        one = torch.tensor([0])
        loss_of_nll(guided.model, {"input_ids": one[None]}, rows=one, targets=one, objective=torch.sum, guidance=1.0)


@pytest.mark.curve
def test_a_reward_rises(tmp_path):
    """One token is rewarded; at the end it is nearly all that is written."""
    # a seed that meets the token early: it is rare, and what is never written is never rewarded
    options = dict(max_steps=40, learning_rate=3e-2, num_train_epochs=99, max_grad_norm=1.0, seed=2)
    trainer, *_ = stepped(tmp_path, counted, **options)
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert sum(rewards[:5]) / 5 < 1 and sum(rewards[-5:]) / 5 > 3
    assert (tmp_path / "training_curve.png").stat().st_size > 0


def test_evaluation(tmp_path):
    trainer = trainer_of(tmp_path, ["xmlcount", counted], eval_dataset=ROWS[:3], per_device_eval_batch_size=2)
    found = trainer.evaluate()
    assert found["eval_reward"] == found["eval_rewards/counted"] and "eval_loss" not in found
    again = trainer_of(tmp_path, ["xmlcount", counted], eval_dataset=ROWS[:3], per_device_eval_batch_size=1).evaluate()
    assert again["eval_completion_length"] == found["eval_completion_length"]


def test_the_order_of_prompts():
    order = RepeatedPrompts(5, per_step=2, group_size=3, iterations=2, generator=torch.Generator().manual_seed(1))
    numbers = list(order)
    assert len(numbers) == len(order) == 24
    first, again = numbers[:6], numbers[6:12]
    assert first == again and [len(set(first[i : i + 3])) for i in (0, 3)] == [1, 1]
    assert len(set(numbers)) == 4


def test_seeds_differ_by_place_update_and_run():
    seeds = [int(rollout_seeds([[5, 6]], [p], u, r)) for p, u, r in itertools.product((0, 1), (0, 1), (0, 1))]
    assert len(set(seeds)) == 8


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(num_generations=1), "num_generations must be an integer of at least 2"),
        (dict(num_generations=3), "must be a multiple of num_generations 3, got 8"),
        (dict(temperature=0.0), "temperature must be above 0"),
        (dict(temperature=float("nan")), "temperature must be finite"),
        (dict(epsilon=1.5), r"epsilon must lie in \[0, 1\]"),
        (dict(loss_type="dapo"), "loss_type must be one of bnpo, grpo, dr_grpo"),
        (dict(remasking="no"), "remasking must be one of"),
        (dict(loss_norm_type="batch"), "loss_norm_type must not be given"),
        (dict(time_max=0.5), "time_max must be 1.0 for diffu-GRPO"),
        (dict(sync_ref_model=True), "sync_ref_model needs a beta above 0"),
        (dict(steps=10**9), "a block must take at most 16384 steps"),
        (dict(max_completion_length=0), "max_completion_length must be an integer of at least 1"),
    ],
)
def test_arguments_that_make_no_sense(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, **options)


def test_bad_input_is_refused_before_anything_runs(tmp_path):
    refused = [
        (dict(rewards=[]), ValueError, "at least one reward"),
        (dict(rewards="xmlcuont"), ValueError, "did you mean 'xmlcount'"),
        (dict(rewards=[3]), TypeError, "a name or a function"),
        (dict(reward_weights=[1.0, 2.0]), ValueError, "reward_weights must be 1 finite numbers"),
        (dict(rewards="countdown"), ValueError, "needs the column"),
        (dict(max_completion_length=200), ValueError, "prompt and completion must fit"),
        (dict(model=model_of().requires_grad_(False)), ValueError, "weights that are trained"),
    ]
    for options, kind, message in refused:
        with pytest.raises(kind, match=message):
            trainer_of(tmp_path, **options)
    with pytest.raises(ValueError, match="takes 5 prompts, got 4"):
        trainer_of(tmp_path, per_device_train_batch_size=20).train()
    for rows, message in (
        ([{"prompt": ""}], "prompt 0 of the data: a prompt must have a token"),
        ([{"prompt": "w5"}, {}], "prompt 1 of the data"),
        ([{"prompt": "w5 w6"}], "no prompt of 1 has at most max_prompt_length 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Prompts(rows, Words(), longest=1)
    with pytest.raises(TypeError, match="a data set with a length"):
        Prompts(iter(ROWS), Words())
    with pytest.raises(TypeError, match="must be a DiffuGRPOConfig"):
        type(trainer_of(tmp_path))({}, model_of(), spread, train_dataset=ROWS, tokenizer=Words())


def test_a_reward_that_gives_no_number_stops_the_run(tmp_path):
    def broken(completions, **columns):
        return [float("nan")] * len(completions)

    with pytest.raises(ValueError, match="must return a finite number or None"):
        trainer_of(tmp_path, broken).train()


def test_defaults_are_those_of_trl_and_dllm(tmp_path):
    config = DiffuGRPOConfig(output_dir=str(tmp_path), report_to="none")
    found = (config.learning_rate, config.num_generations, config.beta, config.epsilon, config.num_iterations)
    assert found == (1e-6, 8, 0.0, 0.2, 1)
    assert (config.p_mask_prompt, config.block_size, config.steps, config.scale_rewards) == (0.3, 64, 64, False)
    assert (config.max_prompt_length, config.max_completion_length, config.temperature) == (512, 256, 1.0)
    assert (config.ref_model_mixup_alpha, config.ref_model_sync_steps, config.loss_type) == (0.6, 512, "bnpo")
