"""Edit Flows: a training step and a batch of texts, by the published trainer and sampler and by dllm, in one run.

    python benchmarks/edit_flows.py
    python benchmarks/edit_flows.py --model modernbert-base --tau 0.05 --repeats 3 --sampling-repeats 1

Samples are a prompt of 64 tokens and an answer of random tokens that begins as masks, float32. A step is pairs, their
alignment, x_t and edits, forward, loss, backward and AdamW (fused). Texts are made by tau-leaping, at temperature 0.
Both programs have the same weights and random numbers (benchmarks/edit_toy.py), so they make the same edits: losses are
compared before anything is timed, and the share of equal texts is printed. Before that, rates are trained on a few
batches, with the body as it is.

The published models also compute the logits of their backbone's own LM head, which nobody reads. These seconds are the
part "unused", and the last column tells how much faster dllm is without them.

The floor of a step is timed beside both programs: the body, forward and backward, and the matrix products of the heads
at positions with an edit. Runs are interleaved. Beside the clock the processor time of all threads is printed, which
other programs on the machine change less. Output: a table and, as the last line, one JSON object on stdout; a JSON row
for each model in the results folder. Exit status 1 for a wrong loss.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file: packages are imported from the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from benchmarks import models, report, timing
from benchmarks.edit_programs import PROGRAMS, Run, Sampling, Training, summary
from benchmarks.edit_toy import PROMPT, Toy
from dllm.exits import exit_code
from dllm.tools.command import at_least_one

CPU = torch.device("cpu")
BATCHES = 4  # different batches, used in turn
SAME_LOSS = 1e-5  # relative; both programs sum some thousand float32 terms, in another order
COLUMNS = ("", "published, s (10-90 %)", "dllm, s (10-90 %)", "faster", "in CPU seconds", "without unused logits")


class WrongLossError(ValueError):
    """The two programs compute different losses, so their speed means nothing."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; unknown and invalid options end the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    known = f"{', '.join(models.PRESETS)}, or a local folder"
    add("--model", nargs="+", default=["modernbert-tiny", "modernbert-mini"], help=known)
    add("--batch", type=at_least_one, default=8)
    add(
        "--answers",
        type=at_least_one,
        nargs=2,
        default=[96, 160],
        metavar=("FEWEST", "MOST"),
        help="tokens of an answer",
    )
    add("--masks", type=at_least_one, default=128, help="that an answer begins with")
    add("--tau", type=float, default=0.01, help="size of a sampler's step in time")
    add("--repeats", type=at_least_one, default=8, help="steps of training")
    add("--sampling-repeats", type=at_least_one, default=3, help="batches of texts")
    add("--threads", type=at_least_one, default=None, help="torch's threads")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=report.RESULTS, help="folder for the JSON rows")
    options = parser.parse_args(arguments)
    if options.answers[0] > options.answers[1]:
        parser.error(f"--answers must be the fewest and the most, got {options.answers[0]} and {options.answers[1]}")
    if not 0 < options.tau <= 1:
        parser.error(f"--tau must lie in (0, 1], got {options.tau}")
    return options


def load(name: str, options: argparse.Namespace) -> Toy:
    """The model of Edit Flows on this backbone, with trained rates.

    Raises:
        ValueError: there is no such backbone, or samples are longer than its positions.
        NotEnoughMemoryError: the weights do not fit.
    """
    loaded = models.load(name, torch.float32, CPU, seed=options.seed)
    longest = PROMPT + max(options.answers[1], options.masks)
    positions = getattr(loaded.model.config, "max_position_embeddings", longest)
    if longest > positions:
        raise ValueError(
            f"samples must have at most {positions} tokens for {name}, got {longest}: set --answers, --masks"
        )
    toy = Toy(loaded, tuple(options.answers), options.masks, options.seed)
    toy.fit_rates()
    return toy


def measure_training(toy: Toy, options: argparse.Namespace, begin: Callable[[str], None]) -> dict[str, Any]:
    """Steps of both programs and their floor, interleaved.

    Raises:
        WrongLossError: their losses differ.
    """
    training = Training(toy, options.batch, BATCHES)
    losses = training.losses()
    if not abs(losses["ours"] - losses["published"]) <= SAME_LOSS * abs(losses["published"]):
        raise WrongLossError(f"losses must be equal, got {losses['published']:.9g} and {losses['ours']:.9g}: not timed")
    for name in PROGRAMS:
        training.step(name, 0)  # also allocates the optimizer's state
    once = {name: functools.partial(training.step, name) for name in PROGRAMS} | {"floor": training.floor}
    found = compared(once, "step", options.repeats, begin)
    found["share_of_floor"] = found["floor"]["cpu_seconds"]["median"] / found["ours"]["cpu_seconds"]["median"]
    return {"losses": losses, **training.shape(), **found}


def measure_sampling(toy: Toy, options: argparse.Namespace, begin: Callable[[str], None]) -> dict[str, Any]:
    """Texts of both programs, interleaved."""
    sampling = Sampling(toy, options.batch, options.tau)
    once = {name: lambda number, name=name: sampling.run(name) for name in PROGRAMS}
    found = compared(once, "texts", options.sampling_repeats, begin)
    for name, texts in sampling.texts.items():
        lengths = [len(row) - PROMPT for row in texts.rows]
        found[name] |= dict(forwards=texts.forwards, row_forwards=texts.row_forwards, answer_tokens=lengths)
    return found | {"same_texts": sampling.same()}


