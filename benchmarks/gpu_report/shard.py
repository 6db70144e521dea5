"""A pytest plugin that runs one part of a file's tests, so that several processes share the file.

pytest -p benchmarks.gpu_report.shard --shard 2/4 FILE

A part is a run of neighbours: the cases of a test compile the same kernels, and so compile them in one process.
"""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option --shard."""
    parser.addoption("--shard", default="1/1", help="K/N: run part K of N parts of the tests")


@pytest.hookimpl(trylast=True)  # after what the tests' conftest leaves out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the k-th of n parts that are equally long."""
    number, count = map(int, config.getoption("--shard").split("/"))
    begin, end = (len(items) * part // count for part in (number - 1, number))
    config.hook.pytest_deselected(items=items[:begin] + items[end:])
    items[:] = items[begin:end]
