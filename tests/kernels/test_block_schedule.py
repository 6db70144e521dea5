"""Lists, proposals and moves of a step: others against the reference, bit for bit, and the reference against loops.

Tables, canvases and numbers are drawn at random, so that finished rows, leftover masks, blocks that begin left of their
window, lists without room and steps beyond the last amount all come up.
"""

import importlib.util
import itertools

import pytest
import torch

from dllm_kernels import (
    BlockSchedule,
    Candidates,
    _impl,
    advance_rows,
    list_candidates,
    place_proposals,
)
from dllm_kernels.testing import poisoned_memory

MASK, EOS, EOT = 9, 4, 5
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or not (torch.cuda.is_available() or _impl.interpreting()),
    reason="no triton",
)
cpu = pytest.mark.skipif(_impl.why_not_cpu() is not None, reason="no extension")
each = pytest.mark.parametrize("impl", [pytest.param("triton", marks=triton), pytest.param("cpu", marks=cpu)])


class Draw:
    """Random integers and choices of one seed."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def integers(self, low, high, *size):
        return torch.randint(low, high, size, generator=self.generator)

    def one(self, *choices):
        return choices[int(self.integers(0, len(choices)))]


def random_schedule(draw, rows, columns, amounts):
    """Blocks that follow each other, and rows anywhere in them, some at their end."""
    blocks, most_steps = draw.one(1, 3), draw.one(1, 5)
    edges = draw.integers(0, columns + 1, rows, blocks + 1).sort(1).values
    count = draw.integers(1, blocks + 1, rows)
    return BlockSchedule(
        block=torch.minimum(draw.integers(0, blocks + 1, rows), count),
        step=draw.integers(0, most_steps + 2, rows),
        blocks=count,
        begin=edges[:, :-1].contiguous(),
        stop=edges[:, 1:].contiguous(),
        steps=draw.integers(1, most_steps + 2, rows, blocks),
        amount=draw.integers(0, 4, rows, blocks, most_steps)
        if amounts == torch.int64
        else torch.rand(rows, blocks, most_steps, generator=draw.generator),
    )


def random_canvas(draw, rows, columns):
    canvas = draw.integers(0, MASK, rows, columns)
    return torch.where(draw.integers(0, draw.one(2, 5), rows, columns) > 0, MASK, canvas)


def listing(draw, rows, columns, window, room):
    """Arguments of list_candidates."""
    return dict(
        tokens=random_canvas(draw, rows, columns),
        schedule=random_schedule(draw, rows, columns, torch.int64),
        seeds=draw.integers(-(2**62), 2**62, rows),
        mask_id=MASK,
        start=draw.integers(0, columns, rows),
        overflow=draw.integers(0, 9, 1),
        window=window,
        hidden_offset=torch.arange(rows) * columns - draw.integers(0, 3, rows),
        hidden_rows=max(rows * columns - 2, 1),
        right_shift=draw.one(False, True),
        block_only=draw.one(False, True),
        editable=draw.one(None, draw.integers(0, 2, rows, columns).bool()),
        room=room,
        multiple=draw.one(1, 16),
        temperature=draw.one(None, draw.integers(0, 8, rows) / 4),
    )


def placing(draw, rows, window, places, with_uniform):
    """Arguments of place_proposals: tokens for some cells, in any order."""
    slot = draw.integers(-3, places, rows, window).clamp(min=-1)
    lists = [torch.zeros(places, dtype=torch.int64)] * 4
    return dict(
        candidates=Candidates(*lists, torch.tensor([places]), slot),
        token=draw.integers(draw.one(-1, 0), 8, places),
        rank=draw.integers(0, 8, places) / 8,
        uniform=torch.rand(places, generator=draw.generator) if with_uniform else None,
        schedule=random_schedule(draw, rows, window, torch.float32 if with_uniform else torch.int64),
        proposals=draw.integers(-1, 8, rows, window),
        confidence=draw.integers(0, 8, rows, window) / 8,
        row_steps=draw.integers(0, 50, rows),
        failed=draw.integers(-1, 3, rows),
    )


def advancing(draw, rows, columns, window):
    """Arguments of advance_rows."""
    tokens = random_canvas(draw, rows, columns)
    tokens = torch.where(draw.integers(0, draw.one(2, 20), rows, 1) == 0, draw.integers(0, 8, rows, columns), tokens)
    eos_id = draw.one(None, 0, EOS)
    return dict(
        tokens=tokens,
        schedule=random_schedule(draw, rows, columns, torch.int64),
        proposals=draw.integers(-1, MASK + 1, rows, window),
        confidence=draw.integers(0, 8, rows, window) / 8,
        committed=draw.integers(0, 2, rows),
        mask_id=MASK,
        first=draw.integers(0, columns + 1, rows),
        row_steps=draw.integers(0, 50, rows),
        unmasked_steps=draw.integers(0, 4, rows),
        adapts=draw.one(False, True),
        block_only=draw.one(False, True),
        edit_threshold=draw.one(None, None, 0.375),
        edit_steps=int(draw.integers(0, 4)),
        eos_id=eos_id,
        eot_id=None if eos_id is None else draw.one(None, 0, EOT),
        stops_between_blocks=draw.one(False, True),
    )


def copied(value, device):
    """Arguments with tensors of their own, on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device, copy=True)
    if isinstance(value, tuple):
        return type(value)(*(copied(part, device) for part in value))
    return value


