"""Export a model of a known family to the format in which its authors publish it.

    python -m dllm.tools.export_checkpoint --model_name_or_path models/llada-sft/checkpoint-final \
        --output_model_name_or_path models/llada-sft-official

The model is one that dllm loaded from an official checkpoint of LLaDA, LLaDA-MoE, Dream, RND1, A2D or LLaDA2, and that
was saved since, by training or `save_pretrained`. Names of tensors and config.json become the official ones, for
programs that know only these; the weights are copied bit for bit. Files of the tokenizer are copied. Python files that
the official config.json names in `auto_map` are not written: such programs have their own, or get the authors'. Of a
LoRA adapter, merge it first (`python -m dllm.tools.merge_peft_adapter`). The output folder is created when everything
is written. Exit codes: 0 done, 1 it failed, 2 wrong options, 130 interrupted.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from dllm.exits import exit_code
from dllm.tools.command import at_least_one, check_free, whole_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code.

    Example:
        >>> main(["--help"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        SystemExit: 0
    """
    options = _parser().parse_args(arguments)

    def work() -> None:
        family = export_checkpoint(
            options.model_name_or_path, options.output_model_name_or_path, shard_bytes=options.max_shard_bytes
        )
        print(f"{options.output_model_name_or_path}: in the official format of {family}")

    return exit_code("export_checkpoint", work)


def export_checkpoint(source: str, output: Path, *, shard_bytes: int = 5_000_000_000) -> str:
    """Export a saved model to its official format.

    Args:
        source: folder or Hub name of a model that dllm loaded from an official checkpoint and that was saved since.
        output: folder to create.
        shard_bytes: largest size of a file of weights.

    Returns:
        The name of the family.

    Raises:
        OSError: the model does not exist, or its files are damaged.
        ValueError: the model is of no known family, or has changed in a way that its official format cannot say; the
            output exists.
    """
    from dllm.models.official.export import copy_others, export
    from dllm.models.sources import adapter_at, check_source, file_at, get_config, mapping_at

    check_free(output)
    source = check_source(source)
    if adapter_at(source) is not None:
        raise ValueError(f"{source} is an adapter: merge it into its model first")
    if mapping_at(source) is not None:
        raise ValueError(f"{source} is in its official format already")
    config = get_config(model_name_or_path=source)
    with whole_folder(output) as building:
        mapping = export(config, functools.partial(file_at, source), source, building, shard_bytes=shard_bytes)
        if Path(source).is_dir():
            copy_others(Path(source), building)
    return mapping.family


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dllm.tools.export_checkpoint", description=__doc__.partition("\n")[0]
    )
    add = parser.add_argument
    add("--model_name_or_path", required=True, help="folder or Hub name of the saved model")
    add("--output_model_name_or_path", required=True, type=Path, help="output folder")
    add(
        "--max_shard_bytes",
        type=at_least_one,
        default=5_000_000_000,
        help="largest size of a file of weights (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
