"""Reinforcement learning of diffusion language models: rewards, and data sets of problems with checkable answers."""

from dllm.core.problems import SUPPORTED_DATASETS, get_dataset_and_rewards
from dllm.core.rewards import TimedRewards, get_reward, register_reward, reward_names
from dllm.core.rl import DiffuGRPOConfig, DiffuGRPOTrainer
from dllm.data.prompts import load_prompt_dataset

__all__ = [
    "SUPPORTED_DATASETS",
    "DiffuGRPOConfig",
    "DiffuGRPOTrainer",
    "TimedRewards",
    "get_dataset_and_rewards",
    "get_reward",
    "load_prompt_dataset",
    "register_reward",
    "reward_names",
]
