"""Failures of measured programs, kept in their results, so that the other programs go on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

Result = dict[str, object]  # the numbers of a program, or {"error": reason}


@contextlib.contextmanager
def failures_in(results: dict[str, Result], name: str) -> Iterator[None]:
    """Turn an exception inside the `with` block into the "error" of result `name`, so that other programs go on."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or "no message"
        results[name] = results.get(name, {}) | {"error": f"{type(error).__name__}: {reason}"}
