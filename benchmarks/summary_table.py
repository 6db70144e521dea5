"""The table of README.md: a few rows of sampling and training, each as one line of the same columns."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import machine
from benchmarks.markdown import megabytes
from benchmarks.sampling_tables import card_and_ours, sampler_and_model
from benchmarks.training_tables import TRAINING_WAYS, before_and_after

# how generate ran, by the names of programs in a row
GENERATE_WAYS = {
    "ours-eager": "generate",
    "ours-compiled": "generate, the body compiled",
    "ours-int8-compiled": "generate in 8 bits (approximate), the body compiled",
}
SUMMARY_HEAD = (
    "replaced -> dllm",
    "model and batch",
    "machine",
    "tokens/s",
    "speed-up",
    "peak memory growth, MB",
    "command",
)


def summary_lines(row: dict, commands: Sequence[str]) -> list[list[str]]:
    """A line for each pair of programs in a row of kind "sampler" or "training_step".

    Raises:
        ValueError: a row of another kind, or one without such a pair.
    """
    if row["kind"] not in LINES:
        raise ValueError(f"rows of the summary must be of a kind among {', '.join(LINES)}, got {row['kind']}")
    return [
        [
            what,
            model,
            machine.short_name(row["machine"]),
            " -> ".join(f"{program['tokens_per_second']:.{digits}f}" for program in (before, after)),
            f"{after['tokens_per_second'] / before['tokens_per_second']:.1f}x",
            " -> ".join(megabytes(program["peak_bytes"]) for program in (before, after)),
            f"{commands.index(row['command']) + 1}",
        ]
        for what, model, digits, before, after in LINES[row["kind"]](row)
    ]


def _sampler(row: dict) -> list[tuple[str, str, int, dict, dict]]:
    settings = row["settings"]
    what = f"sampling at temperature {settings['temperature']:g}: the card's loop -> "
    model = f"{sampler_and_model(settings)}, batch {settings['batch']}"
    card, fastest = card_and_ours(row)
    measured = {name: result for name, result in row["providers"].items() if "tokens_per_second" in result}
    ours = [(way, measured[name]) for name, way in GENERATE_WAYS.items() if name in measured]
    return [(what + way, model, 1, card, result) for way, result in ours or [("generate", fastest)]]


def _training_step(row: dict) -> list[tuple[str, str, int, dict, dict]]:
    settings = row["settings"]
    model = f"{settings['model']} {settings['dtype']}, batch {settings['batch']} x {settings['length']}"
    return [
        (f"training step: {' -> '.join(TRAINING_WAYS.get(name, name) for name in names)}", model, 0, *programs)
        for names, programs in before_and_after(row)
    ]


def _sampler_steps(row: dict) -> list[tuple[str, str, int, dict, dict]]:
    settings = row["settings"]
    what = f"sampling at temperature {settings['temperature']:g}: the published loop -> its sampler"
    return [(what, f"{sampler_and_model(settings)}, batch {settings['batch']}", 1, *card_and_ours(row))]


LINES = {"sampler": _sampler, "sampler_steps": _sampler_steps, "training_step": _training_step}
