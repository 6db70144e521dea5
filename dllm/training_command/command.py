"""The command itself: read, show or run."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from dllm.core.trainers.resume import checkpoint_to_resume
from dllm.data.splits import row_count
from dllm.exits import usage
from dllm.recipes import RECIPES, run
from dllm.recipes.run import check_trained, resumed_from, samples
from dllm.startup import initial_training_setup, print_main
from dllm.training_command.estimate import estimate, optimizer_steps
from dllm.training_command.settings import Settings, listing, read_settings, written


def main(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Run `dllm train`.

    Args:
        options: `dry_run` and `help`.
        words: all other words of the command line (:func:`~dllm.training_command.settings.read_settings`).

    Returns:
        0.

    Raises:
        UsageError: the settings make no sense.
        As :func:`~dllm.recipes.run`.
    """
    if options.help:
        print(_usage(words))
        return 0
    with usage():
        settings = read_settings(words)
    if options.dry_run:
        print_main(report(settings))
        return 0
    checkpoint_to_resume(resumed_from(settings.training), settings.training.output_dir)
    run(*settings[:4])
    return 0


def report(settings: Settings) -> str:
    """What a run would do and take: its settings, the model's size, steps, memory of a process.

    Raises:
        OSError: no such model or data.
        ValueError: a model or data that cannot be used.
    """
    recipe, model_args, data_args, training_args, _ = settings
    shown = written(settings)
    initial_training_setup(model_args, data_args, training_args)
    tokenizer = recipe.tokenizer(model_args)
    config = recipe.config(model_args, tokenizer)
    found = estimate(config, model_args, data_args.max_length, training_args)
    check_trained(found.trained, model_args)
    count = row_count(samples(recipe, data_args, training_args, tokenizer)["train"])
    lines = [
        *shown.splitlines(),
        "",
        f"model       {config.model_type}, {found.parameters:,} parameters, {found.trained:,} trained",
        f"data        {'a stream' if count is None else f'{count:,} samples'} to train on",
        f"steps       {_steps(count, training_args)}",
        "memory      of each process, nothing sharded",
    ]
    known = {name: size for name, size in found.memory._asdict().items() if size is not None}
    lines += [f"  {name:<12}{_size(size):>10}" for name, size in known.items()]
    lines += [f"  {name:<12}{'not known':>10}" for name in found.memory._fields if name not in known]
    return "\n".join([*lines, f"  {'in all':<12}{_size(sum(known.values())):>10}"])


def _steps(count: int | None, training_args) -> str:
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if count is None and training_args.max_steps <= 0:
        raise ValueError("max_steps must be set where the data are a stream, whose length is not known")
    steps = optimizer_steps(count or 0, processes, training_args)
    size = training_args.per_device_train_batch_size * training_args.gradient_accumulation_steps * processes
    return f"{steps:,} of {size} samples ({processes} processes)" if processes > 1 else f"{steps:,} of {size} samples"


def _size(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _usage(words: Sequence[str]) -> str:
    task = next((word.removeprefix("--task=") for word in words if word.startswith("--task=")), None)
    if "--task" in words[:-1]:
        task = words[words.index("--task") + 1]
    return (
        "usage: dllm train [--help] [FILE.yaml] [--task sft|pt] [--dry-run] [--NAME VALUE ...]\n\n"
        "Fine-tune on conversations (sft) or pre-train on text (pt). The file has lines `name: value`;\n"
        "flags go over it. --dry-run prints the settings, parameters, steps and memory, and trains nothing.\n"
        "Several processes: accelerate launch --module dllm.cli train ...\n\nsettings: type, meaning, [default]\n"
        + listing(RECIPES.get(task or "sft", RECIPES["sft"]))
    )
