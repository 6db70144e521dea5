"""What every training run does: load, prepare, train, save."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from torch import nn

from dllm.configs import DataArguments, ModelArguments
from dllm.core.trainers import MDLMConfig, MDLMTrainer
from dllm.core.trainers.interruption import stopped_by_signals
from dllm.data.splits import row_count
from dllm.fast.model import check_positions
from dllm.startup import initial_training_setup, print_main

# Under the output folder: what a run leaves at its end.
FINAL = "checkpoint-final"


@dataclass(frozen=True)
class Recipe:
    """One kind of run.

    Attributes:
        name: of the kind.
        model_arguments: the dataclass of the model's arguments.
        data_arguments: the dataclass of the data's.
        tokenizer: of the model's arguments.
        config: of the model's arguments and the tokenizer: the model's configuration.
        model: of the model's arguments and the tokenizer.
        samples: of the data's arguments and the tokenizer; by split, with the data set "train" among them.
        collator: of the data's arguments and the tokenizer.
    """

    name: str
    model_arguments: type[ModelArguments]
    data_arguments: type[DataArguments]
    tokenizer: Callable[[Any], Any]
    config: Callable[[Any, Any], transformers.PretrainedConfig]
    model: Callable[[Any, Any], nn.Module]
    samples: Callable[[Any, Any], Mapping[str, Any]]
    collator: Callable[[Any, Any], Callable]


def run(recipe: Recipe, model_args: ModelArguments, data_args: DataArguments, training_args: MDLMConfig) -> MDLMTrainer:
    """Train as the arguments say, and leave the model and its tokenizer in `checkpoint-final` of `output_dir`.

    Args:
        recipe: the kind of run.
        model_args: of its class.
        data_args: of its class.
        training_args: `resume_from_checkpoint` among them.

    Returns:
        the trainer, at the end of training.

    Raises:
        OSError: no such model or data.
        ValueError: a model, data or arguments that cannot be used, or a checkpoint that cannot be gone on from.
        ImportError: an extra that is asked for is not installed.
        Interrupted: Ctrl-C or SIGTERM; at the end of the step, which a checkpoint holds.
    """
    return finished(prepared(recipe, model_args, data_args, training_args))


def finished(trainer: MDLMTrainer) -> MDLMTrainer:
    """The trainer of :func:`prepared`, once it has trained and saved.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; at the end of the step, which a checkpoint holds.
    """
    go_on = "--resume_from_checkpoint {checkpoint} goes on from there"
    with stopped_by_signals(trainer, go_on) as stop:
        trainer.train(resume_from_checkpoint=resumed_from(trainer.args))
        if stop.stopped is None:
            trainer.save_model(str(Path(trainer.args.output_dir) / FINAL))
    return trainer


def prepared(
    recipe: Recipe, model_args: ModelArguments, data_args: DataArguments, training_args: MDLMConfig
) -> MDLMTrainer:
    """The trainer of a run that has not begun.

    Raises:
        As :func:`run`.
    """
    initial_training_setup(model_args, data_args, training_args)
    tokenizer = recipe.tokenizer(model_args)
    model = recipe.model(model_args, tokenizer)
    check_positions(model, data_args.max_length, "max_length must fit")  # before hours may go into the samples
    splits = samples(recipe, data_args, training_args, tokenizer)
    check_trained(any(weight.requires_grad for weight in model.parameters()), model_args)
    return MDLMTrainer(
        args=training_args,
        model=model,
        tokenizer=tokenizer,
        train_dataset=splits["train"],
        eval_dataset=splits.get("test"),
        data_collator=recipe.collator(data_args, tokenizer),
    )


def check_trained(trained: object, model_args: ModelArguments) -> None:
    """Check that there is something to train.

    Args:
        trained: whether there is, or how many weights.
        model_args: name the model.

    Raises:
        ValueError: there is nothing: the model is an adapter's folder, and `lora` is not set.
    """
    if not trained:
        raise ValueError(
            f"nothing at {model_args.model_name_or_path} would be trained: with lora the adapter that lies there is; "
            "python -m dllm.tools.merge_peft_adapter makes a model of it, all of which is"
        )


def samples(recipe: Recipe, data_args: DataArguments, training_args: MDLMConfig, tokenizer: Any) -> Mapping[str, Any]:
    """The data of a run by split. One process of a machine prepares, the others find it cached. Where no split is named
    test, nothing is evaluated, which is printed.

    Raises:
        ValueError: no data are named, or there is no split named train, or nothing in it.
    """
    import accelerate

    if not data_args.dataset_args:
        raise ValueError("dataset_args must name the data, got nothing")
    with accelerate.PartialState().local_main_process_first():
        splits = recipe.samples(data_args, tokenizer)
    if "train" not in splits:
        raise ValueError(f"{data_args.dataset_args} must have a split named train, got {', '.join(splits)}")
    if row_count(splits["train"]) == 0:
        raise ValueError(
            f"no sample of {data_args.dataset_args} is left to train on: max_length is {data_args.max_length}"
        )
    if "test" not in splits and training_args.eval_strategy != "no":
        print_main("nothing is evaluated: the data set has no split named test")
        training_args.eval_strategy = "no"
    return splits


def resumed_from(training_args: MDLMConfig) -> str | bool | None:
    """What `train` is to resume from: on a command line `True` is a word.

    Example:
        >>> resumed_from(MDLMConfig(output_dir="out", report_to="none", resume_from_checkpoint="true"))
        True
    """
    wanted = training_args.resume_from_checkpoint
    return {"true": True, "false": None}.get(str(wanted).lower(), wanted)
