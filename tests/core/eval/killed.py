"""A run of local tasks that is killed again and again: `python -m tests.core.eval.killed FOLDER TASKS COUNT`.

The model is loaded once; each run is a fork of this process, which has one thread.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from dllm.core.eval.journal import Journal
from dllm.core.eval.model_classes import BertLM
from dllm.demo.shipped import SHIPPED, load_shipped
from tests.core.eval import local_tasks

NAMES = ["sums_generated", "sums_chosen", "sums_last_word", "sums_text"]


def main(folder: Path, tasks: str, count: int) -> None:
    loaded = load_shipped()
    settings = dict(pretrained=str(SHIPPED), device="cpu", batch_size=2, max_new_tokens=16, exact_up_to=1, mc_num=4)
    local_tasks.evaluate(BertLM(*loaded, **settings), tasks, NAMES[-1:])  # imports, and loads the data once
    started = time.perf_counter()
    undisturbed = local_tasks.evaluate(BertLM(*loaded, **settings), tasks, NAMES)["results"]
    duration = time.perf_counter() - started
    rng, kept, lost, known = random.Random(0), [], 0, set()
    for _ in range(count):
        child = os.fork()
        if child == 0:
            sys.stdout = sys.stderr = open(os.devnull, "w")
            local_tasks.evaluate(BertLM(*loaded, **settings, journal=str(folder)), tasks, NAMES)
            time.sleep(600)  # killed at its end, too
        time.sleep(0.5 * duration * rng.random())
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        file = folder / "rank-0.jsonl"
        lines = file.read_bytes().split(b"\n")[:-1] if file.is_file() else []
        now = set(Journal(folder).entries)
        lost += len(known - now) + (len(lines) - len(now))
        known = now
        kept.append(len(now))
    lm = BertLM(*loaded, **settings, journal=str(folder))
    results = local_tasks.evaluate(lm, tasks, NAMES)["results"]
    usage = lm.usage.values()
    print(
        json.dumps(
            dict(
                killed=count,
                kept=kept,
                lost=lost,
                requests=sum(one.requests for one in usage),
                resumed=sum(one.resumed for one in usage),
                answered=len(lm.journal.entries),
                results=results,
                undisturbed=undisturbed,
            )
        )
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
