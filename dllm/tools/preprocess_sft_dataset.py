"""Tokenize conversations for fine-tuning, and save the samples.

    python -m dllm.tools.preprocess_sft_dataset --model_name_or_path answerdotai/ModernBERT-large \
        --dataset_args "allenai/tulu-3-sft-mixture[train:10000,test:1000]" --output_dir data/sft/modernbert/tulu-3

`load_sft_dataset("data/sft/modernbert/tulu-3", load_preprocessed_data=True)` loads them. An interrupted run continues
where it stopped when the same command is given again. Exit codes: 0 done, 1 it failed, 2 wrong options, 130
interrupted.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dllm.tools.command import at_least_one, exit_code, yes_or_no


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code.

    Example:
        >>> main(["--help"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        SystemExit: 0
    """
    options = _parser().parse_args(arguments)
    return exit_code(lambda: print(preprocess(options)))


def preprocess(options: argparse.Namespace) -> str:
    """Make and save the samples; returns a line that says what was done.

    Raises:
        As :func:`~dllm.data.load.load_sft_dataset` and :func:`~dllm.tools.shards.save_samples`; ValueError also for a
        map function that is not found.
    """
    from dllm.configs import DataArguments
    from dllm.data import load_sft_dataset
    from dllm.data.chat import check_answers
    from dllm.data.lengths import post_process_dataset
    from dllm.models import get_tokenizer
    from dllm.tools.shards import no_cache_options, save_samples

    to_sample = find_function(options.sft_map_fn_path)
    tokenizer = get_tokenizer(model_name_or_path=options.model_name_or_path)
    check_answers(options.answers, options.mask_prompt_loss)
    chosen = (
        {} if options.answers == "last" else {"answers": options.answers}
    )  # a function of the user's may not have this argument
    to_sample = functools.partial(to_sample, tokenizer=tokenizer, mask_prompt_loss=options.mask_prompt_loss, **chosen)
    workers = None if options.num_proc == 1 else options.num_proc

    def to_samples(rows: Any) -> Any:
        dropped = rows.column_names if options.remove_columns else None
        samples = rows.map(to_sample, remove_columns=dropped, num_proc=workers, **no_cache_options())
        if options.max_length is None:
            return samples
        limits = DataArguments(
            max_length=options.max_length, truncation=options.truncation, num_proc=min(options.num_proc, len(rows))
        )
        return post_process_dataset(samples, limits)

    settings = {name: value for name, value in vars(options).items() if name not in ("output_dir", "num_proc")}
    settings.pop("shard_rows")
    return save_samples(
        lambda: load_sft_dataset(options.dataset_args),
        to_samples,
        options.output_dir,
        settings=settings,
        shard_rows=options.shard_rows,
    )


def find_function(path: str) -> Callable[..., Any]:
    """Import the function that a dotted path names.

    Raises:
        ValueError: there is no such function.

    Example:
        >>> find_function("dllm.utils.default_sft_map_fn").__name__
        'default_sft_map_fn'
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (AttributeError, ImportError, ValueError) as error:
        raise ValueError(f"sft_map_fn_path must name a function as package.module.function, got {path!r}") from error
    if not callable(found):
        raise ValueError(f"sft_map_fn_path must name a function, got {path!r}, which is a {type(found).__name__}")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dllm.tools.preprocess_sft_dataset", description=__doc__.partition("\n")[0]
    )
    add = parser.add_argument
    add("--model_name_or_path", required=True, help="folder or Hub name of the tokenizer")
    add("--dataset_args", required=True, help="name[train:5000,test:100], several joined by + or |")
    add("--output_dir", required=True, type=Path, help="output folder, created at the end")
    add(
        "--sft_map_fn_path",
        default="dllm.utils.default_sft_map_fn",
        help="function (row, tokenizer=, mask_prompt_loss=) -> sample (default: %(default)s)",
    )
    add("--mask_prompt_loss", type=yes_or_no, default=True, help="train on the answers only (default: %(default)s)")
    add("--answers", choices=("last", "all"), default="last", help="which answers are trained (default: %(default)s)")
    add("--max_length", type=at_least_one, default=None, help="maximum tokens per sample (default: no limit)")
    add(
        "--truncation",
        choices=("right", "filter"),
        default="right",
        help="longer samples: cut (right) or leave out (filter) (default: %(default)s)",
    )
    add("--remove_columns", type=yes_or_no, default=True, help="drop the original columns (default: %(default)s)")
    add("--num_proc", type=at_least_one, default=8, help="processes (default: %(default)s)")
    add("--shard_rows", type=at_least_one, default=20_000, help="rows per shard (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
