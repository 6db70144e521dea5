"""A run that a signal stops leaves a checkpoint, and the run that goes on from it is the one that was not stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

import pytest
import torch
from transformers import TrainerCallback

from dllm.core.trainers import MDLMTrainer, interruption
from dllm.core.trainers.resume import checkpoint_to_resume
from dllm.exits import exit_code
from dllm.recipes.run import FINAL, finished
from tests import launch
from tests.core.runs import Gradients, model_of, samples_of, trainer_of

pytestmark = pytest.mark.usefixtures("one_thread", "own_handlers")

# checkpoints are weights only, unless the run is stopped
RUN = dict(per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=2, learning_rate=1e-3)
RUN |= dict(save_strategy="steps", save_steps=4, save_only_model=True)


class Signal(TrainerCallback):
    """Sends this process, and those that it has started, signals in the middle of a step."""

    def __init__(self, *signals: int, step: int):
        self.signals, self.step = signals, step

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            for signum in self.signals:
                for child in multiprocessing.active_children():
                    os.kill(child.pid, signal.SIGINT)
                os.kill(os.getpid(), signum)


@pytest.fixture
def own_handlers():
    before = signal.signal(signal.SIGINT, signal.default_int_handler), signal.getsignal(signal.SIGTERM)
    yield
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == (
        signal.default_int_handler,
        before[1],
    )
    signal.signal(signal.SIGINT, before[0])


def run(folder, *callbacks, **options) -> tuple[MDLMTrainer, list, int]:
    torch.manual_seed(0)
    watch = Gradients()
    trainer = trainer_of(folder, model_of(dropout=0.1), samples_of(10), callbacks=[watch, *callbacks], **RUN | options)
    return trainer, watch.seen, exit_code("run", lambda: finished(trainer))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that is not stopped: its weights, the gradients of its steps."""
    folder = tmp_path_factory.mktemp("whole")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    trainer, steps, code = run(folder)
    torch.set_num_threads(before)
    assert code == 0 and len(steps) == 6 and (folder / FINAL / "model.safetensors").exists()
    return trainer.model.state_dict(), steps


@pytest.mark.parametrize("signum, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(signum, code, whole, tmp_path, capfd):
    weights, steps = whole
    out = tmp_path / "cut"
    _, first, stopped = run(out, Signal(signum, step=5))
    told = capfd.readouterr().err
    assert stopped == code and len(first) == 5 and "Traceback" not in told
    assert told.count("stopping at the end of this step") == 1
    assert f"run: stopped after step 5: --resume_from_checkpoint {out / 'checkpoint-5'} goes on from there" in told
    assert not (out / FINAL).exists()
    assert checkpoint_to_resume(True, out) == str(out / "checkpoint-5")
    resumed, rest, done = run(out, resume_from_checkpoint=str(out / "checkpoint-5"))
    assert done == 0 and len(rest) == 1 and all(torch.equal(a, b) for a, b in zip(steps[5:], rest, strict=True))
    for name, weight in weights.items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_nothing_is_evaluated_or_deleted_any_more(tmp_path):
    """transformers would load the best checkpoint at the end, and delete all others where it may keep one."""
    evaluated = []

    class Watch(TrainerCallback):
        def on_evaluate(self, args, state, control, **kwargs):
            evaluated.append(state.global_step)

    options = dict(eval_strategy="steps", eval_steps=2, save_steps=2, load_best_model_at_end=True, save_total_limit=1)
    options |= dict(save_only_model=False, eval_dataset=samples_of(4, seed=1), metric_for_best_model="nll")
    options |= dict(greater_is_better=True)  # so that the first evaluation is the best
    _, _, code = run(tmp_path, Watch(), Signal(signal.SIGINT, step=5), **options)
    assert code == 130 and evaluated == [2, 4]
    assert checkpoint_to_resume(True, tmp_path) == str(tmp_path / "checkpoint-5")


def test_a_second_interrupt_ends_at_once(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(interruption, "_DUPLICATE_SECONDS", -1.0)
    _, steps, code = run(tmp_path, Signal(signal.SIGINT, signal.SIGINT, step=2))
    assert code == 130 and len(steps) == 1 and not list(tmp_path.glob("checkpoint-*"))
    assert "run: interrupted" in capfd.readouterr().err


def test_the_same_interrupt_twice_is_one(tmp_path, capfd):
    """The terminal and a launcher both send it; the terminal to processes that load data as well."""
    twice = Signal(signal.SIGINT, signal.SIGINT, signal.SIGTERM, step=2)
    _, steps, code = run(tmp_path, twice, dataloader_num_workers=1)
    assert code == 130 and len(steps) == 2 and checkpoint_to_resume(True, tmp_path)
    assert capfd.readouterr().err.count("stopping at the end of this step") == 1


def test_interrupted_while_saving_leaves_no_half_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(interruption, "_DUPLICATE_SECONDS", -1.0)
    save = MDLMTrainer._save_optimizer_and_scheduler

    def interrupted(self, folder):
        save(self, folder)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(MDLMTrainer, "_save_optimizer_and_scheduler", interrupted)
    _, _, code = run(tmp_path, Signal(signal.SIGINT, step=2))
    assert code == 130 and not list(tmp_path.glob("checkpoint-*"))


def test_a_full_disk_is_said_in_a_line(tmp_path, monkeypatch, capfd):
    def full(*_):
        raise RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0")

    monkeypatch.setattr(MDLMTrainer, "_save_optimizer_and_scheduler", full)
    _, _, code = run(tmp_path, save_only_model=False)
    told = capfd.readouterr().err
    assert code == 1 and f"run: {tmp_path / 'checkpoint-4'} could not be written" in told and "Traceback" not in told
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_signal_before_or_after_training_is_not_ours(tmp_path):
    """Outside the main thread there are no handlers, and a run is the same."""
    codes = []
    thread = threading.Thread(target=lambda: codes.append(run(tmp_path, max_steps=2)[2]))
    thread.start()
    thread.join()
    assert codes == [0]


def test_all_processes_stop_at_the_same_step(tmp_path):
    ranks = launch.two_ranks(tmp_path, "tests.core.stopped_rank")
    assert ranks == [{"code": 143, "step": 3}] * 2  # the step after the one in which one of them heard
    assert checkpoint_to_resume(True, tmp_path / "out") == str(tmp_path / "out" / "checkpoint-3")
    told = [(tmp_path / f"rank{rank}.log").read_text() for rank in (0, 1)]
    assert ["stopped after step 3" in log for log in told] == [True, False]
