"""EditFlowTrainer against the objective in plain PyTorch, one sample at a time; its pairs and resumption."""

from __future__ import annotations

import pytest
import torch

from dllm.configs import ModelArguments
from dllm.core.schedulers import CosineKappaScheduler, LinearAlphaScheduler, LinearKappaScheduler
from dllm.core.trainers import EditFlowCollator, EditFlowTrainer, EditFlowTrainerConfig
from dllm.models import load_peft
from dllm_kernels.testing import assert_sum_no_worse
from tests.core.edit_runs import BOS, TOKENS, check_step, model_of, plain_loss, prompted, trainer_of, truth
from tests.core.runs import Gradients, KillAt, Killed, config_of, losses
from tests.models import MASK_ID, tiny

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("size", "accumulation"), [(8, 1), (4, 2), (3, 3)])
@pytest.mark.parametrize("scheduler", [None, LinearKappaScheduler(), CosineKappaScheduler()], ids=str)
@pytest.mark.covering(1)
def test_accumulated_forwards_are_one_batch(size, accumulation, scheduler, tmp_path):
    watch, samples = Gradients(), prompted(8)
    options = dict(per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, learning_rate=0.0)
    trainer = trainer_of(
        tmp_path, model_of(), samples, scheduler=scheduler, callbacks=[watch], num_train_epochs=1, **options
    )
    trainer.train()
    (step,) = watch.seen
    check_step(step, trainer, samples)
    loss64, loss32 = (truth(trainer, samples, dtype)[0] for dtype in (torch.float64, torch.float32))
    assert_sum_no_worse(trainer.state.log_history[-1]["train_loss"], loss32 / 8, loss64 / 8)


def test_a_loss_that_is_not_divided_by_tokens(tmp_path):
    samples, found = prompted(4), {}
    for norm in (True, False):
        trainer = trainer_of(
            tmp_path, model_of(), samples, normalize_per_position=norm, max_steps=1, per_device_train_batch_size=4
        )
        trainer.train()
        found[norm] = trainer.state.log_history[-1]["train_loss"]
    tokens = trainer._make_collator()(samples)["corruption"]["maskable"]
    by_sample = plain_loss(model_of(), trainer, samples).detach()
    assert found[True] == pytest.approx(float((by_sample / tokens).mean()), rel=1e-5)
    assert found[False] == pytest.approx(float(by_sample.mean()), rel=1e-5)


def test_the_weight_has_a_bound(tmp_path):
    """Cubic: w = kappa' / (1 - kappa) near t = 1 is far above any bound."""
    batch = trainer_of(tmp_path, model_of(), prompted(60), max_w=1.5)._make_collator()(prompted(60))
    weight = batch["corruption"]["weight"]
    assert float(weight.max()) == 1.5 and 0 < float(weight.min()) < 1.5


def test_corruption_does_not_depend_on_the_batch(tmp_path):
    collate, samples = trainer_of(tmp_path, model_of(), prompted(2))._make_collator(), prompted(12)
    collate.epoch = 3
    batch = collate(samples)
    for row, sample in enumerate(samples):
        alone, n = collate([sample]), int(batch["corruption"]["lengths"][row])
        assert torch.equal(batch["input_ids"][row, :n], alone["input_ids"][0])
        assert batch["corruption"]["weight"][row] == alone["corruption"]["weight"][0]
    collate.epoch = 4
    assert not torch.equal(collate(samples)["corruption"]["weight"], batch["corruption"]["weight"])


