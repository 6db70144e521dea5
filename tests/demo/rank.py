"""A step of the bundled model's training in float32, alone or as one rank of several: `python -m tests.demo.rank OUT`.

Environment as torchrun sets it. Writes OUT/rank{r}.pt, the gradient of the step.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from pathlib import Path

import torch

from dllm.demo.training import lessons, train
from tests import launch
from tests.core.runs import Gradients

SETTINGS = train.Settings(steps=1, batch_size=8, seed=3)


def first_step(folder: Path, *, everything: bool, architecture: str = "modernbert") -> torch.Tensor:
    """The gradient of the first step, float64 [parameters], on the CPU.

    Args:
        folder: of the run.
        everything: as if late in the run, with sums and tails.
        architecture: of the model.
    """
    watch = Gradients()
    before = {name: getattr(lessons, name) for name in ("DRILL_FROM", "TAIL_FROM", "OTHER_ADDENDS_FROM")}
    config, problems, measure = train.MDLMConfig, train.EVALUATION_PROBLEMS, train.gauge.measure
    try:
        for name in before if everything else ():
            setattr(lessons, name, 0)
        train.MDLMConfig, train.EVALUATION_PROBLEMS = functools.partial(config, bf16=False), 1
        train.gauge.measure = functools.partial(measure, gen_length=8)
        run = train.new_run(folder, dataclasses.replace(SETTINGS, architecture=architecture), cpu=True)
        run.add_callback(watch)
        run.curves = ()  # drawing takes longer than the run
        run.train()
    finally:
        train.MDLMConfig, train.EVALUATION_PROBLEMS, train.gauge.measure = config, problems, measure
        for name, value in before.items():
            setattr(lessons, name, value)
    (gradient,) = watch.seen
    return gradient


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    torch.save(first_step(out / "run", everything=True), out / f"rank{os.environ['RANK']}.pt")
    launch.leave()
