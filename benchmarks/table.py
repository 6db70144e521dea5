"""The tables of results, made from the rows listed in ``benchmarks/results/chosen.txt``.

    python -m benchmarks.table            write all of them into benchmarks/RESULTS.md, the first ones into README.md
    python -m benchmarks.table --check    only say whether both are up to date; exit status 1 when one is not

So no number in a table was typed by hand, and each stands beside the command that measured it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks import kernel_tables, machine, report
from benchmarks.kernel_tables import megabytes
from dllm.demo import samplers
from dllm.exits import exit_code

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
SAMPLER_HEAD = (
    "model",
    "batch",
    "T",
    "machine",
    "card's loop, tokens/s",
    "dllm, tokens/s",
    "speed-up",
    "ms/step",
    "same tokens",
    "command",
)
QUALITY_HEAD = ("asked", "tokens per step", "exact answers", "95 % interval", "tokens per forward", "command")
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
}
CACHED_HEAD = (
    "block caches",
    "machine",
    "forward passes",
    "before, s",
    "dllm's cache, s",
    "speed-up",
    "ms/step before",
    "dllm's",
    "cache, MB",
    "command",
)
# which loops of a cached_decoding row are held against which
CACHED_PAIRS = (("bd3lm recomputed", "bd3lm cached"), ("full canvas", "dual cache"))


def main(arguments: list[str] | None = None) -> int:
    """Write or check the documents; 1 when a check fails, 2 when something is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--root", type=Path, default=machine.ROOT, help="folder with README.md and benchmarks/")
    options = parser.parse_args(arguments)
    try:
        rows = [report.read_row(path) for path in chosen(options.root / "benchmarks" / "results")]
        files = {options.root / name: kinds for name, kinds in DOCUMENTS.items()}
        before = {file: file.read_text() for file in files}
        after = {
            file: replace_between_markers(before[file], table([row for row in rows if row["kind"] in kinds]), file)
            for file, kinds in files.items()
        }
    except (OSError, ValueError) as error:
        print(f"benchmarks.table: {error}", file=sys.stderr)
        return 2
    stale = [file for file in files if before[file] != after[file]]
    for file in stale:
        if options.check:
            print(f"{file.name} is out of date: run python -m benchmarks.table", file=sys.stderr)
        else:
            file.write_text(after[file])
    return int(options.check and bool(stale))


def chosen(folder: Path) -> list[Path]:
    """The rows named in chosen.txt, one file name a line; empty lines and those that begin with # do not count. A name
    with a * stands for every file that fits: `nvidia-h200-20261122/*/2*.json`.

    Raises:
        ValueError: no file fits.
    """
    lines = [line.strip() for line in (folder / "chosen.txt").read_text().splitlines()]
    paths = []
    for line in lines:
        if line and not line.startswith("#"):
            found = sorted(folder.glob(line)) if "*" in line else [folder / line]
            if not found:
                raise ValueError(f"{line} in chosen.txt must fit a file in {folder}, got none")
            paths += found
    return paths


def replace_between_markers(text: str, block: str, file: Path) -> str:
    """`text`, that of `file`, with everything between the two markers replaced by `block`.

    Raises:
        ValueError: a marker is missing.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{file.name} needs the lines {BEGIN} and {END}")
    lines = [BEGIN, block, END] if block else [BEGIN, END]
    return head + "\n".join(lines) + tail


def table(rows: list[dict]) -> str:
    """The markdown tables of the rows, one for each kind, and the commands that measured them.

    Raises:
        ValueError: a row of a kind that has no table, or one that lacks what its table shows.
    """
    if unknown := {row["kind"] for row in rows} - KINDS.keys():
        raise ValueError(f"rows must be of a kind among {', '.join(KINDS)}, got {', '.join(sorted(unknown))}")
    commands = list(dict.fromkeys(row["command"] for row in rows))
    parts = []
    for kind, (head, lines_of) in KINDS.items():
        lines = [line for row in rows if row["kind"] == kind for line in lines_of(row, commands)]
        if lines:
            parts.append(markdown(head, lines))
    if commands:
        parts.append("\n".join(f"{number}. `{command}`" for number, command in enumerate(commands, start=1)))
    return "\n\n".join(parts)


def sampler_lines(row: dict, commands: list[str]) -> list[list[str]]:
    """One line, one case: the model card's loop beside the fastest of ours.

    Raises:
        ValueError: the row lacks one of the two.
    """
    settings, results = row["settings"], row.get("providers", {})
    ours = [r for name, r in results.items() if name.startswith("ours") and "tokens_per_second" in r]
    card = results.get("card", {})
    if not ours or "tokens_per_second" not in card:
        raise ValueError(f"a chosen row has no measurement of both programs: {row['command']}")
    best = max(ours, key=lambda result: result["tokens_per_second"])
    same = best.get("same_tokens")
    return [
        [
            _sampler_of(settings) + f"{Path(settings['model']).name} {settings['dtype']}",
            str(settings["batch"]),
            f"{settings['temperature']:g}",
            machine.short_name(row["machine"]),
            f"{card['tokens_per_second']:.1f}",
            f"{best['tokens_per_second']:.1f}",
            f"{best['tokens_per_second'] / card['tokens_per_second']:.1f}x",
            f"{card['ms_per_step']['median']:.1f} -> {best['ms_per_step']['median']:.1f}",
            "n/a" if same is None else f"{same:.1%}",
            f"{commands.index(row['command']) + 1}",
        ]
    ]


def _sampler_of(settings: dict) -> str:
    """The sampler of a row, where it is another than the model card's."""
    if settings.get("sampler", "generate") == "generate":
        return ""
    return sampler_in_words(settings["sampler"], settings["options"], settings["approximate"]) + ": "


