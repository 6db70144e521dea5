"""transformers 4 writes a run's precision into the environment, where the next run of the process would read it."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def environment_as_before():
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
