"""Tokenize texts for pre-training, cut them into samples of one length, and save the samples.

    python -m dllm.tools.preprocess_pt_dataset --model_name_or_path answerdotai/ModernBERT-large \
        --dataset_args "mlfoundations/dclm-baseline-1.0[train:10_000_000,test:10_000]" --output_dir data/pt/dclm

`load_pt_dataset("data/pt/dclm", load_preprocessed_data=True)` loads them. By default texts are read as a stream. An
interrupted run continues where it stopped when the same command is given again. Exit codes: 0 done, 1 it failed, 2
wrong options, 130 interrupted.
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
    """Make and save the samples; returns a line that says what was done.

    Raises:
        As :func:`~dllm.data.load.load_pt_dataset` and :func:`~dllm.tools.shards.save_samples`.
    """
    from dllm.data import load_pt_dataset
    from dllm.data.tokens import tokenize_and_group
    from dllm.models import get_tokenizer
    from dllm.tools.shards import no_cache_options, save_samples

    names = ("text_field", "seq_length", "insert_eos", "drop_tail", "add_special_tokens")
    cut = {name: getattr(options, name) for name in names}
    tokenizer = get_tokenizer(model_name_or_path=options.model_name_or_path)
    group = functools.partial(tokenize_and_group, tokenizer=tokenizer, **cut)
    workers = None if options.num_proc == 1 else options.num_proc
    source = dict(model_name_or_path=options.model_name_or_path, dataset_args=options.dataset_args)
    return save_samples(
        lambda: load_pt_dataset(options.dataset_args, streaming=options.streaming, repeat=False),
        lambda rows: rows.map(
            group, batched=True, remove_columns=rows.column_names, num_proc=workers, **no_cache_options()
        ),
        options.output_dir,
        settings={**source, **cut, "streaming": options.streaming},
        shard_rows=options.shard_rows,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dllm.tools.preprocess_pt_dataset", description=__doc__.partition("\n")[0]
    )
    add = parser.add_argument
    add("--model_name_or_path", required=True, help="folder or Hub name of the tokenizer")
    add("--dataset_args", required=True, help="name[train:5000,test:100], several joined by + or |")
    add("--output_dir", required=True, type=Path, help="output folder, created at the end")
    add("--text_field", default="text", help="column of the texts (default: %(default)s)")
    add("--seq_length", "--max_length", type=at_least_one, default=1024, help="tokens per sample (default: 1024)")
    add("--insert_eos", type=yes_or_no, default=True, help="append EOS to every text (default: %(default)s)")
    add("--drop_tail", type=yes_or_no, default=True, help="leave out samples that are shorter (default: %(default)s)")
    add(
        "--add_special_tokens",
        type=yes_or_no,
        default=False,
        help="add the tokenizer's special tokens (default: %(default)s)",
    )
    add("--streaming", type=yes_or_no, default=True, help="read texts as a stream (default: %(default)s)")
    add("--num_proc", type=at_least_one, default=8, help="processes (default: %(default)s)")
    add("--shard_rows", type=at_least_one, default=20_000, help="texts per shard (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
