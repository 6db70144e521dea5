"""The command `dllm train`: settings from a YAML file and flags, an estimate of the run's cost, the run."""

from dllm.training_command.command import main

__all__ = ["main"]
