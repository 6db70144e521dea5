"""Helpers for the start of a training script: printing by the main process only, seeds, caches, the device."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import os
import pprint
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import transformers

# fields of transformers.TrainingArguments that are never printed
SECRET = ("hub_token", "push_to_hub_token")

_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def is_main() -> bool:
    """Whether this is the main process, rank 0 over all machines. The rank is that of torch.distributed if it is
    initialized, otherwise the environment variable RANK, which launchers set.

    Example:
        >>> is_main()
        True
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return int(os.environ.get("RANK", 0)) == 0


def print_main(*values: Any, **options: Any) -> None:
    """`print` in the main process, nothing in others.

    Example:
        >>> print_main("once", end="!")
        once!
    """
    if is_main():
        print(*values, **options)


def pprint_main(*values: Any, **options: Any) -> None:
    """`pprint.pprint` of each value in the main process, nothing in others.

    Example:
        >>> pprint_main({"a": 1})
        {'a': 1}
    """
    for value in values:
        if is_main():
            pprint.pprint(value, **options)


def print_args(*arguments: Any) -> None:
    """Print dataclasses, one line per field; the values of Hub tokens are hidden.

    Raises:
        TypeError: an argument is not an instance of a dataclass.

    Example:
        >>> from dllm.configs import DataArguments
        >>> print_args(DataArguments(max_length=64))  # doctest: +ELLIPSIS
        DataArguments
          dataset_args: None
        ...
          max_length: 64
          truncation: 'right'
    """
    for each in arguments:
        if not dataclasses.is_dataclass(each) or isinstance(each, type):
            raise TypeError(f"expected instances of dataclasses, got {type(each).__name__}")
        print(type(each).__name__)
        for field in dataclasses.fields(each):
            print(f"  {field.name}: {_printable(field.name, getattr(each, field.name))}")


def print_args_main(*arguments: Any, model_args: Any = None, data_args: Any = None, training_args: Any = None) -> None:
    """:func:`print_args` of all arguments, positional and named, in the main process; nothing in others.

    Raises:
        TypeError: an argument is not an instance of a dataclass.
    """
    named = [each for each in (model_args, data_args, training_args) if each is not None]
    if is_main():
        print_args(*arguments, *named)


def get_default_logger(name: str) -> logging.Logger:
    """A logger that writes to stderr with time and level; its level is INFO in the main process, WARNING in others.
    The same name gives the same logger.

    Example:
        >>> get_default_logger("my.script") is get_default_logger("my.script")
        True
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.INFO if is_main() else logging.WARNING)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(_LINE))
        logger.addHandler(handler)
        logger.propagate = False
    return logger


def initial_training_setup(model_args: Any, data_args: Any, training_args: Any) -> None:
    """Set up a run: seed all random generators, and apply the settings below.

    The GPU allocator is not warmed up (:func:`disable_caching_allocator_warmup`), data sets show progress bars in the
    main process only, and prepared data is not cached if `data_args.disable_caching` is set.

    Args:
        model_args: unused; scripts for dLLM 0.1 pass it.
        data_args: may have `disable_caching`.
        training_args: has `seed`.
    """
    transformers.set_seed(training_args.seed)
    disable_caching_allocator_warmup()
    disable_dataset_progress_bar_except_main()
    if getattr(data_args, "disable_caching", False):
        disable_dataset_caching()


def disable_caching_allocator_warmup() -> None:
    """Stop transformers from allocating the memory of the whole model on the GPU before it loads the weights.

    Such a block may be too large if other programs use the GPU, and is wasted where FSDP or ZeRO shards the weights.
    """
    from transformers import modeling_utils

    if hasattr(modeling_utils, "caching_allocator_warmup"):
        modeling_utils.caching_allocator_warmup = _do_nothing


def disable_dataset_caching() -> None:
    """Turn off the cache of the package datasets, so that every run prepares its data again; no-op without datasets."""
    if importlib.util.find_spec("datasets") is not None:
        import datasets

        datasets.disable_caching()


def disable_dataset_progress_bar_except_main() -> None:
    """Turn off the progress bars of datasets in all processes but the main one; no-op without datasets."""
    if not is_main() and importlib.util.find_spec("datasets") is not None:
        import datasets

        datasets.disable_progress_bars()


@contextlib.contextmanager
def init_device_context_manager(device: int | str | torch.device | None = None) -> Iterator[None]:
    """Context manager: new tensors are created on `device`, so a model with random weights needs no CPU memory.

    Args:
        device: None: the accelerator of this process (environment variable LOCAL_RANK), or the CPU if there is none.
            Under ZeRO-3, which shards weights as they are created, the context has no effect.

    Example:
        >>> with init_device_context_manager("meta"):
        ...     torch.empty(2).device
        device(type='meta')
    """
    if transformers.integrations.is_deepspeed_zero3_enabled():
        yield
        return
    with _local_device() if device is None else torch.device(device):
        yield


def _local_device() -> torch.device:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return torch.device("cpu")
    return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", 0)))


def _printable(name: str, value: Any) -> str:
    return "'...'" if value and name in SECRET else repr(value)


def _do_nothing(*_: Any, **__: Any) -> None:
    """Replaces a function that must not run."""