def test_no_edit_is_in_the_prompt(tmp_path):
    """x_0 and x_1 share it, so substitutions and deletions come behind it, insertions from its last token on."""
    samples = [dict(input_ids=[*range(20, 20 + n)], prompt_len=n // 2) for n in range(4, 14)]
    collate = trainer_of(tmp_path, model_of(), samples)._make_collator()
    for epoch in range(10):
        collate.epoch = epoch
        batch = collate(samples)
        found, columns = batch["corruption"], batch["input_ids"].shape[1]
        for kind, reach in (("sub", 0), ("del", 0), ("ins", 1)):
            for row in found[f"{kind}_rows"].tolist():
                assert row % columns >= samples[row // columns]["prompt_len"] - reach
        for row, sample in enumerate(samples):
            prompt = sample["input_ids"][: sample["prompt_len"]]
            assert batch["input_ids"][row, : len(prompt)].tolist() == prompt


def test_pairs():
    collate = EditFlowCollator(TOKENS, "masks[length:2]")
    samples = [dict(input_ids=[BOS, 20, 21]), dict(input_ids=[20, 21]), dict(input_ids=[20, 21, 22], prompt_len=2)]
    pairs = collate(samples)
    assert pairs["x1_ids"] == [[BOS, 20, 21], [BOS, 20, 21], [20, 21, 22]]
    assert pairs["x0_ids"] == [[BOS, MASK_ID, MASK_ID], [BOS, MASK_ID, MASK_ID], [20, 21, MASK_ID, MASK_ID]]
    assert EditFlowCollator(TOKENS, "empty")(samples)["x0_ids"] == [[BOS], [BOS], [20, 21]]
    assert len(EditFlowCollator(TOKENS)(samples)["x0_ids"][0]) == 129
    backwards = EditFlowCollator(TOKENS, lambda answer: answer[::-1])
    assert backwards(samples)["x0_ids"] == [[BOS, 21, 20], [BOS, 21, 20], [20, 21, 22]]


def test_what_the_collators_refuse(tmp_path):
    for wrong in ("noise", "masks[length:0]", "masks[width:3]", "empty[length:3]"):
        with pytest.raises(ValueError, match="x0_sampler must be empty or masks"):
            EditFlowCollator(TOKENS, wrong)
    with pytest.raises(ValueError, match="needs a tokenizer with a mask token"):
        EditFlowCollator(None)
    with pytest.raises(ValueError, match="must have a prompt_len, as there is no BOS"):
        EditFlowCollator(None, "empty")([dict(input_ids=[20])])
    with pytest.raises(ValueError, match=r"prompt_len must lie in \[0, 1\] in sample 0 of a batch, got 2"):
        EditFlowCollator(TOKENS)([dict(input_ids=[20], prompt_len=2)])
    trainer = trainer_of(tmp_path, model_of(), prompted(2))
    with pytest.raises(ValueError, match=r"x1_ids must lie in the vocabulary \[0, 131\), got 131 at row 0, position 2"):
        trainer._make_collator()([dict(input_ids=[20, 131])])
    collate = trainer._make_collator()
    collate.base = lambda samples: dict(x0_ids=[[]], x1_ids=[[20]])
    collate.epoch = next(epoch for epoch in range(99) if not _shows_data(collate, epoch))
    with pytest.raises(ValueError, match="must begin with a common token"):
        collate([])
    collate.base = lambda samples: dict(input_ids=samples)
    with pytest.raises(TypeError, match="must give x0_ids and x1_ids, as EditFlowCollator does, got input_ids"):
        collate([])


def _shows_data(collate, epoch: int) -> bool:
    """Whether the only column of a pair without a common token shows x_1 in this epoch."""
    collate.epoch = epoch
    try:
        collate([])
    except ValueError:
        return False
    return True


def test_what_the_arguments_refuse(tmp_path):
    for wrong in (
        dict(loss_norm_type="token"),
        dict(loss_weight_type="uniform"),
        dict(right_shift_logits=True),
        dict(time_max=0.5),
        dict(cuda_graph=True),
        dict(max_w=0.0),
        dict(time_epsilon=0.0),
        dict(normalize_per_position=True, loss_norm_type="batch"),
    ):
        with pytest.raises(ValueError, match=r"must be|is loss_norm_type"):
            config_of(tmp_path, EditFlowTrainerConfig, **wrong)
    with pytest.raises(ValueError, match="Unknown scheduler 'square'"):
        config_of(tmp_path, EditFlowTrainerConfig, kappa_scheduler="square")
    named = trainer_of(tmp_path, model_of(), prompted(2), kappa_scheduler="cosine")
    assert named.scheduler == CosineKappaScheduler()
    with pytest.raises(ValueError, match="must be an EditFlowModel"):
        trainer_of(tmp_path, tiny("modernbert"), prompted(2))
    with pytest.raises(TypeError, match="must be a BaseKappaScheduler, got LinearAlphaScheduler"):
        trainer_of(tmp_path, model_of(), prompted(2), scheduler=LinearAlphaScheduler())
    assert EditFlowTrainer.EditFlowConfig is EditFlowTrainerConfig


def test_lora_trains_adapters_and_heads(tmp_path):
    pytest.importorskip("peft")
    arguments = ModelArguments(model_name_or_path="toy", lora=True, r=2, lora_dropout=0.0)
    model = load_peft(model_of(), arguments)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer_of(tmp_path, model, prompted(8), max_steps=2, learning_rate=1e-2, per_device_train_batch_size=4).train()
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed and all("lora_" in name or "modules_to_save" in name for name in changed)
    for head in ("sub_logits", "ins_logits", "rate_heads"):
        assert any(head in name for name in changed)


def test_a_resumed_run_follows_the_uninterrupted_one(tmp_path):
    """With dropout, in the second of three epochs."""
    options = dict(per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=3)
    options |= dict(learning_rate=1e-3, save_strategy="steps", save_steps=1, save_only_model=False)

    def train(folder, *callbacks, resume=None):
        torch.manual_seed(0)
        watch = Gradients()
        trainer = trainer_of(folder, model_of(dropout=0.1), prompted(10), callbacks=[watch, *callbacks], **options)
        trainer.train(resume_from_checkpoint=resume)
        return trainer, watch.seen

    whole, steps = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "cut", KillAt(4))
    resumed, rest = train(tmp_path / "cut", resume=True)
    assert len(steps) == 9 and len(rest) == 5
    assert all(torch.equal(a, b) for a, b in zip(steps[4:], rest, strict=True))
    assert losses(resumed) == losses(whole)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
