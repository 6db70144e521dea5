"""Tables of training: head and loss alone, and whole training steps."""

from __future__ import annotations

from pathlib import Path

from benchmarks import machine
from benchmarks.markdown import megabytes

ENTROPY_HEAD = (
    "forward + backward of the loss",
    "machine",
    "full logits, ms",
    "masked rows gathered, ms",
    "linear_cross_entropy, ms",
    "speed-up over full",
    "over gathered",
    "peak memory of full, MB",
    "ours, MB",
    "command",
)
TRAINING_HEAD = (
    "training step",
    "batch",
    "machine",
    "programs",
    "before, tokens/s",
    "dllm, tokens/s",
    "speed-up",
    "peak memory before, MB",
    "dllm, MB",
    "command",
)
TRAINING_WAYS = {
    "full": "full logits",
    "indexed": "logits[mask]",
    "patched": "the same, patched",
    "ours": "MDLMTrainer's loss",
    "compiled": "MDLMTrainer's loss, the body compiled",
}


def entropy_lines(row: dict, commands: list[str]) -> list[list[str]]:
    """A line for each head and dtype of a cross-entropy row."""
    cases: dict[tuple[str, str], dict[str, dict]] = {}
    for result in row["results"]:
        cases.setdefault((result["head"], result["dtype"]), {})[result["program"]] = result
    settings = row["settings"]
    return [
        [
            f"{head} {dtype}, {settings['masked']} masked of {settings['rows']} rows",
            machine.short_name(row["machine"]),
            *(f"{1000 * case[name]['seconds']['median']:.0f}" for name in ("full", "gathered", "ours")),
            *(f"{case[name]['ours_is_faster_by']:.1f}x" for name in ("full", "gathered")),
            *(megabytes(case[name]["peak_bytes"]) for name in ("full", "ours")),
            f"{commands.index(row['command']) + 1}",
        ]
        for (head, dtype), case in cases.items()
    ]


def before_and_after(row: dict) -> list[tuple[tuple[str, str], tuple[dict, dict]]]:
    """For each program of ours in a training row: the names and the results of the program it replaces and of its own.

    Raises:
        ValueError: the row has no such pair.
    """
    results = row["providers"]
    pairs = [(result["against"], name) for name, result in results.items() if "against" in result]
    if not pairs:
        raise ValueError(f"a chosen row has no measurement of both programs: {row['command']}")
    return [((before, after), (results[before], results[after])) for before, after in pairs]


def training_lines(row: dict, commands: list[str]) -> list[list[str]]:
    """A line for each program of dllm and the one that it replaces."""
    settings = row["settings"]
    return [
        [
            f"{Path(settings['model']).name} {settings['dtype']}, {settings['attention']} attention, "
            f"dropout {settings['dropout']:g}" + ", gradient checkpointing" * settings["gradient_checkpointing"],
            f"{settings['batch']} x {settings['length']}, {row['masked_share']:.0%} masked",
            machine.short_name(row["machine"]),
            " -> ".join(TRAINING_WAYS.get(name, name) for name in names),
            *(f"{program['tokens_per_second']:.0f}" for program in (before, result)),
            f"{result['speedup']:.2f}x",
            *(megabytes(program["peak_bytes"]) for program in (before, result)),
            f"{commands.index(row['command']) + 1}",
        ]
        for names, (before, result) in before_and_after(row)
    ]
