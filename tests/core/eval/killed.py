"""A run of local tasks that is killed again and again: `python -m tests.core.eval.killed FOLDER TASKS COUNT`.

The model is loaded once; each run is a fork of this process, which has one thread.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from tqdm import tqdm

from dllm.core.eval.journal import Journal
from dllm.core.eval.model_classes import BertLM
from dllm.demo.shipped import SHIPPED, load_shipped
from tests.core.eval import local_tasks

NAMES = ["sums_generated", "sums_chosen", "sums_last_word", "sums_text"]


def main(folder: Path, tasks: str, count: int) -> None:
    loaded = load_shipped()
    settings = dict(pretrained=str(SHIPPED), device="cpu", batch_size=2, max_new_tokens=16, exact_up_to=1, mc_num=4)
    local_tasks.evaluate(BertLM(*loaded, **settings), tasks, NAMES[-1:])  # imports, and loads the data once
    started, lm = time.perf_counter(), BertLM(*loaded, **settings)
    undisturbed = local_tasks.evaluate(lm, tasks, NAMES)["results"]
    an_answer = (time.perf_counter() - started) / len(lm.journal.entries)  # seconds
    rng, kept, lost, known, file = random.Random(0), [], 0, set(), folder / "rank-0.jsonl"
    for _ in range(count):
        assert threading.active_count() == 1, "a lock that another thread holds would stay locked in the fork"
        child = os.fork()
        if child == 0:
            sys.stdout = sys.stderr = open(os.devnull, "w")
            local_tasks.evaluate(BertLM(*loaded, **settings, journal=str(folder)), tasks, NAMES)
            time.sleep(600)  # killed at its end, too
        # so many answers later, and somewhere within the next: however busy the machine is
        wanted = min(len(known) + rng.randint(0, 4), len(lm.journal.entries))
        while len(lines_of(file)) < wanted:
            time.sleep(0.001)
        time.sleep(an_answer * rng.random())
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        now = set(Journal(folder).entries)
        lost += len(known - now) + (len(lines_of(file)) - len(now))
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


def lines_of(file: Path) -> list[bytes]:
    """The whole lines of a journal."""
    return file.read_bytes().split(b"\n")[:-1] if file.is_file() else []


if __name__ == "__main__":
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # no thread that watches bars
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
