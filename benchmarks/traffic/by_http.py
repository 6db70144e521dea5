"""The same requests by HTTP: `dllm serve` with one row and with many, and another server beside it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NamedTuple

import httpx

from benchmarks.traffic.client import Target, ask_at, ask_in_turn
from benchmarks.traffic.outcome import Outcome, summary
from benchmarks.traffic.requests import mixed, poisson
from benchmarks.traffic.server import cpu_seconds, served

# of `dllm serve`, by what the engine's runs call the sampler
SAMPLER_OPTIONS = {"one a step": ["--sampler", "mdlm"], "threshold 0.9": ["--sampler", "threshold"]}
WARM_UP = 4


class Server(NamedTuple):
    """A server that runs: its name in the results, how it is asked, its process."""

    name: str
    target: Target
    pid: int | None


def measure(sampler: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """A result for each server and load, and for each server and number of clients; servers take turns.

    Raises:
        OSError: a server cannot be started or asked, or a run took longer than `options.limit`.
    """
    requests = mixed(options.requests, options.seed)
    with ExitStack() as stack:
        servers = list(_servers(stack, sampler, options))
        for server in servers:
            ask_in_turn(server.target, requests[:WARM_UP], 1, options.limit)
        results, alone = [], ask_in_turn(servers[0].target, requests, 1, options.limit)
        if any(outcome.refused for outcome in alone):
            raise OSError(f"{servers[0].name} refused requests one at a time: {summary(alone)['refused']}")
        capacity = summary(alone)["requests/s"]
        for load in options.loads:
            arrivals = poisson(len(requests), load * capacity, options.seed)
            for server in servers:
                case = _case(sampler, server) | {"load": load, "rate": round(load * capacity, 3)}
                results.append(case | _watched(server, lambda s, a=arrivals: ask_at(s, requests, a, options.limit)))
        for clients in options.clients:
            for server in servers:
                case = _case(sampler, server) | {"clients": clients}
                results.append(case | _watched(server, lambda s, c=clients: ask_in_turn(s, requests, c, options.limit)))
    return results


def _servers(stack: ExitStack, sampler: str, options: argparse.Namespace) -> Iterator[Server]:
    for rows, name in ((1, "one at a time"), (options.rows, f"continuous {options.rows}")):
        own = ["--rows", str(rows), "--max-queue", str(options.requests), "--timeout", str(options.limit)]
        url, pid = stack.enter_context(served([*own, *SAMPLER_OPTIONS[sampler]], threads=options.threads))
        yield Server(name, Target(url, temperature=options.temperature), pid)
    if options.url is not None:
        yield Server(options.name, Target(options.url, options.model, temperature=options.temperature), options.pid)


def _case(sampler: str, server: Server) -> dict[str, object]:
    return {"where": "http", "sampler": sampler, "policy": server.name, "load": None, "clients": None, "rate": None}


def _watched(server: Server, ask: Callable[[Target], list[Outcome]]) -> dict[str, object]:
    """The summary of a run, with the processor time of the server's process and what its steps were made of."""
    seconds, steps = _cpu(server), steps_of(server.target)
    outcomes = ask(server.target)
    found = summary(outcomes, None if seconds is None else _cpu(server) - seconds)
    after = steps_of(server.target)
    if steps is not None and after is not None and after[0] > steps[0]:
        found["rows_per_step"] = round((after[1] - steps[1]) / (after[0] - steps[0]), 2)
    return found


def _cpu(server: Server) -> float | None:
    return None if server.pid is None else cpu_seconds(server.pid)


def steps_of(target: Target) -> tuple[float, float] | None:
    """How many steps the server has run, and how many rows they had in all; None where its metrics do not say."""
    try:
        text = httpx.get(f"{target.url}/metrics", headers=target.headers, trust_env=False, timeout=10).text
    except httpx.HTTPError:
        return None
    found = [re.search(rf"^dllm_rows_per_step_{name} (\S+)$", text, re.MULTILINE) for name in ("count", "sum")]
    return None if None in found else (float(found[0][1]), float(found[1][1]))
