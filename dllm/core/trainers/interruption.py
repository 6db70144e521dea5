"""Stopping a run by a signal: at the end of an optimizer step, with a checkpoint to resume from."""

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

# A second signal within this many seconds is a duplicate: the terminal and the launcher both send one Ctrl-C.
_DUPLICATE_SECONDS = 1.0
_MESSAGE = b"stopping at the end of this step, with a checkpoint; Ctrl-C again ends at once\n"


class StopOnSignal(transformers.TrainerCallback):
    """Stops all processes of a run at the end of the same optimizer step, once one of them is asked to stop.

    The checkpoint written then holds the optimizer's state even with `save_only_model`, because nothing can resume
    without it. No evaluation follows. A single process stops at the end of the current step. Several processes sum
    their requests together with the counts that each step exchanges, and stop at the end of the next step.

    Attributes:
        asked: the number of the signal that this process received; 0 if none.
        stopped: the number of the signal that stopped the run; None if none did.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.stopped: int | None = None
        self._requests: Tensor | None = None
        self._copied: torch.Event | None = None

    def agreed(self, asked: Tensor) -> None:
        """Take the sum over ranks of requests in this step, int64 [].

        It is copied to the host asynchronously and read at the end of the step, so the host does not wait here.
        """
        self._requests, self._copied = asked, None
        if asked.device.type != "cpu":
            self._requests = asked.to("cpu", non_blocking=True)
            self._copied = torch.Event(asked.device)
            self._copied.record()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stopped = self._requests = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._must_stop(args.world_size):
            return
        self.stopped = self.asked or signal.SIGTERM
        args.save_only_model = False
        control.should_save = control.should_training_stop = True
        control.should_evaluate = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stopped is not None:  # with save_total_limit=1 transformers would delete this one and keep the best
            state.best_model_checkpoint = None

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stopped is not None:
            control.should_save = control.should_evaluate = False

    def _must_stop(self, processes: int) -> bool:
        if processes == 1:
            return bool(self.asked)
        if self._copied is not None:
            self._copied.synchronize()
        return self._requests is not None and bool(self._requests)


@contextlib.contextmanager
def stopped_by_signals(trainer: transformers.Trainer, how_to_go_on: str) -> Iterator[StopOnSignal]:
    """Make SIGINT (Ctrl-C) and SIGTERM stop a training run at the end of a step, with a checkpoint.

    A second Ctrl-C raises KeyboardInterrupt at once. Only the main thread receives signals; in another one this context
    does nothing. torchrun passes both signals on and kills processes that are still alive 30 seconds later, so a step
    and its checkpoint must not take longer.

    Args:
        trainer: trains inside this context.
        how_to_go_on: text of the error; `{checkpoint}` in it becomes the checkpoint's folder.

    Raises:
        Interrupted: at the end, if the run was stopped.
    """
    stop, args, process = trainer.stop, trainer.args, os.getpid()
    only_model, first = args.save_only_model, None

    def on_signal(signum: int, frame: Any) -> None:
        nonlocal first
        if os.getpid() != process:
            _on_signal_in_worker(signum)
            return
        now = time.monotonic()
        if first is None:
            first, stop.asked = now, signum
            if args.process_index == 0:
                os.write(2, _MESSAGE)  # a handler must not print: it may have interrupted print
        elif signum == signal.SIGINT and now - first > _DUPLICATE_SECONDS:
            raise KeyboardInterrupt

    with _handler(on_signal):
        try:
            yield stop
        finally:
            args.save_only_model, stop.asked = only_model, 0
    if stop.stopped is not None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{trainer.state.global_step}"
        told = how_to_go_on.format(checkpoint=checkpoint)
        raise Interrupted(f"stopped after step {trainer.state.global_step}: {told}", stop.stopped)


def _on_signal_in_worker(signum: int) -> None:
    """Handle a signal in a data loader's worker process, which inherits the handler.

    It ignores Ctrl-C, which a terminal sends to it too, because it is needed until the step ends. SIGTERM ends it.
    """
    if signum == signal.SIGTERM:
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)


@contextlib.contextmanager
def _handler(on_signal: Any) -> Iterator[None]:
    """Install a handler of both signals inside this context."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A background job ignores Ctrl-C and must go on doing so. None is a handler that Python cannot restore.
    ours = [s for s in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(s) not in (signal.SIG_IGN, None)]
    before = {signum: signal.signal(signum, on_signal) for signum in ours}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
