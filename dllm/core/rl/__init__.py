"""Reinforcement learning of masked diffusion models: diffu-GRPO, its rewards and its data."""

from dllm.core.rl.config import DiffuGRPOConfig
from dllm.core.rl.trainer import DiffuGRPOTrainer

__all__ = ["DiffuGRPOConfig", "DiffuGRPOTrainer"]
