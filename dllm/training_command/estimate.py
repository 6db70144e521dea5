"""What a run will take, before it begins: parameters, optimizer steps, memory of a process. No weight is read or made:
the model is built and run on fake tensors, which have shapes and no numbers."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from dllm.configs import ModelArguments
from dllm.core.trainers import MDLMConfig
from dllm.fast.head.tap import output_head
from dllm.fast.model import check_positions, unwrapped
from dllm.models import load_peft, new_model
from dllm.models.adapters import adapted

# Values that an optimizer keeps for each trained weight, in the weight's dtype; of other optimizers nothing is known.
_KEPT = {"adamw_torch": 2, "adamw_torch_fused": 2, "adagrad": 1, "rmsprop": 1, "sgd": 0}
# Bytes of a weight in NF4 with double quantisation: 4 bits, 8 for 64 weights, 32 for 64 x 256 (arXiv:2305.14314).
_FOUR_BIT = 4 / 8 + 1 / 64 + 4 / (64 * 256)
# Rows that meet the head at once (dllm_kernels.linear_cross_entropy).
_ROWS = 2048


class Memory(NamedTuple):
    """Bytes of one process, nothing sharded; None for what is not known.

    weights: as they are loaded. gradients: of those that are trained. optimizer: its state, and averaged weights where
    `ema_decay` is set. activations: what the body keeps for the backward of one forward of full samples, without
    gradient checkpointing. head: what the loss needs besides.
    """

    weights: int
    gradients: int
    optimizer: int | None
    activations: int | None
    head: int


class Estimate(NamedTuple):
    """Weights in all, where one that two layers share counts once; those that are trained; bytes of a process."""

    parameters: int
    trained: int
    memory: Memory


def estimate(
    config: transformers.PretrainedConfig, model_args: ModelArguments, max_length: int, args: MDLMConfig
) -> Estimate:
    """What a model of this configuration takes in training.

    Args:
        config: of the model.
        model_args: its dtype, attention, adapter and quantisation.
        max_length: tokens of a sample.
        args: batch size, optimizer, precision and averaged weights.

    Raises:
        ValueError: transformers knows no masked language model of this configuration; samples do not fit its positions.

    Example:
        >>> config = transformers.BertConfig(
        ...     hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, vocab_size=50
        ... )
        >>> args = MDLMConfig(output_dir="out", report_to="none")
        >>> estimate(config, ModelArguments(model_name_or_path="bert", dtype="float32"), 16, args).parameters
        5130
    """
    model = outline(config, model_args)
    check_positions(model, max_length, "max_length must fit")
    with FakeTensorMode():
        _without_numbers(model)
        weights = list(model.parameters())
        trained = [weight for weight in weights if weight.requires_grad]
        rows = args.per_device_train_batch_size
        memory = Memory(
            weights=_weight_bytes(model, model_args),
            gradients=_bytes(trained),
            optimizer=_optimizer_bytes(trained, args),
            activations=_activations(model, rows, max_length, _half(args)),
            head=_head_bytes(output_head(unwrapped(model)), rows * max_length, args),
        )
    return Estimate(sum(w.numel() for w in weights), sum(w.numel() for w in trained), memory)


def outline(config: transformers.PretrainedConfig, model_args: ModelArguments) -> nn.Module:
    """The model as it will be trained, on the meta device."""
    with torch.device("meta"), _no_initial_weights():
        model = new_model(config, model_args)
        model.tie_weights()
        model_args = replace(model_args, load_in_4bit=False)
        # one with random weights begins without the adapter that may lie where its shape does
        fresh = getattr(model_args, "random", False)
        return (load_peft(model, model_args) if fresh else adapted(model, model_args, weights=False)).train()


def kept_for_backward(model: nn.Module, rows: int, length: int, half: torch.dtype | None = None) -> int:
    """Bytes that the body of a model keeps of one forward for its backward, the model's own weights left out.

    Args:
        model: without or with fake tensors.
        rows: samples of the batch.
        length: tokens of each.
        half: dtype of autocast.
    """
    kept: dict[int, Tensor] = {}  # held, so that no storage is given out twice

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    own = {weight.untyped_storage()._cdata for weight in model.parameters()}
    device = next(model.parameters()).device
    tokens = torch.zeros(rows, length, dtype=torch.long, device=device)
    autocast = torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        unwrapped(model).base_model(input_ids=tokens)
    return sum(tensor.untyped_storage().nbytes() for storage, tensor in kept.items() if storage not in own)


def optimizer_steps(samples: int, processes: int, args: MDLMConfig) -> int:
    """Optimizer steps of a run, as transformers' Trainer counts them.

    Args:
        samples: of the training data.
        processes: that train together.
        args: batch size, accumulation, epochs or max_steps.

    Example:
        >>> args = MDLMConfig(output_dir="out", report_to="none", per_device_train_batch_size=4, num_train_epochs=2)
        >>> optimizer_steps(samples=100, processes=2, args=args)
        26
    """
    if args.max_steps > 0:
        return args.max_steps
    in_order = args.per_device_train_batch_size * processes
    batches = samples // in_order if args.dataloader_drop_last else math.ceil(samples / in_order)
    steps = max(math.ceil(batches / args.gradient_accumulation_steps), 1)
    return math.ceil(args.num_train_epochs * steps)


def _activations(model: nn.Module, rows: int, length: int, half: torch.dtype | None) -> int | None:
    """None for a model whose forward asks for the values of its inputs (transformers 4 for BERT under SDPA)."""
    for module in model.modules():  # transformers 4 looks for padding, to warn of it
        if hasattr(module, "warn_if_padding_and_no_attention_mask"):
            module.warn_if_padding_and_no_attention_mask = _nothing
    try:
        return kept_for_backward(model, rows, length, half)
    except DataDependentOutputException:
        return None


def _nothing(*_: Any) -> None:
    """In the place of what is not to happen."""


def _without_numbers(model: nn.Module) -> None:
    """Put tensors of the fake mode that holds in the place of all of a model's: on the CPU, where operators are those
    of a device, as on meta they are not. `Module.to` cannot, which swaps tensors."""
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


def _weight_bytes(model: nn.Module, model_args: ModelArguments) -> int:
    if not model_args.load_in_4bit:
        return _bytes(model.parameters())
    head = output_head(unwrapped(model))
    linear = {
        id(m.weight)
        for m in model.modules()
        if isinstance(m, nn.Linear) and m is not head and not m.weight.requires_grad
    }
    # what is not quantised is held in float32 where an adapter is trained
    return round(sum(w.numel() * (_FOUR_BIT if id(w) in linear else 4) for w in model.parameters()))


def _optimizer_bytes(trained: list[nn.Parameter], args: MDLMConfig) -> int | None:
    kept = _KEPT.get(str(getattr(args.optim, "value", args.optim)))
    if kept is None:
        return None
    averaged = sum(4 * weight.numel() for weight in trained) if args.ema_decay is not None else 0
    return kept * _bytes(trained) + averaged


def _head_bytes(head: nn.Module, tokens: int, args: MDLMConfig) -> int:
    """C V s + 3 C H s, s bytes, and 4 V H for a gradient in float32, if s < 4; all tokens masked."""
    vocabulary, hidden = getattr(head, "base_layer", head).weight.shape
    size = 2 if _half(args) else next(head.parameters()).element_size()
    return min(tokens, _ROWS) * (vocabulary + 3 * hidden) * size + (4 * vocabulary * hidden if size < 4 else 0)


def _half(args: MDLMConfig) -> torch.dtype | None:
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _no_initial_weights() -> AbstractContextManager:
    try:
        from transformers.initialization import no_init_weights
    except ImportError:  # transformers 4
        from transformers.modeling_utils import no_init_weights
    return no_init_weights()
