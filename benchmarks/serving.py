"""Requests that arrive at random, short and long ones mixed: waiting times and throughput of three ways to serve them.

    python benchmarks/serving.py
    python benchmarks/serving.py --where engine --clock cpu --requests 60
    python benchmarks/serving.py --where http --sampler "one a step" --requests 32 --loads 0.6 0.9 1.2 --budget 350
    python benchmarks/serving.py --where http --clients 1 8 --url http://127.0.0.1:8000 --name peer --pid 4711

Gaps between arrivals are drawn from an exponential distribution with a seed. Their rate is a multiple of the capacity:
the requests per second that are answered one at a time, which is measured first, in the same run.

    one at a time   each request alone, in order of arrival
    static          batches of those that wait; answers come when the whole batch is finished
    continuous      a waiting request takes the first place that is free, between two steps

`--where engine` drives the engine itself in virtual time (benchmarks/traffic/engine.py): with one thread and
`--clock cpu` it says on a busy machine what it would say on a quiet one. `--where http` starts `dllm serve` with 1 row
and with `--rows` rows and asks by HTTP, in real time; `--clients` adds clients that ask in turn. `--url` adds a server
that runs already, on this machine, with the same requests. How long runs by HTTP will take is said before they begin;
`--budget` leaves out those that would not end in time. Output: a table for each sampler and, as the last line, one
JSON object; a JSON row in the results folder.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file: packages are imported from the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from benchmarks import report, serving_tables
from benchmarks.traffic import by_http, engine
from benchmarks.traffic.client import Target
from benchmarks.traffic.outcome import summary
from benchmarks.traffic.requests import NEW_TOKENS, SHORT_SHARE, mixed, poisson
from dllm.exits import exit_code, usage

LOADS = (0.5, 0.9, 1.2, 2.5)  # of the capacity one at a time
MOST_REQUESTS = 10_000


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; unknown options end the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--where", nargs="+", choices=["engine", "http"], default=["engine", "http"])
    add("--sampler", nargs="+", choices=engine.SAMPLERS, default=list(engine.SAMPLERS))
    add("--loads", nargs="*", type=float, default=list(LOADS), help="rates, over the capacity one at a time")
    add("--clients", nargs="*", type=int, default=[], help="by HTTP: numbers of clients that ask in turn")
    add("--requests", type=int, default=200, help="of each run (default: %(default)s)")
    add("--rows", type=int, default=16, help="at once (default: %(default)s)")
    add("--temperature", type=float, default=0.0)
    add("--seed", type=int, default=0, help="of requests and arrivals")
    add("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    add("--clock", choices=list(engine.CLOCKS), default="wall", help="of the engine's runs")
    add("--limit", type=float, default=600.0, help="seconds of a run by HTTP; later answers are refused")
    add("--budget", type=float, default=None, metavar="SECONDS", help="start no run by HTTP that would end after this")
    add("--url", default=None, help="another server on this machine, asked as well")
    add("--name", default="peer", help="what that server is called in the results")
    add("--pid", type=int, default=None, help="its process, whose processor time is read")
    add("--model", default=None, help="the model's name there; default: the first that it lists")
    add("--out", type=Path, default=report.RESULTS, help="folder for the JSON row")
    options = parser.parse_args(arguments)
    with usage():
        _check(options)
    return options


def _check(options: argparse.Namespace) -> None:
    for name in ("rows", "threads"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(options, name)}")
    if not 1 <= options.requests <= MOST_REQUESTS:
        raise ValueError(f"--requests must be 1 to {MOST_REQUESTS}, got {options.requests}")
    if any(not 0 < load < math.inf for load in options.loads) or any(clients < 1 for clients in options.clients):
        raise ValueError(
            f"loads must be finite and above 0, and clients at least 1, got {options.loads} and {options.clients}"
        )
    if not 0 <= options.temperature < math.inf or not 0 < options.limit < math.inf:
        got = f"{options.temperature} and {options.limit}"
        raise ValueError(f"--temperature must be finite and at least 0 and --limit finite and above 0, got {got}")
    if options.clock == "cpu" and options.threads != 1:
        raise ValueError(f"--clock cpu stands for time with one thread only, got --threads {options.threads}")
    if "http" not in options.where and (options.clients or options.url or options.budget is not None):
        raise ValueError("--clients, --url and --budget need --where http")
    if not options.loads and not options.clients:
        raise ValueError("--loads or --clients must name at least one run, got none")
    if options.budget is not None and not 0 < options.budget < math.inf:
        raise ValueError(f"--budget must be finite and above 0, got {options.budget}")
    if options.url is None and (options.pid is not None or options.model is not None):
        raise ValueError("--pid and --model are those of the server at --url, which was not given")
    if options.url is not None:
        Target(options.url)


def measure_engine(sampler: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """A result for each policy and load, over the engine itself."""
    requests = mixed(options.requests, options.seed)
    own = engine.Engine(sampler, options.temperature, options.clock)
    engine.capacity(own, requests[:3])  # first runs take longer
    capacity, results = engine.capacity(own, requests), []
    for load in options.loads:
        arrivals = poisson(len(requests), load * capacity, options.seed)
        for name, policy in engine.policies(options.rows).items():
            began = time.process_time()
            outcomes, _, steps = own.run(requests, arrivals, policy)
            found = summary(outcomes, time.process_time() - began) | steps.row()
            case = {"where": "engine", "sampler": sampler, "policy": name, "load": load, "clients": None}
            results.append(case | {"rate": round(load * capacity, 3)} | found)
    return results


def measure(options: argparse.Namespace) -> list[dict[str, object]]:
    """All results.

    Raises:
        OSError: none of the runs would end within the budget, or a server fails.
    """
    deadline = math.inf if options.budget is None else time.monotonic() + options.budget
    torch.set_num_threads(options.threads)
    results: list[dict[str, object]] = []
    for sampler in options.sampler:
        if "engine" in options.where:
            results += measure_engine(sampler, options)
        if "http" in options.where:
            results += by_http.measure(sampler, options, deadline)
    if not results:
        raise OSError(f"no run would end within --budget {options.budget:g}: ask for fewer --requests or other --loads")
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (:mod:`dllm.exits`)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    return exit_code("benchmarks.serving", lambda: _run(parse(arguments), arguments))


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    row = report.new_row("serving", "benchmarks/serving.py", arguments, torch.device("cpu"))
    own = ("requests", "rows", "temperature", "seed", "threads", "clock", "budget")
    row["settings"] = {name: getattr(options, name) for name in own}
    row["settings"] |= {"model": "shipped", "new_tokens": NEW_TOKENS, "short_share": SHORT_SHARE}
    row["results"] = measure(options)
    lines = serving_tables.serving_lines(row, [row["command"]])
    for sampler in options.sampler:
        own_lines = [line[1:-1] for line in lines if line[0] == sampler]
        report.print_table(sampler, serving_tables.SERVING_HEAD[1:-1], own_lines)
    path = report.write_row(row, options.out, f"shipped-{shlex.quote('-'.join(options.where))}")
    report.print_last_line({"row": str(path), "results": row["results"]})


if __name__ == "__main__":
    sys.exit(main())
