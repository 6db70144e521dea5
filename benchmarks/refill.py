"""Requests of mixed length on the shipped model: places that are taken at once against fixed batches.

    python benchmarks/refill.py
    python benchmarks/refill.py --requests 200 --rows 16 --rounds 3

Each way answers the same requests with the same seeds: word problems of the gauge, whose answers may have 16 to 128
tokens, all waiting at the start.

    one by one         each request alone
    fixed              batches in order of arrival; the next one starts when all rows are finished
    sorted             the same, the longest requests first
    refilled           in order of arrival; the next request takes the place of one that is finished
    refilled, sorted   the same, the longest requests first: what `sample_many` does
    by widths          as refilled, with widths that are multiples of 32: a row has the same bits in any company

Seconds are those of the fastest round; "until" is the median time until an answer is complete, counted from the start.
"other" counts rows that have other tokens than alone. Output: a table and, as the last line, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

if __package__ in (None, ""):  # run as a file: packages are imported from the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from torch import nn

from benchmarks import report
from dllm.core.samplers import MDLMSampler, Plan, ThresholdSampler
from dllm.demo.shipped import load_shipped
from dllm.demo.training.questions import TASKS
from dllm.exits import exit_code
from dllm.fast.sampling.running import Running
from dllm.tools.command import at_least_one

LENGTHS = (16, 32, 64, 128)
SAMPLERS = ("one a step", "threshold 0.9")


class Way(NamedTuple):
    """How requests share batches: rows at once, whether places are taken at once, whether long requests come first,
    and widths in multiples of which number."""

    rows: int
    refills: bool
    sorts: bool = False
    multiple: int | None = None


class Served(NamedTuple):
    """Answers by request, and when each was complete, s; wall and processor seconds of all."""

    tokens: dict[int, list[int]]
    until: list[float]
    seconds: float
    cpu_seconds: float


def ways(rows: int) -> dict[str, Way]:
    """The ways to compare."""
    return {
        "one by one": Way(1, refills=False),
        "fixed": Way(rows, refills=False),
        "sorted": Way(rows, refills=False, sorts=True),
        "refilled": Way(rows, refills=True),
        "refilled, sorted": Way(rows, refills=True, sorts=True),
        "by widths": Way(rows, refills=True, multiple=32),
    }


def plans_of(sampler: str, requests: int, temperature: float) -> tuple[nn.Module, list[Plan]]:
    """Requests, each laid out by itself."""
    model, tokenizer = load_shipped()
    rng, plans = random.Random(0), []
    for seed, question in enumerate(TASKS["problems"](requests, 0)):
        turn = [{"role": "user", "content": question.text}]
        text = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        prompt, new = tokenizer(text, add_special_tokens=False).input_ids, rng.choice(LENGTHS)
        kind, own = (
            (MDLMSampler, dict(steps=new)) if sampler == "one a step" else (ThresholdSampler, {"threshold": 0.9})
        )
        shared = dict(max_new_tokens=new, block_size=None, temperature=temperature, stop_at_eos=True)
        plans.append(kind(model, tokenizer).plan([prompt], seed=[seed], **shared, **own))
    return model, plans


def serve(model: nn.Module, plans: Sequence[Plan], way: Way) -> Served:
    """Answer all requests."""
    order = list(range(len(plans)))
    if way.sorts:
        order.sort(key=lambda number: -int(plans[number].batch.length))
    running = Running(model, plans[0].policy, width_multiple=way.multiple)
    began, cpu, joined, tokens, until = time.perf_counter(), time.process_time(), 0, {}, []
    while len(tokens) < len(plans):
        while joined < len(plans) and (len(running) < way.rows if way.refills else joined < len(tokens) + way.rows):
            running.join(plans[order[joined]].batch, plans[order[joined]].policy)
            joined += 1
        while running:
            finished = running.step()
            for row in finished:
                tokens[order[row.id]] = row.tokens.tolist()
                until.append(time.perf_counter() - began)
            if finished and way.refills:
                break
    return Served(tokens, until, time.perf_counter() - began, time.process_time() - cpu)


def compare(options: argparse.Namespace) -> list[dict[str, object]]:
    """A row for each sampler and way."""
    rows = []
    for name in options.sampler:
        model, plans = plans_of(name, options.requests, options.temperature)
        served: dict[str, Served] = {}
        for _ in range(options.rounds):
            for way, how in ways(options.rows).items():
                found = serve(model, plans, how)
                if way not in served or found.seconds < served[way].seconds:
                    served[way] = found
        for way, found in served.items():
            other = sum(found.tokens[number] != alone for number, alone in served["one by one"].tokens.items())
            row = {"sampler": name, "way": way, "requests/s": round(len(plans) / found.seconds, 2)}
            row |= {"until, s": round(statistics.median(found.until), 3), "seconds": round(found.seconds, 2)}
            rows.append(row | {"cpu_seconds": round(found.cpu_seconds, 2), "other": other})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (:mod:`dllm.exits`)."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--requests", type=at_least_one, default=200)
    parser.add_argument("--rows", type=at_least_one, default=16)
    parser.add_argument("--rounds", type=at_least_one, default=2)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--sampler", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    options = parser.parse_args(arguments)
    return exit_code("benchmarks.refill", lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    rows = compare(options)
    columns = tuple(rows[0])
    report.print_table("Requests of mixed length", columns, [[str(row[name]) for name in columns] for row in rows])
    print(
        json.dumps({name: getattr(options, name) for name in ("requests", "rows", "temperature")} | {"results": rows})
    )


if __name__ == "__main__":
    sys.exit(main())
