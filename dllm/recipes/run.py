"""The steps of every training run: load, prepare, train, save."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from torch import nn

from dllm.configs import DataArguments, ModelArguments
from dllm.core.rewards import Reward
from dllm.core.trainers import MDLMConfig, MDLMTrainer
from dllm.core.trainers.base import DiffusionTrainer
from dllm.core.trainers.interruption import stopped_by_signals
from dllm.data.splits import row_count
from dllm.fast.model import check_positions
from dllm.folders import check_writable
from dllm.startup import initial_training_setup, print_main

# The folder in output_dir for the trained model.
FINAL = "checkpoint-final"


def max_length(data_args: DataArguments, training_args: MDLMConfig) -> int:
    """The tokens of a text of full length, as the data's arguments say."""
    return data_args.max_length


@dataclass(frozen=True)
class Recipe:
    """One kind of training run.

    Attributes:
        name: of the recipe, the value of `task`.
        model_arguments: dataclass of the model's arguments.
        data_arguments: dataclass of the data's arguments.
        tokenizer: function (model arguments) -> tokenizer.
        config: function (model arguments, tokenizer) -> configuration of the model.
        model: function (model arguments, tokenizer) -> model.
        samples: function (data arguments, tokenizer) -> data sets by split; "train" is required, "test" is optional.
        collator: function (data arguments, tokenizer) -> collator; None: the trainer has its own.
        training_arguments: dataclass of the training's arguments.
        trainer: of the objective.
        longest: function (data arguments, training arguments) -> the number of tokens of a text of full length.
        length_options: the options that this number follows from.
        rewards: function (data arguments) -> rewards; None: the trainer takes none.
        unit: what a row of the data is.
    """

    name: str
    model_arguments: type[ModelArguments]
    data_arguments: type
    tokenizer: Callable[[Any], Any]
    config: Callable[[Any, Any], transformers.PretrainedConfig]
    model: Callable[[Any, Any], nn.Module]
    samples: Callable[[Any, Any], Mapping[str, Any]]
    collator: Callable[[Any, Any], Callable] | None
    training_arguments: type[MDLMConfig] = MDLMConfig
    trainer: type[DiffusionTrainer] = MDLMTrainer
    longest: Callable[[Any, Any], int] = max_length
    length_options: str = "max_length"
    rewards: Callable[[Any], list[Reward]] | None = None
    unit: str = "sample"


def run(
    recipe: Recipe,
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: MDLMConfig,
    *,
    trainer: type[DiffusionTrainer] | None = None,
) -> DiffusionTrainer:
    """Train, and save the model and its tokenizer in `output_dir/checkpoint-final`.

    Args:
        recipe: the kind of run.
        model_args: an instance of `recipe.model_arguments`.
        data_args: an instance of `recipe.data_arguments`.
        training_args: an instance of `recipe.training_arguments`, unless `trainer` is given. With
            `resume_from_checkpoint` the run continues from a checkpoint.
        trainer: in place of `recipe.trainer`; `training_args` are its arguments.

    Returns:
        The trainer after training.

    Raises:
        OSError: the model or the data do not exist; output_dir cannot be written.
        ValueError: a model, data or arguments that cannot be used, or a checkpoint that cannot be resumed.
        ImportError: a required optional package is not installed.
        Interrupted: Ctrl-C or SIGTERM. Raised at the end of the current step, after a checkpoint is saved.
    """
    return finished(prepared(recipe, model_args, data_args, training_args, trainer=trainer))


def finished(trainer: DiffusionTrainer) -> DiffusionTrainer:
    """Train with the trainer of :func:`prepared`, save the model, and return the trainer.

    Raises:
        Interrupted: Ctrl-C or SIGTERM. Raised at the end of the current step, after a checkpoint is saved.
    """
    hint = "--resume_from_checkpoint {checkpoint} goes on from there"
    with stopped_by_signals(trainer, hint) as stop:
        trainer.train(resume_from_checkpoint=resumed_from(trainer.args))
        if stop.stopped is None:
            trainer.save_model(str(Path(trainer.args.output_dir) / FINAL))
    return trainer


