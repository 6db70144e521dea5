"""The entry point of `dllm train`: reads the settings, then trains, or with `--dry-run` reports what training takes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from dllm.core.trainers.resume import checkpoint_to_resume
from dllm.data.splits import row_count
from dllm.estimates.text import fit_report, size_text
from dllm.estimates.training import estimate, optimizer_steps
from dllm.exits import ends_at_once, usage
from dllm.recipes import RECIPES, prepared
from dllm.recipes.run import check_trained, finished, resumed_from, samples
from dllm.startup import initial_training_setup, is_main, print_main
from dllm.training_command.settings import Settings, help_text, read_settings, to_yaml

# The file in output_dir with the settings of the run; `dllm train output_dir/train.yaml` starts the same run.
SETTINGS_FILE = "train.yaml"


def main(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Run `dllm train` and return its exit code.

    Args:
        options: `dry_run` and `help`.
        words: the rest of the command line, for :func:`~dllm.training_command.settings.read_settings`.

    Raises:
        UsageError: the settings are wrong.
        As :func:`~dllm.recipes.run`.
    """
    if options.help:
        print(_usage(words))
        return 0
    with ends_at_once("dllm train"), usage():
        settings = read_settings(words)
    if options.dry_run:
        print_main(report(settings))
        return 0
    checkpoint_to_resume(resumed_from(settings.training), settings.training.output_dir)
    recipe, model_args, data_args, training_args, _ = settings
    trainer = prepared(recipe, model_args, data_args, training_args)
    _save(settings)
    finished(trainer)
    return 0


def report(settings: Settings) -> str:
    """The text that `--dry-run` prints: settings, size of the model, optimizer steps, memory per process, and which
    configuration of accelerate fits on which GPUs (:mod:`dllm.estimates.sharding`).

    Raises:
        OSError: the model or the data do not exist.
        ValueError: the model or the data cannot be used.
    """
    recipe, model_args, data_args, training_args, _ = settings
    initial_training_setup(model_args, data_args, training_args)
    # without data the size of the model is told, for which its configuration is enough
    needs_tokenizer = data_args.dataset_args or getattr(model_args, "random", False)
    tokenizer = recipe.tokenizer(model_args) if needs_tokenizer else None
    config = recipe.config(model_args, tokenizer)
    longest = recipe.longest(data_args, training_args)
    size = estimate(config, model_args, longest, training_args, recipe.length_options)
    check_trained(size.trained, model_args)
    lines = [
        *to_yaml(settings).splitlines(),
        "",
        f"model       {config.model_type}, {size.parameters:,} parameters, {size.trained:,} trained",
    ]
    if data_args.dataset_args:
        count = row_count(samples(recipe, data_args, training_args, tokenizer)["train"])
        lines += [
            f"data        {'a stream' if count is None else f'{count:,} {recipe.unit}s'} for training",
            f"steps       {_steps(count, training_args)}",
        ]
    else:
        lines += ["data        none named: the number of steps is unknown"]
    lines += ["memory      per process, without sharding"]
    known = {name: amount for name, amount in size.memory._asdict().items() if amount is not None}
    lines += [f"  {name:<12}{size_text(amount):>10}" for name, amount in known.items()]
    lines += [f"  {name:<12}{'unknown':>10}" for name in size.memory._fields if name not in known]
    lines += [f"  {'in all':<12}{size_text(sum(known.values())):>10}"]
    lines += ["", "with scripts/accelerate_configs/NAME.yaml on GPUs of 80 GB, memory per process:"]
    return "\n".join([*lines, *fit_report(size.shares)])


def _save(settings: Settings) -> None:
    """Write the settings beside the checkpoints; only the first process does."""
    if is_main():
        folder = Path(settings.training.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SETTINGS_FILE).write_text(to_yaml(settings), encoding="utf-8")


def _steps(count: int | None, training_args) -> str:
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if count is None and training_args.max_steps <= 0:
        raise ValueError("max_steps must be set for streamed data: the number of samples is unknown")
    steps = optimizer_steps(count or 0, processes, training_args)
    batch = training_args.per_device_train_batch_size * training_args.gradient_accumulation_steps * processes
    return f"{steps:,} of {batch} {training_args.row}s" + (f" ({processes} processes)" if processes > 1 else "")


def _usage(words: Sequence[str]) -> str:
    task = next((word.removeprefix("--task=") for word in words if word.startswith("--task=")), None)
    if "--task" in words[:-1]:
        task = words[words.index("--task") + 1]
    return (
        "usage: dllm train [--help] [FILE.yaml] [--task TASK] [--dry-run] [--NAME VALUE ...]\n\n"
        "Fine-tune on conversations (sft; dream-sft, as Dream is; diffusiongemma-sft; editflow), pre-train on text\n"
        "(pt; editflow-pt), or train on problems by reinforcement learning (grpo).\n"
        "The file has lines `name: value`; flags override it. The settings of a run are saved as "
        f"{SETTINGS_FILE} in output_dir;\ndllm train output_dir/{SETTINGS_FILE} starts the same run. --dry-run prints "
        "the settings, parameters, steps,\nmemory and the GPUs that hold it, and trains nothing; without dataset_args "
        "it reads the model's config.json only.\n"
        "Several processes: accelerate launch --module dllm.cli train ...\n\nsettings: type, meaning, [default]\n"
        + help_text(RECIPES.get(task or "sft", RECIPES["sft"]))
    )
