"""The processes of an evaluation: rank, world size, and the collectives that lm-evaluation-harness asks a model for."""

from __future__ import annotations

import datetime
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Ranks wait for the slowest at the end of a task, perhaps for hours; torch would give up after 10 or 30 minutes.
_PATIENCE = datetime.timedelta(days=7)


class Ranks:
    """Rank and world size over all machines, and collectives; one process is a world of its own.

    Under torchrun or accelerate launch, which set RANK, WORLD_SIZE and the address of rank 0, the constructor starts
    torch.distributed unless that has been done: NCCL for tensors on GPUs, gloo for tensors on the CPU and for objects.

    Example:
        >>> ranks = Ranks()
        >>> ranks.rank, ranks.world_size, ranks.gather_object("a")
        (0, 1, ['a'])
    """

    def __init__(self) -> None:
        if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            gpus = torch.cuda.is_available()
            if gpus:
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=_PATIENCE)
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, which have one shape, joined along the first dimension; of scalars a vector."""
        tensor = tensor.reshape(1) if tensor.dim() == 0 else tensor.contiguous()
        if self.world_size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor)
        return torch.cat(parts)

    def gather_object(self, value: Any, dst: int = 0) -> list[Any] | None:
        """The objects of all ranks, in order, on rank `dst`; None on the others."""
        if self.world_size == 1:
            return [value]
        parts = [None] * self.world_size if self.rank == dst else None
        dist.gather_object(value, parts, dst=dst)
        return parts

    def broadcast(self, value: Any) -> Any:
        """The object of rank 0, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()


def device_named(name: str | None) -> torch.device:
    """The device of this process: the one named, but the GPU of its LOCAL_RANK where processes share a machine, and the
    CPU where there is no GPU. Without a name it is a GPU if there is one.

    Raises:
        ValueError: torch knows no such device, or the machine has fewer GPUs.

    Example:
        >>> device_named("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(name or "cuda")
    except RuntimeError as error:
        raise ValueError(f"device must be cpu, cuda, cuda:0, ..., got {name!r}") from error
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        return torch.device("cpu")
    local = os.environ.get("LOCAL_RANK") if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None
    index = int(local) if local is not None else device.index or 0
    if index >= count:
        raise ValueError(f"device must be one of the {count} GPUs of this machine, got cuda:{index}")
    return torch.device("cuda", index)
