"""Trainers: transformers' Trainer with diffusion objectives, on the loss of :mod:`dllm.fast.training`."""

from dllm.core.trainers.mdlm import MDLMConfig, MDLMTrainer

__all__ = ["MDLMConfig", "MDLMTrainer"]