def prepared(
    recipe: Recipe,
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: MDLMConfig,
    *,
    trainer: type[DiffusionTrainer] | None = None,
) -> DiffusionTrainer:
    """Load the model and the data, and return a trainer that is ready to train.

    Raises:
        As :func:`run`.
    """
    check_writable(Path(training_args.output_dir))  # before anything is loaded, which may take hours
    check_not_quantized(model_args)
    initial_training_setup(model_args, data_args, training_args)
    tokenizer = recipe.tokenizer(model_args)
    model = recipe.model(model_args, tokenizer)
    # before the samples, which may take hours
    check_positions(model, recipe.longest(data_args, training_args), f"{recipe.length_options} must fit")
    splits = samples(recipe, data_args, training_args, tokenizer)
    check_trained(any(weight.requires_grad for weight in model.parameters()), model_args)
    return (trainer or recipe.trainer)(
        args=training_args,
        model=model,
        tokenizer=tokenizer,
        train_dataset=splits["train"],
        eval_dataset=splits.get("test"),
        **({"data_collator": recipe.collator(data_args, tokenizer)} if recipe.collator else {}),
        **({"reward_funcs": recipe.rewards(data_args)} if recipe.rewards else {}),
    )


def check_not_quantized(model_args: ModelArguments) -> None:
    """Check that a model to be trained is not to be quantised for sampling.

    Raises:
        ValueError: it is.

    Example:
        >>> check_not_quantized(ModelArguments(model_name_or_path="bert", quantize="int8"))
        Traceback (most recent call last):
        ...
        ValueError: quantize=int8 is for sampling and evaluation: its weights have no gradient
    """
    if model_args.quantize:
        raise ValueError(f"quantize={model_args.quantize} is for sampling and evaluation: its weights have no gradient")


def check_trained(trained: object, model_args: ModelArguments) -> None:
    """Check that some weights are trained.

    Args:
        trained: whether there are such weights, or their number.
        model_args: for the error message.

    Raises:
        ValueError: no weight is trained: the model is an adapter's folder, and `lora` is not set.
    """
    if not trained:
        raise ValueError(
            f"nothing at {model_args.model_name_or_path} would be trained: with lora the adapter that lies there is; "
            "python -m dllm.tools.merge_peft_adapter makes a model of it, all of which is"
        )


def samples(recipe: Recipe, data_args: DataArguments, training_args: MDLMConfig, tokenizer: Any) -> Mapping[str, Any]:
    """The data sets of a run by split. One process per machine prepares them, the others read its cache. Without a
    split named test there is no evaluation, and a line says so.

    Raises:
        ValueError: `dataset_args` is empty, or the split train is missing or empty.
    """
    import accelerate

    if not data_args.dataset_args:
        raise ValueError("dataset_args must name the data, got nothing")
    with accelerate.PartialState().local_main_process_first():
        splits = recipe.samples(data_args, tokenizer)
    if "train" not in splits:
        raise ValueError(f"{data_args.dataset_args} must have a split named train, got {', '.join(splits)}")
    if row_count(splits["train"]) == 0:
        raise ValueError(f"no {recipe.unit} of {data_args.dataset_args} is left to train on")
    if "test" not in splits and training_args.eval_strategy != "no":
        print_main("no evaluation: the data set has no split named test")
        training_args.eval_strategy = "no"
    return splits


def resumed_from(training_args: MDLMConfig) -> str | bool | None:
    """The value of `resume_from_checkpoint`; on a command line True, False and None are text.

    Example:
        >>> resumed_from(MDLMConfig(output_dir="out", report_to="none", resume_from_checkpoint="true"))
        True
    """
    wanted = training_args.resume_from_checkpoint
    return {"true": True, "false": None}.get(str(wanted).lower(), wanted)
