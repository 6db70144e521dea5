"""The command line of a published evaluation: `python -m dllm.core.eval.settings CLASS TASK MODEL ...`.

It prints the arguments of `python -m dllm.core.eval`, one a line. `scripts/eval.slurm.sh` reads them from here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from dllm.core.eval.settings.command import arguments_of
from dllm.exits import exit_code


def _true_or_false(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be True or False, got {text!r}")
    return text.lower() == "true"


def main(words: Sequence[str] | None = None) -> None:
    """Print the arguments, one a line."""
    parser = argparse.ArgumentParser(
        prog="python -m dllm.core.eval.settings",
        description="Print the arguments of a published evaluation, one a line.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("family", metavar="CLASS", type=str.lower, help="llada, dream or bert")
    add("task", metavar="TASK", help="the task's name in the published runs")
    add("model", metavar="MODEL", help="a folder, absolute or under $BASE_MODELS_DIR, or a name on the Hub")
    add("instruct", metavar="INSTRUCT", type=_true_or_false, nargs="?", default=False, help="True for instruct models")
    add("batch_size", metavar="BATCH", type=int, nargs="?", default=1, help="requests of a batch (default: 1)")
    add("log_samples", metavar="LOG", type=_true_or_false, nargs="?", default=False, help="True: write every sample")
    add("limit", metavar="LIMIT", nargs="?", default="None", help="only so many documents of each task")
    options = vars(parser.parse_args(words))
    limit = options.pop("limit")
    print(*arguments_of(**options, limit=None if limit == "None" else limit), sep="\n")


if __name__ == "__main__":
    sys.exit(exit_code("python -m dllm.core.eval.settings", main))
