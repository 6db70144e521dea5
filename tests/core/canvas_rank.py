"""A run of DiffusionGemmaTrainer over two processes, each of them `python -m tests.core.canvas_rank OUT RUNS`.

RUNS are settings of runs as a JSON list. Writes OUT/rank{r}.pt, for every run the gradients of its steps and its logs.
"""

from __future__ import annotations

import json
import os
import sys

import torch

from tests import launch
from tests.core.canvas_reference import Rules
from tests.core.canvas_runs import model_of, samples_of, trainer_of
from tests.core.runs import Gradients


def run(out: str, settings: dict) -> dict:
    watch = Gradients()
    trainer = trainer_of(
        out, model_of(), samples_of(6), Rules(**settings["rules"]), callbacks=[watch], **settings["options"]
    )
    trainer.train()
    return dict(gradients=watch.seen, logs=trainer.state.log_history)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, runs = sys.argv[1:]
    found = [run(folder, settings) for settings in json.loads(runs)]
    torch.save(found, f"{folder}/rank{os.environ['RANK']}.pt")
    launch.leave()
