"""What a training script does before it trains: one process of many speaks, seeds are set, caches are left out."""

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

# Fields of transformers.TrainingArguments that are never shown.
SECRET = ("hub_token", "push_to_hub_token")

_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def is_main() -> bool:
    """Whether this is the first process of all, on all machines: by torch.distributed where it has begun, else by the
    variable RANK that launchers set.

    Example:
        >>> is_main()
        True
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return int(os.environ.get("RANK", 0)) == 0


def print_main(*values: Any, **options: Any) -> None:
    """`print`, by the first process only.

    Example:
        >>> print_main("once", end="!")
        once!
    """
    if is_main():
        print(*values, **options)


def pprint_main(*values: Any, **options: Any) -> None:
    """`pprint.pprint` of each value, by the first process only.

    Example:
        >>> pprint_main({"a": 1})
        {'a': 1}
    """
    for value in values:
        if is_main():
            pprint.pprint(value, **options)


def print_args(*arguments: Any) -> None:
    """Dataclasses, a line for each field; tokens of the Hub are not shown.

    Raises:
        TypeError: something else than a dataclass.

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
            print(f"  {field.name}: {_shown(field.name, getattr(each, field.name))}")


def print_args_main(*arguments: Any, model_args: Any = None, data_args: Any = None, training_args: Any = None) -> None:
    """:func:`print_args` of all that is given, by position or by name, by the first process only.

    Raises:
        TypeError: something else than a dataclass.
    """
    named = [each for each in (model_args, data_args, training_args) if each is not None]
    if is_main():
        print_args(*arguments, *named)


def get_default_logger(name: str) -> logging.Logger:
    """A logger that writes to stderr, with time and level: everything from INFO on in the first process, from WARNING
    on in others. Asking twice gives the same one.

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
    """Seeds and settings of a run: `training_args.seed` for every generator; no warm-up of the GPU's allocator, which
    would ask for the whole model at once; progress bars of data sets in the first process only; no caching of prepared
    data if `data_args.disable_caching`.

    Args:
        model_args: not read: scripts for dLLM 0.1 give it.
        data_args: may have `disable_caching`.
        training_args: has `seed`.
    """
    transformers.set_seed(training_args.seed)
    disable_caching_allocator_warmup()
    disable_dataset_progress_bar_except_main()
    if getattr(data_args, "disable_caching", False):
        disable_dataset_caching()


def disable_caching_allocator_warmup() -> None:
    """transformers no longer asks a GPU for the memory of a whole model before it loads one: a block as large as that
    cannot be had where others use the device, and memory that FSDP or ZeRO would have spread is held."""
    from transformers import modeling_utils

    if hasattr(modeling_utils, "caching_allocator_warmup"):
        modeling_utils.caching_allocator_warmup = _nothing


def disable_dataset_caching() -> None:
    """The package datasets prepares data anew in every run. Nothing to do where it is not installed."""
    if importlib.util.find_spec("datasets") is not None:
        import datasets

        datasets.disable_caching()


def disable_dataset_progress_bar_except_main() -> None:
    """One process of many shows the progress of preparing data. Nothing to do where datasets is not installed."""
    if not is_main() and importlib.util.find_spec("datasets") is not None:
        import datasets

        datasets.disable_progress_bars()


@contextlib.contextmanager
def init_device_context_manager(device: int | str | torch.device | None = None) -> Iterator[None]:
    """Within it tensors are made on `device`: a model with random weights never passes through the CPU's memory.

    Args:
        device: by default this process's accelerator (the variable LOCAL_RANK says which), else the CPU. Under ZeRO-3,
            which spreads weights as they are made, nothing changes.

    Example:
        >>> with init_device_context_manager("meta"):
        ...     torch.empty(2).device
        device(type='meta')
    """
    if transformers.integrations.is_deepspeed_zero3_enabled():
        yield
        return
    with _own_device() if device is None else torch.device(device):
        yield


def _own_device() -> torch.device:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return torch.device("cpu")
    return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", 0)))


def _shown(name: str, value: Any) -> str:
    return "'...'" if value and name in SECRET else repr(value)


def _nothing(*_: Any, **__: Any) -> None:
    """In the place of what is not to happen."""
