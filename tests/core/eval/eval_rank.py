"""One process of an evaluation: `python -m tests.core.eval.eval_rank FOLDER TASKS`; writes FOLDER/rank{r}.pt."""

from __future__ import annotations

import json
import os
import sys

import torch

import dllm.core.eval  # noqa: F401 (names the models)
from dllm.core.eval.ranks import Ranks
from dllm.demo.shipped import SHIPPED
from tests import launch
from tests.core.eval import local_tasks

SETTINGS = dict(pretrained=str(SHIPPED), dtype="float32", max_new_tokens=16, exact_up_to=1, mc_num=8)
SETTINGS |= dict(batch_size=2, temperature=0.7)


def collectives() -> dict:
    """What the collectives give on this rank."""
    ranks = Ranks()
    return dict(
        rank=(ranks.rank, ranks.world_size),
        scalars=ranks.all_gather(torch.tensor(7 + ranks.rank)).tolist(),
        rows=ranks.all_gather(torch.full((2, 3), float(ranks.rank))).tolist(),
        objects=ranks.gather_object({"rank": ranks.rank}),
        elsewhere=ranks.gather_object("to 1", dst=1),
        broadcast=ranks.broadcast(f"of {ranks.rank}"),
    )


def evaluated(tasks: str, journal: str | None = None) -> dict | None:
    """Scores, answers and costs of all local tasks, on rank 0."""
    given = SETTINGS | ({} if journal is None else {"journal": journal})
    results = local_tasks.evaluate("bert", tasks, list(local_tasks.TASKS), model_args=given)
    if results is None:
        return None
    answers = {
        task: sorted((sample["doc_id"], json.dumps(sample["filtered_resps"])) for sample in samples)
        for task, samples in results["samples"].items()
    }
    cost = results["config"]["dllm"]["cost"]
    counted = {task: (one["requests"], one["forwards"], one["tokens"]) for task, one in cost.items()}
    return json.loads(json.dumps(dict(results=results["results"], answers=answers, cost=counted), default=float))


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, tasks = sys.argv[1:]
    found = dict(collectives=collectives(), evaluated=evaluated(tasks, f"{folder}/journal"))
    torch.save(found, f"{folder}/rank{os.environ['RANK']}.pt")
    launch.leave()
