"""A run that was stopped and resumed is the run that was not: weights, losses, masks, averages."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch

from dllm.core.trainers import MDLMTrainer
from dllm.core.trainers.resume import checkpoint_to_resume
from tests.core.reference import Objective
from tests.core.runs import Gradients, KillAt, Killed, losses, model_of, samples_of, trainer_of

pytestmark = pytest.mark.usefixtures("one_thread")

# 10 samples in batches of 2, two batches a step: 3 steps an epoch, the last of one batch; 9 steps
RUN = dict(
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2,
    num_train_epochs=3,
    learning_rate=1e-3,
    save_strategy="steps",
    save_steps=1,
    save_only_model=False,
)


def run(folder, *callbacks, resume=None, **options):
    """A model with dropout, so that torch's own random numbers have to go on as well."""
    torch.manual_seed(0)
    watch = Gradients()
    model = model_of(dropout=0.1)
    trainer = trainer_of(
        folder, model, samples_of(10), Objective(norm="sequence"), callbacks=[watch, *callbacks], **(RUN | options)
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, watch.seen


# in the first epoch; at an epoch's end; early and late in the second; workers outlive an epoch
@pytest.mark.parametrize(
    "killed, workers",
    [(2, 0), (4, 0), (3, 1), *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in [(3, 0), (5, 0), (4, 1)])],
)
def test_a_resumed_run_follows_the_uninterrupted_one(killed, workers, tmp_path):
    options = dict(ema_decay=0.9, dataloader_num_workers=workers, dataloader_persistent_workers=workers > 0)
    whole, steps = run(tmp_path / "whole", **options)
    assert len(steps) == 9
    with pytest.raises(Killed):
        run(tmp_path / "cut", KillAt(killed), **options)
    resumed, rest = run(tmp_path / "cut", resume=True, **options)
    assert len(rest) == 9 - killed
    assert all(torch.equal(a, b) for a, b in zip(steps[killed:], rest, strict=True))
    assert losses(resumed) == losses(whole)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
    for name, average in whole.averaged.average.items():
        assert torch.equal(average, resumed.averaged.average[name]), name
    assert resumed.averaged.updates == 9


def test_weights_only(tmp_path):
    run(tmp_path, save_only_model=True, max_steps=2)
    for wanted in (True, str(tmp_path / "checkpoint-2")):
        with pytest.raises(ValueError, match=r"checkpoint-2 holds weights only.*save_only_model=False"):
            run(tmp_path, resume=wanted)


def test_no_averaged_weights(tmp_path):
    run(tmp_path, max_steps=2)
    with pytest.raises(ValueError, match=r"checkpoint-2 holds no averaged weights.*ema_decay"):
        run(tmp_path, resume=True, ema_decay=0.9)


@pytest.mark.parametrize("damage", ["missing", "half"])
def test_killed_while_saving(damage, tmp_path, caplog):
    """The last checkpoint that was written to its end is the one."""
    _, steps = run(tmp_path / "whole", max_steps=4)
    with pytest.raises(Killed):
        run(tmp_path / "cut", KillAt(3), max_steps=4)
    state = tmp_path / "cut" / "checkpoint-3" / "trainer_state.json"
    state.unlink() if damage == "missing" else state.write_text(state.read_text()[:40])
    with caplog.at_level(logging.WARNING, "dllm"):
        _, rest = run(tmp_path / "cut", resume=True, max_steps=4)
    assert "checkpoint-3 was not written to its end" in caplog.text
    assert len(rest) == 2 and torch.equal(rest[-1], steps[-1])
    with pytest.raises(ValueError, match=r"checkpoint-9 is no whole checkpoint"):
        checkpoint_to_resume(str(tmp_path / "cut" / "checkpoint-9"), tmp_path)


def test_killed_while_writing_over_a_checkpoint_of_a_run_before(tmp_path, monkeypatch):
    run(tmp_path, max_steps=3)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        save = MDLMTrainer._save_optimizer_and_scheduler

        def killed(self, folder):
            if self.state.global_step == 3:
                raise Killed
            save(self, folder)

        patch.setattr(MDLMTrainer, "_save_optimizer_and_scheduler", killed)
        run(tmp_path, max_steps=3)
    assert checkpoint_to_resume(True, tmp_path) == str(tmp_path / "checkpoint-2")


# orders that accelerate does not seed by the epoch; in the middle of the second epoch
@pytest.mark.parametrize("order", [{"group_by_length": True}, {"accelerator_config": {"use_seedable_sampler": False}}])
def test_a_resumed_run_keeps_the_order_of_its_epoch(order, tmp_path):
    _, steps = run(tmp_path / "whole", **order)
    with pytest.raises(Killed):
        run(tmp_path / "cut", KillAt(4), **order)
    _, rest = run(tmp_path / "cut", resume=True, **order)
    assert len(rest) == 5 and all(torch.equal(a, b) for a, b in zip(steps[4:], rest, strict=True))


def test_a_resumed_stream_says_how_far_it_can_be_followed(tmp_path, caplog):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from samples_of(10)

    def on_a_stream(folder, *callbacks, resume=None):
        options = RUN | dict(num_train_epochs=1, max_steps=4)
        trainer = trainer_of(folder, model_of(), Stream(), callbacks=list(callbacks), **options)
        trainer.train(resume_from_checkpoint=resume)

    with caplog.at_level(logging.WARNING, "dllm"):
        with pytest.raises(Killed):
            on_a_stream(tmp_path, KillAt(2))
        assert "without length" not in caplog.text
        on_a_stream(tmp_path, resume=True)
    assert caplog.text.count("resumed on a data set without length") == 1


def test_where_there_is_nothing_to_resume(tmp_path):
    with pytest.raises(ValueError, match=r"no whole checkpoint in"):
        run(tmp_path, resume=True)
    assert checkpoint_to_resume(False, tmp_path) is None
    for step in (9, 10):  # by number, not by name
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        (folder / "rng_state.pth").touch()
    assert checkpoint_to_resume(True, tmp_path) == str(tmp_path / "checkpoint-10")
    for name in ("checkpoint-final", "checkpoint-best-2", "checkpoint-99-copy-1"):  # someone's own
        (tmp_path / name).mkdir()
    assert checkpoint_to_resume(True, tmp_path) == str(tmp_path / "checkpoint-10")
    shutil.rmtree(tmp_path / "checkpoint-10")
    assert checkpoint_to_resume(True, tmp_path) == str(tmp_path / "checkpoint-9")
