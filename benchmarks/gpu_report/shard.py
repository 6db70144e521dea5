"""A pytest plugin that runs every n-th test only, so that several processes share a file.

pytest -p benchmarks.gpu_report.shard --shard 2/4 FILE
"""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option --shard."""
    parser.addoption("--shard", default="1/1", help="K/N: run part K of N parts of the tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep tests k, k + n, k + 2n, ... for part k of n."""
    number, count = map(int, config.getoption("--shard").split("/"))
    kept = items[number - 1 :: count]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
