"""The old path of :mod:`dllm.demo.training.train`: `python -m dllm.demo.train` still runs it."""

import sys

from dllm.demo.training.train import DemoTrainer, Settings, finish, main, new_model, new_run, save_tokenizer

__all__ = ["DemoTrainer", "Settings", "finish", "main", "new_model", "new_run", "save_tokenizer"]

if __name__ == "__main__":
    sys.exit(main())
