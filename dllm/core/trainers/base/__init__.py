"""What a diffusion trainer does around its objective: one file for each task, put together in `trainer.py`."""

from dllm.core.trainers.base.trainer import DiffusionTrainer

__all__ = ["DiffusionTrainer"]