def compare(operation, arguments, impl="triton"):
    """Results and changed arguments of both implementations are the same, bit for bit."""
    mine = {name: copied(value, torch.device("cpu")) for name, value in arguments.items()}
    device = DEVICE if impl == "triton" else torch.device("cpu")
    theirs = {name: copied(value, device) for name, value in arguments.items()}
    expected = operation(**mine, impl="reference")
    with poisoned_memory():
        got = operation(**theirs, impl=impl)
    for name, value in {**mine, "the result": expected}.items():
        other = got if name == "the result" else theirs[name]
        fields = zip(value, other, strict=True) if isinstance(value, tuple) else [(value, other)]
        for want, have in fields:
            if isinstance(want, torch.Tensor):
                assert want.dtype == have.dtype and torch.equal(want, have.cpu()), name
    return expected


# windows of one and of two sizes of programs; rooms with and without places for all
@each
@pytest.mark.parametrize("room", [None, 1, 8, 300])
@pytest.mark.parametrize(("rows", "columns", "window"), [(1, 1, 1), (3, 40, 7), (4, 150, 33), (2, 300, 300), (7, 9, 9)])
def test_lists(rows, columns, window, room, impl):
    overflowed = False
    for seed in range(3):
        draw = Draw(seed)
        cells = compare(list_candidates, listing(draw, rows, columns, window, room), impl)
        overflowed |= int(cells.count) > len(cells.position)
    assert overflowed or room not in (1, 8) or rows * window < 30


@triton
def test_a_list_of_more_rows_than_are_summed_at_a_time(monkeypatch):
    from dllm_kernels.block_schedule import triton as kernels

    monkeypatch.setattr(kernels, "_BLOCK_B", 4)
    for room in (5, 400):
        compare(list_candidates, listing(Draw(1), 11, 24, 24, room))


@each
@pytest.mark.parametrize("with_uniform", [False, True])
@pytest.mark.parametrize(("rows", "window", "places"), [(1, 1, 1), (3, 7, 16), (4, 33, 130), (2, 300, 600)])
def test_proposals(rows, window, places, with_uniform, impl):
    for seed in range(4):
        compare(place_proposals, placing(Draw(seed), rows, window, places, with_uniform), impl)


@each
@pytest.mark.parametrize(("rows", "columns", "window"), [(1, 1, 1), (5, 40, 7), (4, 150, 33), (2, 1100, 300)])
def test_moves(rows, columns, window, impl):
    for seed in range(12):
        compare(advance_rows, advancing(Draw(seed), rows, columns, window), impl)


def by_hand(arguments):
    """The candidates as the docstring states them, one row and one column at a time."""
    given, cells = arguments, []
    schedule = given["schedule"]
    for row, tokens in enumerate(given["tokens"].tolist()):
        block = int(schedule.block[row])
        if block >= int(schedule.blocks[row]):
            continue
        begin, stop = int(schedule.begin[row, block]), int(schedule.stop[row, block])
        for column in range(max(stop - given["window"], 0), stop):
            in_block = column >= begin
            masked = tokens[column] == given["mask_id"] and (in_block or not given["block_only"])
            if masked or (given["editable"] is not None and in_block and bool(given["editable"][row, column])):
                cells.append((row, column))
    return cells


