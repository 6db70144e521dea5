"""The table of requests that arrive at random: throughput and waiting times by server, policy and load."""

from __future__ import annotations

SERVING_HEAD = (
    "sampler",
    "where, policy",
    "arrivals",
    "requests/s",
    "tokens/s",
    "short p50, p95, p99, s",
    "long p50, p95, p99, s",
    "first text p50, p95, s",
    "rows/step",
    "padding",
    "CPU s/request",
    "refused",
    "command",
)


def serving_lines(row: dict, commands: list[str]) -> list[list[str]]:
    """A line for each policy and load."""
    return [
        [
            result["sampler"],
            f"{result['where']}, {result['policy']}",
            arrivals_in_words(result),
            f"{result['requests/s']:.2f}",
            f"{result['tokens/s']:.0f}",
            *(_waits(result.get(kind)) for kind in ("short", "long")),
            _first_text(result.get("short", {})),
            _number(result.get("rows_per_step"), 1),
            f"{result['padding']:.1%}" if "padding" in result else "",
            _number(result.get("cpu_s/request"), 3),
            str(sum(result["refused"].values())),
            f"{commands.index(row['command']) + 1}",
        ]
        for result in row["results"]
    ]


def arrivals_in_words(result: dict) -> str:
    """How requests came.

    Example:
        >>> arrivals_in_words({"load": 1.2, "clients": None}), arrivals_in_words({"load": None, "clients": 8})
        ('load 1.2', '8 clients')
    """
    if result["load"] is not None:
        return f"load {result['load']:g}"
    return f"{result['clients']} client" + "s" * (result["clients"] > 1)


def _waits(waits: dict | None) -> str:
    return "" if waits is None else ", ".join(f"{waits[name]:.2f}" for name in ("p50", "p95", "p99"))


def _first_text(waits: dict) -> str:
    """Of both quantiles, those that a row has: older ones have the median only."""
    return ", ".join(f"{waits[name]:.3f}" for name in ("first_text", "first_text_p95") if name in waits)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
