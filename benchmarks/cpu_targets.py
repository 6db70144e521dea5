"""The performance targets of a CPU, and the rows that they are read from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from benchmarks.providers import is_approximate
from benchmarks.target import Measured, Rows, Target

# what `ours` reached of the loss over all logits when 1.3 times as much was asked: 1091 and 668 tokens/s
TRAINING_THEN = 1.63


def _over_the_card(temperature: float, *, approximate: bool) -> Callable[[Rows], Iterator[Measured]]:
    """Speed-up of dllm's fastest program, exact or approximate, over the model card's loop."""

    case = {"model": "modernbert-base", "batch": 1, "dtype": "bfloat16", "temperature": temperature}

    def values(rows: Rows) -> Iterator[Measured]:
        for row in rows:
            if row["kind"] == "sampler" and case.items() <= row["settings"].items():
                ours = [name for name in row["providers"] if name.startswith("ours")]
                yield from _fastest_over("card", [name for name in ours if is_approximate(name) == approximate], row)

    return values


def _fastest_over(baseline: str, ours: Sequence[str], row: dict) -> Iterator[Measured]:
    """Speed-up of the fastest of some programs over another, where both have run."""
    speeds = {name: r["tokens_per_second"] for name, r in row["providers"].items() if "tokens_per_second" in r}
    if baseline in speeds and (ran := [name for name in ours if name in speeds]):
        fastest = max(ran, key=speeds.get)
        yield Measured(speeds[fastest] / speeds[baseline], fastest, row)


def _body_over_products(rows: Rows) -> Iterator[Measured]:
    for row in rows:
        for shape in row["results"] if row["kind"] == "cpu_bodies" else ():
            compiled = shape["bodies"].get("compiled", {})
            if shape["batch"] == 8 and "share_of_floor" in compiled:
                where = f"{row['settings']['model']}, 8 x {shape['length']}"
                yield Measured(1 / compiled["share_of_floor"], where, row)


def _head_cells(rows: Rows) -> Iterator[tuple[dict, dict, str]]:
    for row in rows:
        for cell in row["results"] if row["kind"] == "cpu_head" else ():
            yield row, cell, f"{cell['head']}, {cell['dtype']}, rows: {cell['rows']}"


def _head_over_stored(rows: Rows) -> Iterator[Measured]:
    for row, cell, where in _head_cells(rows):
        yield Measured(cell["speedup"]["stored"], where, row)


def _head_memory(rows: Rows) -> Iterator[Measured]:
    for row, cell, where in _head_cells(rows):
        yield Measured(cell["share_of_memory"], where, row)


def _training_over_all_logits(rows: Rows) -> Iterator[Measured]:
    case = {"model": "minilm", "dtype": "float32"}
    for row in rows:
        if row["kind"] == "training_step" and case.items() <= row["settings"].items():
            yield from _fastest_over("full", ("ours", "compiled"), row)


def _gauge(rows: Rows) -> Iterator[Measured]:
    """Seconds of the eager body in full precision over those of the fastest way."""
    for row in rows:
        seconds = {}
        for each in row["results"] if row["kind"] == "quality" else ():
            how = "8 bits" if each.get("quantize") == "int8" else "exact"
            seconds[how + ", compiled" * bool(each.get("compile_body"))] = each["seconds"]
        if "exact" in seconds and len(seconds) > 1:
            fastest = min(seconds, key=seconds.get)
            yield Measured(seconds["exact"] / seconds[fastest], fastest, row)


CARD = "tokens per second / those of the model card's loop, eager"
TARGETS = (
    Target("ModernBERT-base, bfloat16, T 0, exact", CARD, 2.0, _over_the_card(0.0, approximate=False)),
    Target("the same with weights of 8 bits", CARD, 2.0, _over_the_card(0.0, approximate=True)),
    Target("ModernBERT-base, bfloat16, T 1, exact", CARD, 5.0, _over_the_card(1.0, approximate=False)),
    Target("the same with weights of 8 bits", CARD, 5.0, _over_the_card(1.0, approximate=True)),
    Target("compiled body at batch 8", "its time / that of its products", 2.0, _body_over_products, at_most=True),
    Target("head and sampling", "time of the product stored and read again / ours", 1.0, _head_over_stored),
    Target("head and sampling, memory", "ours / that of the stored product", 0.1, _head_memory, at_most=True),
    Target(
        "training step of MiniLM, float32",
        "tokens per second / those of the loss over all logits",
        1.3 * TRAINING_THEN,
        _training_over_all_logits,
    ),
    Target("the bundled model's gauge", "seconds, eager and exact / those of the fastest way", 2.0, _gauge),
)
