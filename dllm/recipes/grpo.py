"""Reinforcement learning on prompts (diffu-GRPO): the model answers, and rewards judge the answers."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dllm.configs import ModelArguments
from dllm.core.problems import SUPPORTED_DATASETS, get_dataset_and_rewards, rewards_of
from dllm.core.rewards import Reward, get_reward
from dllm.core.rewards.registry import named_reward
from dllm.core.rl import DiffuGRPOConfig, DiffuGRPOTrainer
from dllm.data.prompts import load_prompt_dataset
from dllm.data.spec import Source, read_sources
from dllm.data.splits import take_row_counts
from dllm.models import get_tokenizer
from dllm.recipes.run import Recipe
from dllm.recipes.sft import config, model


@dataclass
class PromptData:
    """The data of a run: published problems with their own rewards, or prompts with rewards that are named.

    Raises:
        ValueError: rewards are missing, unknown, or cannot be imported; dataset_path is given for other data than
            published problems; published problems are joined with other data.

    Example:
        >>> PromptData(dataset_args="gsm8k[test:100]").problems.name
        'gsm8k'
        >>> PromptData(dataset_args="data/prompts.jsonl", reward_funcs=["correctness"]).problems is None
        True
    """

    dataset_args: str | None = field(
        default=None,
        metadata={
            "help": f"Problems with rewards ({', '.join(SUPPORTED_DATASETS)}) as name[split:count,...], "
            "or prompts, joined by + or |."
        },
    )
    dataset_path: str | None = field(
        default=None, metadata={"help": "A copy of the problems in their published format; None: from the Hub."}
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={"help": "Names of rewards, or functions as module.function; None: those of the problems."},
    )
    disable_caching: bool = field(default=False, metadata={"help": "Do not cache prepared data."})

    def __post_init__(self):
        if isinstance(self.reward_funcs, str):
            self.reward_funcs = [self.reward_funcs]
        if self.dataset_args and self.problems is None:
            if self.dataset_path is not None:
                raise ValueError(
                    f"dataset_path is for a copy of {', '.join(SUPPORTED_DATASETS)}, got dataset_args "
                    f"{self.dataset_args}"
                )
            if not self.reward_funcs:
                raise ValueError(f"reward_funcs must name the rewards of {self.dataset_args}, got none")
        for name in self.reward_funcs or ():
            reward_named(name)

    @property
    def problems(self) -> Source | None:
        """The published problems that dataset_args names; None if it names other data, as an existing file does."""
        sources = read_sources(self.dataset_args)
        known = [source for source in sources if source.name in SUPPORTED_DATASETS and not Path(source.name).exists()]
        if known and len(sources) > 1:
            raise ValueError(f"{known[0].name} has rewards of its own and cannot be joined, got {self.dataset_args}")
        return known[0] if known else None


def reward_named(name: str) -> Reward:
    """A registered reward, or a function that is imported: `module.function`, from the working folder, too.

    Raises:
        ValueError: there is none.

    Example:
        >>> reward_named("sudoku").__name__, reward_named("dllm.core.rewards.sudoku_reward").__name__
        ('sudoku_reward', 'sudoku_reward')
    """
    module, dot, function = name.rpartition(".")
    if not dot:
        return get_reward(name)
    if "" not in sys.path and str(Path.cwd()) not in sys.path:  # a console script's path begins with its own folder
        sys.path.append(str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), function)
        return named_reward(found).function
    except Exception as error:  # the module is the user's
        raise ValueError(f"reward_funcs must be rewards or functions to import, got {name}: {error!r}") from error


def rewards(data_args: PromptData) -> list[Reward]:
    """The rewards that are named, or those of the problems."""
    if data_args.reward_funcs:
        return [reward_named(name) for name in data_args.reward_funcs]
    return rewards_of(data_args.problems.name)


def samples(data_args: PromptData, tokenizer: Any) -> Mapping[str, Any]:
    """Prompts by split, with the columns of their rewards."""
    problems = data_args.problems
    if problems is None:
        return load_prompt_dataset(data_args.dataset_args)
    splits = {split: get_dataset_and_rewards(problems.name, split, path=data_args.dataset_path)[0] for split in SPLITS}
    return take_row_counts(splits, problems, in_order=False)


def longest(data_args: PromptData, training_args: DiffuGRPOConfig) -> int:
    """The tokens of the longest prompt that is allowed, or of one token, and of a full completion.

    Example:
        >>> longest(PromptData(), DiffuGRPOConfig(output_dir="out", report_to="none"))
        768
    """
    return (training_args.max_prompt_length or 1) + training_args.max_completion_length


SPLITS = ("train", "test")
GRPO = Recipe(
    name="grpo",
    model_arguments=ModelArguments,
    data_arguments=PromptData,
    tokenizer=get_tokenizer,
    config=config,
    model=model,
    samples=samples,
    collator=None,
    training_arguments=DiffuGRPOConfig,
    trainer=DiffuGRPOTrainer,
    longest=longest,
    length_options="max_prompt_length + max_completion_length",
    rewards=rewards,
    unit="prompt",
)
