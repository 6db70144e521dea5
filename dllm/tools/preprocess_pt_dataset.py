"""Cut texts into samples of one length once, and save them, so that pre-training begins at once.

    python -m dllm.tools.preprocess_pt_dataset --model_name_or_path answerdotai/ModernBERT-large \
        --dataset_args "mlfoundations/dclm-baseline-1.0[train:10_000_000,test:10_000]" --output_dir data/pt/dclm

They are read again by `load_pt_dataset("data/pt/dclm", load_preprocessed_data=True)`. Texts are read as a stream. A run
that was interrupted goes on where it stopped when the same command is given again. Exit codes: 0 done, 1 it could not
be done, 2 options that make no sense, 130 interrupted.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

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
    """Save the samples; returns what was done.

    Raises:
        What loading the data and :func:`~dllm.tools.shards.save_samples` raise.
    """
    from dllm.data import load_pt_dataset
    from dllm.data.tokens import tokenize_and_group
    from dllm.models import get_tokenizer
    from dllm.tools.shards import save_samples, uncached

    names = ("text_field", "seq_length", "insert_eos", "drop_tail", "add_special_tokens")
    cut = {name: getattr(options, name) for name in names}
    tokenizer = get_tokenizer(model_name_or_path=options.model_name_or_path)
    group = functools.partial(tokenize_and_group, tokenizer=tokenizer, **cut)
    workers = None if options.num_proc == 1 else options.num_proc
    source = dict(model_name_or_path=options.model_name_or_path, dataset_args=options.dataset_args)
    return save_samples(
        lambda: load_pt_dataset(options.dataset_args, streaming=options.streaming, repeat=False),
        lambda rows: rows.map(group, batched=True, remove_columns=rows.column_names, num_proc=workers, **uncached()),
        options.output_dir,
        settings={**source, **cut, "streaming": options.streaming},
        shard_rows=options.shard_rows,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dllm.tools.preprocess_pt_dataset", description=__doc__.partition("\n")[0]
    )
    add = parser.add_argument
    add("--model_name_or_path", required=True, help="whose tokenizer is used")
    add("--dataset_args", required=True, help="name[train:5000,test:100], several joined by + or |")
    add("--output_dir", required=True, type=Path, help="the folder that appears when all is done")
    add("--text_field", default="text", help="the column of the texts (default: %(default)s)")
    add("--seq_length", "--max_length", type=at_least_one, default=1024, help="tokens of a sample (default: 1024)")
    add("--insert_eos", type=yes_or_no, default=True, help="end every text (default: %(default)s)")
    add("--drop_tail", type=yes_or_no, default=True, help="leave out shorter samples (default: %(default)s)")
    add("--add_special_tokens", type=yes_or_no, default=False, help="the tokenizer's own (default: %(default)s)")
    add("--streaming", type=yes_or_no, default=True, help="do not load all texts first (default: %(default)s)")
    add("--num_proc", type=at_least_one, default=8, help="processes (default: %(default)s)")
    add("--shard_rows", type=at_least_one, default=20_000, help="texts done at a time (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
