"""A model of fake tensors: shapes and dtypes without data, so that a model of any size runs in little memory.

Sizes, FLOPs and live memory of such a run are those of a real one. No weights are read or allocated.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils._python_dispatch import TorchDispatchMode

from dllm.configs import ModelArguments
from dllm.estimates.experts import balance_experts
from dllm.models import load_peft, new_model
from dllm.models.adapters import adapted

# What fake tensors raise where a model asks for a value, or computes a shape from values.
NEEDS_VALUES = (DataDependentOutputException, DynamicOutputShapeException)


# Of a forward, and of one row: beyond these, sizes of its tensors may not fit into 64 bits.
MOST_TOKENS, MOST_COLUMNS = 2**38, 2**24


def check_size(rows: int, columns: int, columns_are: str) -> None:
    """Check that the tensors of a forward have sizes that torch can count, those of a mask [columns, columns] included.

    Args:
        rows: of the forward.
        columns: of a row.
        columns_are: the settings that columns come from, for the error.

    Raises:
        ValueError: there are too many.

    Example:
        >>> check_size(4, 2**25, "max_length")
        Traceback (most recent call last):
        ...
        ValueError: an estimate takes rows of at most 16777216 tokens, got 33554432 by max_length
    """
    if columns > MOST_COLUMNS:
        raise ValueError(f"an estimate takes rows of at most {MOST_COLUMNS} tokens, got {columns} by {columns_are}")
    if rows * columns > MOST_TOKENS:
        raise ValueError(
            f"an estimate takes at most {MOST_TOKENS} tokens a forward, got {rows} rows of {columns} by {columns_are}"
        )


def model_on_meta(config: transformers.PretrainedConfig, model_args: ModelArguments) -> nn.Module:
    """The model in training mode on the meta device, adapter included. Its experts share the tokens evenly
    (:mod:`dllm.estimates.experts`).

    Args:
        config: of the model.
        model_args: its dtype, attention and adapter.

    Raises:
        OSError, ValueError: see :func:`dllm.models.load.new_model` and :func:`dllm.models.adapters.adapted`; the model
            is to be quantised to 8 bits.

    Example:
        >>> from dllm.demo.shipped import SHIPPED
        >>> from dllm.models import get_config
        >>> arguments = ModelArguments(model_name_or_path=str(SHIPPED))
        >>> model_on_meta(get_config(arguments), arguments).device
        device(type='meta')
    """
    if model_args.quantize:
        raise ValueError(f"quantize={model_args.quantize} is not estimated: leave it out")
    with torch.device("meta"), _no_initial_weights():
        model = new_model(config, model_args)
        model.tie_weights()
        model_args = replace(model_args, load_in_4bit=False)
        # a model with random weights does not use an adapter that may lie in the folder of its configuration
        fresh = getattr(model_args, "random", False)
        model = load_peft(model, model_args) if fresh else adapted(model, model_args, weights=False)
    for module in model.modules():  # transformers 4 reads the input ids to warn of padding
        if hasattr(module, "warn_if_padding_and_no_attention_mask"):
            module.warn_if_padding_and_no_attention_mask = _do_nothing
    return balance_experts(model).train()


def replace_by_fake_tensors(model: nn.Module) -> None:
    """Replace all parameters and buffers by fake tensors on the CPU; a FakeTensorMode must be active. On the meta
    device some operators differ from those of real devices. `Module.to` swaps tensors, which fake ones do not allow."""
    made: dict[int, Tensor] = {}
    for table in (t for module in model.modules() for t in (module._parameters, module._buffers)):
        for name, tensor in table.items():
            if tensor is None:
                continue
            if id(tensor) not in made:
                fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                is_weight = isinstance(tensor, nn.Parameter)
                made[id(tensor)] = nn.Parameter(fake, requires_grad=tensor.requires_grad) if is_weight else fake
            table[name] = made[id(tensor)]


def total_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of some tensors.

    Example:
        >>> total_bytes([torch.zeros(3), torch.zeros(2, dtype=torch.bfloat16)])
        16
    """
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that are created inside the context and are alive; real or fake.

    Attributes:
        live: bytes that are alive now.
        peak: the most bytes that were alive at once.

    Memory that an operator allocates and frees inside itself is not seen.

    Example:
        >>> with LiveBytes() as memory:
        ...     x = torch.zeros(4) + 1  # both are alive while the sum is computed
        >>> memory.peak, memory.live
        (32, 16)
    """

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, operator: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = [leaf for leaf in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        before = {tensor.untyped_storage()._cdata for tensor in given}
        result = operator(*args, **(kwargs or {}))
        for leaf in torch.utils._pytree.tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in before:
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address in self._known:
            return
        size = storage.nbytes()

        def free(_: weakref.ref) -> None:
            del self._known[address]
            self.live -= size

        self._known[address] = weakref.ref(storage, free)
        self.live += size
        self.peak = max(self.peak, self.live)


def _do_nothing(*_: Any) -> None:
    """Accepts any arguments and ignores them."""


def _no_initial_weights() -> AbstractContextManager:
    try:
        from transformers.initialization import no_init_weights
    except ImportError:  # transformers 4
        from transformers.modeling_utils import no_init_weights
    return no_init_weights()
