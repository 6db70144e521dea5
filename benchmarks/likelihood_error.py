"""Errors of likelihoods that are estimated from some of the masks: dllm's estimate, and the published one.

    python benchmarks/likelihood_error.py

For a few targets of the bundled model all 2^n - 1 masks are run, which gives the exact value and a table of losses that
both estimates are then drawn from, with many seeds. Output: a table and, as the last line, one JSON object on stdout; a
JSON row in the results folder.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file: packages are imported from the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from torch import nn

from benchmarks import report
from dllm.core.likelihood import LikelihoodConfig
from dllm.core.likelihood.design import conclude, design
from dllm.demo.shipped import load_shipped
from dllm.demo.training.problems import PHRASINGS, held_out
from dllm.exits import exit_code
from dllm.tools.command import at_least_one

COLUMNS = ("masks", "published error", "error", "of its own standard error", "variance of 128 published ones")
REFERENCE = 128  # published masks


class Target:
    """A text, and the losses of each of its masks."""

    def __init__(self, model: nn.Module, context: Sequence[int], target: Sequence[int], mask_id: int):
        self.n = len(target)
        self.masks = [mask for x in range(1, self.n + 1) for mask in itertools.combinations(range(self.n), x)]
        self.losses: dict[tuple[int, ...], list[float]] = {}
        row, wanted = torch.tensor([*context, *target]), torch.tensor(target)
        for some in torch.arange(len(self.masks)).split(256):
            batch = [self.masks[i] for i in some]
            rows = row.repeat(len(batch), 1)
            for number, mask in enumerate(batch):
                rows[number, [len(context) + i for i in mask]] = mask_id
            with torch.no_grad():
                scores = model(rows).logits[:, len(context) :].double().log_softmax(-1)
            losses = -scores.gather(-1, wanted.expand(len(batch), -1)[..., None])[..., 0]
            self.losses |= {mask: losses[number, list(mask)].tolist() for number, mask in enumerate(batch)}
        self.exact = -sum(
            math.fsum(losses) / (len(mask) * math.comb(self.n, len(mask))) for mask, losses in self.losses.items()
        )

    def errors(self, config: LikelihoodConfig, seeds: int) -> tuple[float, float]:
        """The root mean square of the errors, and of the standard errors that are told."""
        squares, told = 0.0, 0.0
        for seed in range(seeds):
            plan = design(self.n, config, seed)
            value, stderr = conclude(plan, [self.losses[mask] if mask else [] for mask in plan.masks])
            squares, told = squares + (value - self.exact) ** 2, told + stderr**2
        return math.sqrt(squares / seeds), math.sqrt(told / seeds)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; unknown options end the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--targets", type=at_least_one, default=6)
    add("--tokens", type=at_least_one, default=12, help="of a target (default: %(default)s)")
    add("--masks", type=at_least_one, nargs="+", default=[128, 64, 32, 16])
    add("--seeds", type=at_least_one, default=100, help="draws of each estimate (default: %(default)s)")
    add("--out", type=Path, default=report.RESULTS, help="folder for the JSON row")
    return parser.parse_args(arguments)


def targets(options: argparse.Namespace) -> list[Target]:
    """Beginnings of the solutions of problems."""
    model, tokenizer = load_shipped()
    found = []
    for problem in held_out(options.targets, 3, PHRASINGS):
        texts = [problem.question, problem.solution]
        question, solution = tokenizer(texts, add_special_tokens=False)["input_ids"]
        found.append(Target(model, question, solution[: options.tokens], tokenizer.mask_token_id))
    return found


def measure(options: argparse.Namespace) -> list[dict[str, object]]:
    """The errors at each number of masks, of each target."""
    given = targets(options)

    def of_all(masks: int, **settings: object) -> list[tuple[float, float]]:
        config = LikelihoodConfig(mc_num=masks, exact_up_to=0, **settings)
        return [target.errors(config, options.seeds) for target in given]

    def published(masks: int) -> list[float]:
        rows = of_all(masks, likelihood="as-published", batch_size=math.gcd(masks, 32))
        return [error for error, _ in rows]

    reference, results = published(REFERENCE), []
    for masks in options.masks:
        theirs, ours = published(masks), of_all(masks)
        results.append(
            {
                "masks": masks,
                "published_error": theirs,
                "error": [error for error, _ in ours],
                "told": [told / error for error, told in ours],
                "variance_of_reference": [(r / error) ** 2 for r, (error, _) in zip(reference, ours, strict=True)],
            }
        )
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the row."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    row = report.new_row("likelihood_error", "benchmarks/likelihood_error.py", arguments, torch.device("cpu"))
    row["settings"] = {name: value for name, value in vars(options).items() if name not in ("out", "masks")}
    row["results"] = measure(options)
    title = f"errors in nats, {options.targets} targets of {options.tokens} tokens, {options.seeds} seeds each"
    report.print_table(title, COLUMNS, [cells(result) for result in row["results"]])
    path = report.write_row(row, options.out, f"{options.tokens}-tokens")
    report.print_last_line({"row": str(path), "results": row["results"]})
    return 0


def cells(result: dict[str, object]) -> list[str]:
    """A line of the table: ranges over the targets."""
    names = ("published_error", "error", "told", "variance_of_reference")
    return [str(result["masks"]), *(f"{min(result[name]):.2f} to {max(result[name]):.2f}" for name in names)]


if __name__ == "__main__":
    sys.exit(exit_code("likelihood_error", main))