def compared(
    once: Mapping[str, Callable[[int], Run]], what: str, repeats: int, begin: Callable[[str], None]
) -> dict[str, Any]:
    """Runs of programs, interleaved, and how much faster ours are than the published ones.

    Args:
        once: a function for each program that runs batch `number`, modulo BATCHES.
    """
    runs: dict[str, list[Run]] = {name: [] for name in once}

    def timed(name: str) -> None:
        begin(f"{what}, {name}")
        runs[name].append(once[name](len(runs[name]) % BATCHES))

    timing.interleave({name: functools.partial(timed, name) for name in once}, repeats)
    found: dict[str, Any] = {name: summary(runs[name]) for name in once}
    for result, measured in (("faster", "seconds"), ("faster_in_cpu_seconds", "cpu_seconds")):
        found[result] = found["published"][measured]["median"] / found["ours"][measured]["median"]
    unused = found["published"]["split_seconds"]["unused"] / found["ours"]["seconds"]["median"]
    return found | {"faster_than_without_unused": found["faster"] - unused}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the rows; 1 for a wrong loss, 2 for invalid options."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    rows, paths = [], []
    total = len(options.model) * (3 * options.repeats + 2 * options.sampling_repeats)
    with report.progress(total=total) as begin:
        for name in options.model:
            row = report.new_row("edit_flows", "benchmarks/edit_flows.py", arguments, CPU)
            try:
                toy = load(name, options)
                parameters = sum(parameter.numel() for parameter in toy.model.parameters())
                row["settings"] = settings_of(options, name) | {"parameters": parameters}
                row["load_before"] = os.getloadavg()[0]
                row["sampling"] = measure_sampling(toy, options, begin)
                row["training"] = measure_training(toy, options, begin)
            except (ValueError, OSError, models.NotEnoughMemoryError) as error:
                print(f"edit_flows: {error}", file=sys.stderr)
                return 1 if isinstance(error, WrongLossError) else 2
            rows.append(row)
            slug = f"{Path(name).name}-float32-cpu-b{options.batch}-m{options.masks}-tau{options.tau:g}"
            paths.append(report.write_row(row, options.out, slug))
    title = f"Edit Flows, batch {options.batch}, answers of {options.answers[0]} to {options.answers[1]} tokens from "
    report.print_table(f"{title}{options.masks} masks", COLUMNS, *lines_and_notes(rows))
    parts = ("training", "sampling")
    cases = [{"row": str(path), **{part: row[part] for part in parts}} for path, row in zip(paths, rows, strict=True)]
    report.print_last_line({"cases": cases})
    return 0


def settings_of(options: argparse.Namespace, model: str) -> dict[str, Any]:
    """What was asked for, without the place of the rows."""
    names = ("batch", "answers", "masks", "tau", "seed")
    return {"model": model, "prompt": PROMPT, "threads": torch.get_num_threads()} | {
        name: getattr(options, name) for name in names
    }


def lines_and_notes(rows: Sequence[Mapping[str, Any]]) -> tuple[list[list[str]], list[str]]:
    """The lines of the table, two for each model, and below it what both programs did and where the time went."""
    lines, notes = [], []
    for row in rows:
        name, training, sampling = row["settings"]["model"], row["training"], row["sampling"]
        lines += [cells(f"{name}: step", training), cells(f"{name}: texts", sampling)]
        kinds = ", ".join(f"{training[f'{kind}_edits']:.0f} {kind}" for kind in ("sub", "del", "ins"))
        lengths = sorted(sampling["ours"]["answer_tokens"])
        notes.append(f"{name}: {training['tokens']:.0f} tokens in a step, edits: {kinds}, equal losses")
        notes += [f"  {program} step: {parts_of(training[program])}" for program in (*PROGRAMS, "floor")]
        notes.append(f"  the floor is {training['share_of_floor']:.0%} of the CPU seconds of dllm's step")
        notes.append(f"{name}: {sampling['same_texts']:.0%} of texts alike, answers of {lengths} tokens")
        for program in PROGRAMS:
            done = sampling[program]
            forwards = f"{report.count(done['forwards'], 'forward')} with {done['row_forwards']} texts in all"
            notes.append(f"  {program} texts: {parts_of(done)}; {forwards}")
    return lines, notes


def parts_of(found: Mapping[str, Any]) -> str:
    """Seconds of the parts of a run, but for those below a millisecond."""
    split = found["split_seconds"]
    return ", ".join(f"{part} {seconds:.3f} s" for part, seconds in split.items() if seconds >= 1e-3)


def cells(what: str, found: Mapping[str, Any]) -> list[str]:
    """A line of the table."""
    spreads = [found[program]["seconds"] for program in PROGRAMS]
    return [
        what,
        *("{median:.2f} ({p10:.2f}-{p90:.2f})".format(**spread) for spread in spreads),
        f"{found['faster']:.1f}x",
        f"{found['faster_in_cpu_seconds']:.1f}x",
        f"{found['faster_than_without_unused']:.1f}x",
    ]


if __name__ == "__main__":
    sys.exit(exit_code("edit_flows", main))
