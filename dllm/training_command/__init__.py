"""`dllm train`: a recipe, its settings from a file and from flags, what the run will take, and the run."""

from dllm.training_command.command import main

__all__ = ["main"]
