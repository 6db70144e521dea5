"""The models beside the one that is trained: the reference, and the copy that samples where weights are sharded."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils import broadcast
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from dllm.fast.model import unwrapped

FILE = "reference.pt"


def without_dropout(model: nn.Module) -> nn.Module:
    """The model with all its dropout turned off, so that probabilities before and after a step can be compared.

    Example:
        >>> without_dropout(nn.Sequential(nn.Dropout(0.5)))[0].p
        0.0
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout_prob"):  # what attention functions are given
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def frozen_copy(model: nn.Module, device: torch.device | str) -> nn.Module:
    """A copy of the model that is not trained, in evaluation mode, with the weights of rank 0; every rank calls this.

    DDP and FSDP train the weights of rank 0. Another rank may hold others: adapters drawn at random, or none at all
    where FSDP loads a model on rank 0 only (`fsdp_cpu_ram_efficient_loading`).

    Args:
        model: before it is wrapped.
        device: of the copy. FSDP and DeepSpeed leave a model on the host until it is wrapped.

    Example:
        >>> frozen_copy(nn.Linear(1, 1), "cpu").weight.requires_grad
        False
    """
    found = copy.deepcopy(model).requires_grad_(False).eval().to(device)
    broadcast([tensor.data for tensor in itertools.chain(found.parameters(), found.buffers())])
    return found


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module, share: float = 1.0) -> None:
    """target <- share x source + (1 - share) x target, for all floating-point weights; every rank calls this.

    Args:
        source: the model, whole or sharded by FSDP2.
        target: a copy of it from before it was wrapped, whole on every rank.
        share: of the source.

    Example:
        >>> one, other = nn.Linear(1, 1), nn.Linear(1, 1)
        >>> copy_weights(one, other)
        >>> bool(one.weight == other.weight)
        True
    """
    weights = get_model_state_dict(unwrapped(source), options=StateDictOptions(full_state_dict=True))
    once = {id(weight): (name, weight) for name, weight in target.state_dict(keep_vars=True).items()}  # a tied weight
    for name, weight in once.values():
        if weight.is_floating_point():
            weight.lerp_(weights[name].to(weight), share)


class Reference:
    """The reference model: the base of an adapter if one is trained, else a copy of the model as it is now.

    The copy is whole on every rank, as many bytes as the model's weights.

    Args:
        model: the model before it is wrapped.
        device: of the copy.

    Example:
        >>> reference = Reference(nn.Linear(1, 1), "cpu")
        >>> reference.is_copy
        True
    """

    def __init__(self, model: nn.Module, device: torch.device | str):
        self.is_copy = not hasattr(model, "disable_adapter")
        self._copy = frozen_copy(model, device) if self.is_copy else None

    @contextmanager
    def of(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model to call inside this context; `model` is the trained one, perhaps wrapped."""
        if self.is_copy:
            yield self._copy
        else:
            with unwrapped(model).disable_adapter():
                yield model

    def follow(self, model: nn.Module, share: float) -> None:
        """Move the copy towards the trained model by this share; every rank calls this."""
        copy_weights(model, self._copy, share)

    def save(self, folder: str | Path) -> None:
        """Write the copy into a checkpoint."""
        torch.save(self._copy.state_dict(), Path(folder) / FILE)

    def load(self, folder: str | Path) -> None:
        """Continue from what :meth:`save` wrote."""
        self._copy.load_state_dict(torch.load(Path(folder) / FILE, map_location="cpu", weights_only=True))
