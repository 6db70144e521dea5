"""A run that is stopped by a signal: at the end of an optimizer step, with a checkpoint from which it goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from dllm.exits import Interrupted

# A signal again within so many seconds is the same one: a launcher passes on what the terminal has sent as well.
_SAME = 1.0
_NOTE = b"stopping at the end of this step, with a checkpoint; Ctrl-C again ends at once\n"


class StopOnSignal(transformers.TrainerCallback):
    """Stops a run at the end of an optimizer step, all its processes at the same one, once one of them is `asked` to.

    The checkpoint written then holds the optimizer's state, whatever `save_only_model` says: without it nothing can go
    on. Nothing is evaluated any more. One process stops at the end of the step under way, several at the end of the
    next: they add up who was asked, with the counts that each step exchanges anyway.

    Attributes:
        asked: the number of the signal that came to this process; 0 if none did.
        stopped: the number of the signal that the run was stopped for; None if it was not.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.stopped: int | None = None
        self._answer: Tensor | None = None
        self._there: torch.Event | None = None

    def agreed(self, asked: Tensor) -> None:
        """What all processes were asked in this step, summed, int64 []. It is read at the step's end, when the device
        is there anyway: the host does not wait for the step itself."""
        self._answer, self._there = asked, None
        if asked.device.type != "cpu":
            self._answer = asked.to("cpu", non_blocking=True)
            self._there = torch.Event(asked.device)
            self._there.record()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stopped = self._answer = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._is_time(args.world_size):
            return
        self.stopped = self.asked or signal.SIGTERM
        args.save_only_model = False
        control.should_save = control.should_training_stop = True
        control.should_evaluate = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stopped is not None:  # else transformers deletes all checkpoints but the best where it keeps one only
            state.best_model_checkpoint = None

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stopped is not None:
            control.should_save = control.should_evaluate = False

    def _is_time(self, processes: int) -> bool:
        if processes == 1:
            return bool(self.asked)
        if self._there is not None:
            self._there.synchronize()
        return self._answer is not None and bool(self._answer)


@contextlib.contextmanager
def stopped_by_signals(trainer: transformers.Trainer, how_to_go_on: str) -> Iterator[StopOnSignal]:
    """Within it SIGINT (Ctrl-C) and SIGTERM stop the training of `trainer` at the end of a step, with a checkpoint; a
    second Ctrl-C raises KeyboardInterrupt at once. Outside the main thread, which alone hears signals, nothing changes.
    torchrun passes both signals on, and kills what has not ended 30 seconds later: a step and its checkpoint must fit.

    Args:
        trainer: that trains within it.
        how_to_go_on: what the error says; `{checkpoint}` in it is the folder.

    Raises:
        Interrupted: at the end, if the run was stopped.
    """
    stop, args, process = trainer.stop, trainer.args, os.getpid()
    only_model, first = args.save_only_model, None

    def heard(signum: int, frame: Any) -> None:
        nonlocal first
        if os.getpid() != process:
            _in_a_fork(signum)
            return
        now = time.monotonic()
        if first is None:
            first, stop.asked = now, signum
            if args.process_index == 0:
                os.write(2, _NOTE)  # print may be at work when the signal comes
        elif signum == signal.SIGINT and now - first > _SAME:
            raise KeyboardInterrupt

    with _handlers(heard):
        try:
            yield stop
        finally:
            args.save_only_model, stop.asked = only_model, 0
    if stop.stopped is not None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{trainer.state.global_step}"
        told = how_to_go_on.format(checkpoint=checkpoint)
        raise Interrupted(f"stopped after step {trainer.state.global_step}: {told}", stop.stopped)


def _in_a_fork(signum: int) -> None:
    """A process that loads data has these handlers, too. Ctrl-C on a terminal comes to it as well, and it is needed to
    the end of the step; SIGTERM is how it is ended."""
    if signum == signal.SIGTERM:
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)


@contextlib.contextmanager
def _handlers(heard: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # a job in the background ignores Ctrl-C; and None is a handler that Python cannot put back
    ours = [s for s in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(s) not in (signal.SIG_IGN, None)]
    before = {signum: signal.signal(signum, heard) for signum in ours}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
