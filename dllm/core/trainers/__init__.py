"""Trainers: transformers' Trainer with diffusion objectives, on the loss of :mod:`dllm.fast.training.loss`.

An objective is a file (`mdlm.py`, `bd3lm.py`, `dream.py`, `editflow.py`, `diffusion_gemma.py`). Collators make its
corrupted batches. `base/` is the rest of a trainer.
"""

from dllm.core.trainers.bd3lm import BD3LMConfig, BD3LMTrainer
from dllm.core.trainers.diffusion_gemma import DiffusionGemmaTrainer, DiffusionGemmaTrainerConfig
from dllm.core.trainers.dream import DreamTrainer, DreamTrainerConfig
from dllm.core.trainers.editflow import EditFlowCollator, EditFlowTrainer, EditFlowTrainerConfig
from dllm.core.trainers.mdlm import MDLMConfig, MDLMTrainer

__all__ = [
    "BD3LMConfig",
    "BD3LMTrainer",
    "DiffusionGemmaTrainer",
    "DiffusionGemmaTrainerConfig",
    "DreamTrainer",
    "DreamTrainerConfig",
    "EditFlowCollator",
    "EditFlowTrainer",
    "EditFlowTrainerConfig",
    "MDLMConfig",
    "MDLMTrainer",
]
