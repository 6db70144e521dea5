"""What came of each request, and the summary of a run: throughput, and waiting times by class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

QUANTILES = (0.5, 0.95, 0.99)


@dataclass(slots=True)
class Outcome:
    """What came of a request; moments are seconds from the start of the run.

    kind: of the request.
    new_tokens: columns that it asked for, all of which are decided where it is answered.
    arrival: when it came.
    first: when the first text was there; None: there was none.
    end: when the answer was complete, or was refused.
    refused: why it has no answer, such as "503"; None: it has one.
    text_tokens: tokens of the text, up to its end; None: not told.
    """

    kind: str
    new_tokens: int
    arrival: float
    first: float | None = None
    end: float | None = None
    refused: str | None = None
    text_tokens: int | None = None


def quantile(values: Sequence[float], q: float) -> float:
    """A quantile, by linear interpolation between the ordered values.

    Raises:
        ValueError: there are no values.

    Example:
        >>> quantile([3.0, 1.0, 2.0], 0.5), quantile([0.0, 10.0], 0.95)
        (2.0, 9.5)
    """
    if not values:
        raise ValueError("a quantile needs at least one value, got none")
    ordered = sorted(values)
    below, share = divmod(q * (len(ordered) - 1), 1)
    above = min(int(below) + 1, len(ordered) - 1)
    return ordered[int(below)] * (1 - share) + ordered[above] * share


def summary(outcomes: Sequence[Outcome], cpu_seconds: float | None = None) -> dict[str, object]:
    """A run in numbers.

    Seconds of the run count from the first arrival to the last answer. Tokens are columns of the canvas, which every
    program decides whatever the text is; `text_tokens/s` counts what is left of them up to the end of the text.

    Args:
        outcomes: of all requests.
        cpu_seconds: processor time that the answering process took.

    Raises:
        ValueError: there are no outcomes.

    Example:
        >>> found = summary([Outcome("short", 32, 0.0, 0.5, 1.0), Outcome("short", 32, 1.0, 2.0, 4.0)], 2.0)
        >>> found["requests/s"], found["tokens/s"], found["tokens/cpu_s"], found["short"]["p50"]
        (0.5, 16.0, 32.0, 2.0)
    """
    if not outcomes:
        raise ValueError("a run needs at least one request, got none")
    answered = [outcome for outcome in outcomes if outcome.refused is None]
    seconds = max(outcome.end for outcome in outcomes) - min(outcome.arrival for outcome in outcomes)
    tokens = sum(outcome.new_tokens for outcome in answered)
    found: dict[str, object] = {
        "requests": len(outcomes),
        "answered": len(answered),
        "refused": dict(Counter(outcome.refused for outcome in outcomes if outcome.refused is not None)),
        "seconds": round(seconds, 3),
        "requests/s": round(len(answered) / seconds, 3),
        "tokens/s": round(tokens / seconds, 1),
    }
    told = [outcome.text_tokens for outcome in answered]
    if answered and None not in told:
        found["text_tokens/s"] = round(sum(told) / seconds, 1)
    if cpu_seconds is not None:
        found["cpu_seconds"] = round(cpu_seconds, 3)
        if answered:
            found["cpu_s/request"] = round(cpu_seconds / len(answered), 4)
        if cpu_seconds > 0:
            found["tokens/cpu_s"] = round(tokens / cpu_seconds, 1)
    for kind in sorted({outcome.kind for outcome in answered}, reverse=True):
        of_kind = [outcome for outcome in answered if outcome.kind == kind]
        found[kind] = _waits(of_kind)
    return found


def _waits(outcomes: Sequence[Outcome]) -> dict[str, object]:
    """Seconds from arrival until the answer is complete, and until its first text."""
    until = [outcome.end - outcome.arrival for outcome in outcomes]
    first = [outcome.first - outcome.arrival for outcome in outcomes if outcome.first is not None]
    waits: dict[str, object] = {"answered": len(outcomes)}
    waits |= {f"p{100 * q:.0f}": round(quantile(until, q), 4) for q in QUANTILES}
    if first:
        waits |= {"first_text": round(quantile(first, 0.5), 4), "first_text_p95": round(quantile(first, 0.95), 4)}
    return waits
