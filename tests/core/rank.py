"""One rank of runs over several processes: `python -m tests.core.rank OUT RUNS`, the runs' settings as a JSON list.

Environment as torchrun sets it. Writes OUT/rank{r}.pt, a dict for every run: the gradients of its steps, its logged
entries, the metrics of an evaluation.
"""

from __future__ import annotations

import json
import os
import sys

import torch

from tests.core.reference import Objective
from tests.core.runs import Gradients, Loose, Strict, model_of, samples_of, trainer_of


def run(out: str, settings: dict) -> dict:
    watch = Gradients()
    trainer = trainer_of(
        out,
        model_of({"Strict": Strict, "Loose": Loose}[settings["kind"]]),
        samples_of(settings["samples"]),
        Objective(norm=settings["norm"]),
        callbacks=[watch],
        eval_dataset=samples_of(settings["evaluated"], seed=5),
        **settings["options"],
    )
    trainer.train()
    return dict(gradients=watch.seen, logs=trainer.state.log_history, evaluation=trainer.evaluate())


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = [run(sys.argv[1], settings) for settings in json.loads(sys.argv[2])]
    torch.save(found, f"{sys.argv[1]}/rank{os.environ['RANK']}.pt")
    torch.distributed.barrier()  # no rank takes the connections down while another still uses them
    torch.distributed.destroy_process_group()
