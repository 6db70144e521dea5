"""Covering arrays: every combination of values that a grid has stays, in fewer cases."""

import itertools

import pytest

from tests.covering import covering


@pytest.mark.parametrize("strength", [1, 2, 3, 4])
@pytest.mark.parametrize("sizes", [(2, 3, 4), (3, 3, 3, 3), (5,), (7, 2)])
def test_every_combination_stays(sizes, strength):
    grid = [dict(enumerate(case)) for case in itertools.product(*map(range, sizes))]
    kept = covering(grid, strength)
    found = {c for i in kept for c in itertools.combinations(grid[i].items(), min(strength, len(sizes)))}
    assert found == {c for case in grid for c in itertools.combinations(case.items(), min(strength, len(sizes)))}
    assert kept == sorted(set(kept))
    largest = 1
    for size in sorted(sizes, reverse=True)[:strength]:
        largest *= size
    assert largest <= len(kept) <= min(len(grid), 2 * largest)


def test_only_grids_are_marked(request):
    """Of the tests that run together with this one."""
    for item in request.session.items:
        if mark := item.get_closest_marker("covering"):
            assert len(item.callspec.params) > mark.args[0], (
                f"{item.nodeid}: an array of strength {mark.args[0]} is all"
            )
