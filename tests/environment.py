"""The environment's variables, as they were before a test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def restored_environment() -> Iterator[None]:
    """transformers 4 writes a run's precision into the environment, where the next run would read it; datasets puts a
    copy in the place of `os.environ`, in which pytest's monkeypatch undoes nothing."""
    environment, before = os.environ, dict(os.environ)
    try:
        yield
    finally:
        os.environ = environment  # noqa: B003 (the object itself is what was replaced)
        if dict(environment) != before:
            environment.clear()
            environment.update(before)
