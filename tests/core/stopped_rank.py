"""A run over two processes of which only the second is asked to stop: `python -m tests.core.stopped_rank OUT`, as
:func:`tests.launch.two_ranks` starts it. Writes OUT/rank{r}.pt: the exit code and the step that was reached."""

from __future__ import annotations

import os
import signal
import sys

import torch

from dllm.exits import exit_code
from dllm.recipes.run import finished
from tests import launch
from tests.core.runs import model_of, samples_of, trainer_of
from tests.core.test_interruption import RUN, Signal

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, rank = sys.argv[1], os.environ["RANK"]
    callbacks = [Signal(signal.SIGTERM, step=2)] if rank == "1" else []
    trainer = trainer_of(f"{folder}/out", model_of(), samples_of(20), callbacks=callbacks, **RUN)
    code = exit_code("run", lambda: finished(trainer))
    torch.save({"code": code, "step": trainer.state.global_step}, f"{folder}/rank{rank}.pt")
    launch.leave()