def sampler_in_words(sampler: str, options: dict, approximate: bool) -> str:
    """A sampler with what sets its pace, and whether it trades tokens for speed.

    Example:
        >>> sampler_in_words("threshold", {"threshold": 0.9}, True)
        'threshold 0.9 (approximate)'
        >>> sampler_in_words("llada2", {"threshold": 0.95}, True)
        'llada2 threshold 0.95 (approximate)'
    """
    rules = [name for name in samplers.RULES if name in options]
    pace = [f"{options[name]:g}" if name == sampler else f"{name} {options[name]:g}" for name in rules]
    return " ".join([sampler, *pace]) + " (approximate)" * approximate


def quality_lines(row: dict, commands: list[str]) -> list[list[str]]:
    """A line for each task and way to sample of a quality row."""
    settings = row["settings"]
    what = "" if settings["model"] == "shipped" else f", {settings['model']}"
    if settings["block_length"] != settings["gen_length"]:
        what += f", blocks of {settings['block_length']}"
    return [
        [
            f"{result['questions']} {result['task']}{what}",
            way_to_sample(result),
            f"{result['accuracy']:.1%}",
            "{:.1%} to {:.1%}".format(*result["interval_95"]),
            f"{result['tokens_per_forward']:.2f}",
            f"{commands.index(row['command']) + 1}",
        ]
        for result in row["results"]
    ]


def way_to_sample(result: dict) -> str:
    """What sets a quality result's pace: of the model card's loop the number of tokens per step alone.

    Example:
        >>> way_to_sample({"tokens_per_step": 8})
        '8'
        >>> way_to_sample({"sampler": "mdlm", "approximate": False, "tokens_per_step": 2})
        'mdlm, 2'
    """
    counted = [str(result["tokens_per_step"])] if "tokens_per_step" in result else []
    if result.get("sampler", "generate") == "generate":
        return counted[0]
    return ", ".join([sampler_in_words(result["sampler"], result, result["approximate"]), *counted])


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


def training_lines(row: dict, commands: list[str]) -> list[list[str]]:
    """A line for each program of ours beside the one that it replaces.

    Raises:
        ValueError: the row has no such pair.
    """
    settings, results = row["settings"], row["providers"]
    pairs = [(name, result, results[result["against"]]) for name, result in results.items() if "against" in result]
    if not pairs:
        raise ValueError(f"a chosen row has no measurement of both programs: {row['command']}")
    return [
        [
            f"{Path(settings['model']).name} {settings['dtype']}, {settings['attention']} attention, "
            f"dropout {settings['dropout']:g}" + ", gradient checkpointing" * settings["gradient_checkpointing"],
            f"{settings['batch']} x {settings['length']}, {row['masked_share']:.0%} masked",
            machine.short_name(row["machine"]),
            " -> ".join(TRAINING_WAYS.get(program, program) for program in (result["against"], name)),
            *(f"{program['tokens_per_second']:.0f}" for program in (before, result)),
            f"{result['speedup']:.2f}x",
            *(megabytes(program["peak_bytes"]) for program in (before, result)),
            f"{commands.index(row['command']) + 1}",
        ]
        for name, result, before in pairs
    ]


def cached_lines(row: dict, commands: list[str]) -> list[list[str]]:
    """A line for each cached loop beside the one that computes everything anew."""
    settings, loops = row["settings"], {result["loop"]: result for result in row["results"]}
    model = settings.get("model") or f"Llama shape, {settings['layers']} layers x {settings['hidden']}"
    what = f"{model} {settings['dtype']}, batch {settings['batch']}, {settings['prompt']} + {settings['new']} tokens"
    pairs = [(loops[before], loops[after]) for before, after in CACHED_PAIRS if before in loops and after in loops]
    return [
        [
            f"{before['loop']} -> {after['loop']}: {what} in blocks of {settings['block']}",
            machine.short_name(row["machine"]),
            f"{after['forwards']}",
            *(f"{loop['call_seconds']['median']:.2f}" for loop in (before, after)),
            f"{before['call_seconds']['median'] / after['call_seconds']['median']:.1f}x",
            *(f"{1000 * loop['step_seconds']['median']:.1f}" for loop in (before, after)),
            megabytes(after["cache_bytes"]),
            f"{commands.index(row['command']) + 1}",
        ]
        for before, after in pairs
    ]


def markdown(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A markdown table.

    Example:
        >>> print(markdown(["a", "b"], [["1", "2"]]))
        | a | b |
        |---|---|
        | 1 | 2 |
    """
    head = list(head)
    rows = [head, *map(list, lines)]
    drawn = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([drawn[0], "|" + "---|" * len(head), *drawn[1:]])


# a kind of row: the head of its table, and its lines
KINDS = {
    "sampler": (SAMPLER_HEAD, sampler_lines),
    "cpu_kernels": (kernel_tables.KERNEL_HEAD, kernel_tables.kernel_lines),
    "ceilings": (kernel_tables.CEILINGS_HEAD, kernel_tables.ceilings_lines),
    "kernel": (kernel_tables.GPU_KERNEL_HEAD, kernel_tables.gpu_kernel_lines),
    "cpu_head": (kernel_tables.HEAD_HEAD, kernel_tables.head_lines),
    "cpu_cross_entropy": (ENTROPY_HEAD, entropy_lines),
    "training_step": (TRAINING_HEAD, training_lines),
    "cached_decoding": (CACHED_HEAD, cached_lines),
    "quality": (QUALITY_HEAD, quality_lines),
}
# a document: the kinds of rows that it shows
DOCUMENTS = {"README.md": ("sampler", "kernel", "cpu_head", "training_step"), "benchmarks/RESULTS.md": tuple(KINDS)}


if __name__ == "__main__":
    sys.exit(exit_code("table", main))