def test_the_list_is_what_the_docstring_says():
    for seed in range(40):
        draw = Draw(seed)
        arguments = listing(draw, draw.one(1, 4), 30, draw.one(5, 30), draw.one(None, 3, 200))
        expected, overflow = by_hand(arguments), int(arguments["overflow"])
        cells = list_candidates(**arguments, impl="reference")
        places, multiple = len(cells.position), arguments["multiple"]
        assert places == -(-(arguments["room"] or max(len(expected), 1)) // multiple) * multiple
        assert int(cells.count) == len(expected)
        assert int(arguments["overflow"]) == overflow + max(len(expected) - places, 0)
        filler = [0] * (places - len(expected))
        assert cells.position.tolist() == [column for _, column in expected][:places] + filler
        assert cells.seed.tolist() == [int(arguments["seeds"][row]) for row, _ in expected][:places] + filler
        assert cells.step.tolist() == [int(arguments["schedule"].step[row]) for row, _ in expected][:places] + filler
        if (own := arguments["temperature"]) is not None:
            assert cells.temperature.tolist() == [float(own[row]) for row, _ in expected][:places] + filler
        for place, (row, column) in enumerate(expected[:places]):
            assert cells.slot[row, column - int(arguments["start"][row])] == place
            read = int(arguments["hidden_offset"][row]) + max(column - arguments["right_shift"], 0)
            assert int(cells.index[place]) == min(max(read, 0), arguments["hidden_rows"] - 1)
        assert int((cells.slot >= 0).sum()) == min(len(expected), places)


def test_an_end_is_final_once_no_mask_lies_before_it():
    """All canvases of four columns that hold a token, a mask, an end of text and an end of turn."""
    canvas = torch.tensor(list(itertools.product((1, MASK, EOS, EOT), repeat=4)))
    rows = len(canvas)
    for first, eot in itertools.product(range(5), (None, EOT)):
        schedule = BlockSchedule(
            *torch.zeros(2, rows, dtype=torch.int64),
            torch.full((rows,), 3),
            *(torch.full((rows, 3), n) for n in (0, 4, 9)),
            torch.ones(rows, 3, 9, dtype=torch.int64),
        )
        blank = torch.zeros(rows, dtype=torch.int64)
        advance_rows(
            canvas.clone(),
            schedule,
            torch.full((rows, 4), -1),
            torch.zeros(rows, 4),
            blank,
            mask_id=MASK,
            first=blank + first,
            row_steps=blank.clone(),
            unmasked_steps=blank.clone(),
            eos_id=EOS,
            eot_id=eot,
        )
        ends = (EOS, EOT) if eot else (EOS,)
        for row, block in zip(canvas.tolist(), schedule.block.tolist(), strict=True):
            found = [i for i, token in enumerate(row) if i >= first and token in (MASK, *ends)]
            assert (block == 3) == bool(found and row[found[0]] != MASK), (row, first)


GOOD = {
    list_candidates: lambda: listing(Draw(0), 2, 8, 4, 8),
    place_proposals: lambda: placing(Draw(0), 2, 4, 8, False),
    advance_rows: lambda: advancing(Draw(0), 2, 8, 4),
}
BAD = [
    (list_candidates, dict(tokens=torch.zeros(2, 8)), TypeError, "tokens must be int64, got float32"),
    (list_candidates, dict(seeds=torch.zeros(3).long()), ValueError, r"seeds must have shape \[2\], got \[3\]"),
    (list_candidates, dict(window=9), ValueError, "a window must have from 1 to 8 columns, got 9"),
    (list_candidates, dict(temperature=torch.zeros(2).double()), TypeError, "temperature must be float32, got float64"),
    (list_candidates, dict(room=0), ValueError, "room must be at least 1, got 0"),
    (list_candidates, dict(multiple=1.5), TypeError, "multiple must be an integer, got float"),
    (list_candidates, dict(editable=torch.zeros(2, 8)), TypeError, "editable must be bool, got float32"),
    (list_candidates, dict(seeds=torch.zeros(2, 2).long()[:, 0]), ValueError, "seeds must be contiguous, got strides"),
    (place_proposals, dict(uniform=torch.zeros(8)), TypeError, "amount must be float32, got int64"),
    (place_proposals, dict(rank=torch.zeros(7)), ValueError, r"rank must have shape \[8\], got \[7\]"),
    (advance_rows, dict(eos_id=None, eot_id=3), ValueError, "eot_id needs an eos_id, got eot_id 3 alone"),
    (advance_rows, dict(edit_threshold="0.5"), TypeError, "edit_threshold must be a number, got str"),
    (advance_rows, dict(committed=None), TypeError, "committed must be a tensor, got NoneType"),
    (advance_rows, dict(impl="fast"), ValueError, "impl must be one of"),
]


@pytest.mark.parametrize(("operation", "wrong", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_arguments(operation, wrong, error, message):
    arguments = GOOD[operation]()
    before = {name: copied(value, torch.device("cpu")) for name, value in arguments.items()}
    with pytest.raises(error, match=message):
        operation(**{**arguments, **wrong})
    assert all(torch.equal(value, before[name]) for name, value in arguments.items() if isinstance(value, torch.Tensor))


def test_tables_without_rows_or_blocks():
    arguments = listing(Draw(0), 2, 8, 4, 8)
    tables = dict.fromkeys(("begin", "stop", "steps"), torch.zeros(2, 0, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least one row and one block"):
        list_candidates(**{**arguments, "schedule": arguments["schedule"]._replace(**tables)})
