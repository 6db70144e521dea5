"""Runs over two processes: :func:`two_ranks` starts them, each of them is `python -m tests.core.rank OUT RUNS`.

RUNS are the runs' settings as a JSON list, the environment is as torchrun sets it. Writes OUT/rank{r}.pt, a dict for
every run: the gradients of its steps, its logged entries, the metrics of an evaluation, the way the head was used.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from torch.distributed.fsdp import fully_shard

from dllm.core.trainers import BD3LMTrainer, DreamTrainer, MDLMTrainer
from dllm.fast.model import unwrapped
from tests import launch
from tests.core.runs import KINDS, Gradients, model_of, objective_of, samples_for, trainer_of
from tests.core.sharded import sharded
from tests.families.toys import load
from tests.models import kind_of

ROOT = Path(__file__).parents[2]


TRAINERS = {"MDLM": MDLMTrainer, "BD3LM": BD3LMTrainer, "Dream": DreamTrainer}


def run(out: str, settings: dict) -> dict:
    family = settings["family"]
    watch, model = Gradients(), load(family) if family else model_of(KINDS[settings["kind"]], **settings["model"])
    if settings["head_alone"]:
        fully_shard(model.get_output_embeddings(), reshard_after_forward=True)
    kind = TRAINERS[settings["trainer"]]
    trainer = trainer_of(
        out,
        model,
        samples_for(kind, settings["samples"]),
        objective_of(kind, settings["norm"]),
        sharded(kind) if settings["sharded"] else kind,
        callbacks=[watch],
        eval_dataset=samples_for(kind, settings["evaluated"], seed=5),
        **settings["options"],
    )
    trainer.curves = ()  # drawing takes longer than the run
    trainer.train(resume_from_checkpoint=settings["resume"])
    if settings["saved"]:
        trainer.save_model(settings["saved"])
    used = kind_of(unwrapped(trainer.model_wrapped))
    return dict(gradients=watch.seen, logs=trainer.state.log_history, evaluation=trainer.evaluate(), used=used)


def two_ranks(folder: Path, runs: list[dict]) -> list[list[dict]]:
    """What each of two ranks found in each run, all runs one after the other in the same two processes."""
    defaults = dict(model={}, trainer="MDLM", sharded=False, head_alone=False, resume=None, saved=None, family=None)
    return launch.two_ranks(folder, "tests.core.rank", json.dumps([defaults | run for run in runs]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = [run(sys.argv[1], settings) for settings in json.loads(sys.argv[2])]
    torch.save(found, f"{sys.argv[1]}/rank{os.environ['RANK']}.pt")
    launch.leave()
