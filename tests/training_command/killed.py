"""`dllm` as it is typed, killed in a step: `python -m tests.training_command.killed STEP train --name value ...`."""

from __future__ import annotations

import os
import signal
import sys

import torch
import transformers

from dllm.cli import main


def kill_in_step(number: int) -> None:
    """Let every trainer kill its process by SIGKILL in this step, before the optimizer changes the weights."""

    class Kill(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            if state.global_step == number:
                os.kill(os.getpid(), signal.SIGKILL)

    make = transformers.Trainer.__init__

    def make_and_add(trainer, *arguments, **options):
        make(trainer, *arguments, **options)
        trainer.add_callback(Kill())

    transformers.Trainer.__init__ = make_and_add


if __name__ == "__main__":
    torch.set_num_threads(1)
    kill_in_step(int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
