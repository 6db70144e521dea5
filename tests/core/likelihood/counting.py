"""Counting forwards, without those by which the engine finds out what a model is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from dllm.fast.head.split import SplitModel


@contextmanager
def forwards_counted() -> Iterator[list[tuple[int, int]]]:
    """The (rows, columns) of each forward that is run up to the head."""
    shapes, body = [], SplitModel.body

    def counted(self, tokens, *args, **kwargs):
        shapes.append(tuple(tokens.shape))
        return body(self, tokens, *args, **kwargs)

    with mock.patch.object(SplitModel, "body", counted):
        yield shapes
