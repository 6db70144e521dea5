"""Estimate of a training run before it starts: parameters, optimizer steps and memory per process.

No weights are loaded or allocated: the model is built and run on fake tensors, which have shapes but no data.
"""

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
from dllm.fast.head.split import output_head
from dllm.fast.model import check_positions, unwrapped
from dllm.models import load_peft, new_model
from dllm.models.adapters import adapted

# Values that an optimizer stores per trained weight, in the weight's dtype. Other optimizers: unknown.
_STATE_PER_WEIGHT = {"adamw_torch": 2, "adamw_torch_fused": 2, "adagrad": 1, "rmsprop": 1, "sgd": 0}
# Bytes per weight in NF4 with double quantisation: 4 bits, 8 bits per 64 weights, 32 per 64 x 256 (arXiv:2305.14314).
_NF4_BYTES = 4 / 8 + 1 / 64 + 4 / (64 * 256)
# Rows per chunk of the fused head and loss (dllm_kernels.linear_cross_entropy).
_CHUNK_ROWS = 2048


class Memory(NamedTuple):
    """Memory of one process in bytes, without sharding; None where it is unknown.

    Attributes:
        weights: of the model, in the dtype in which they are loaded.
        gradients: of the trained weights.
        optimizer: the optimizer's state, and the averaged weights if `ema_decay` is set.
        activations: tensors that the body saves for the backward pass of one batch of samples of full length, without
            gradient checkpointing.
        head: buffers of the head and the loss.
    """

    weights: int
    gradients: int
    optimizer: int | None
    activations: int | None
    head: int


class Estimate(NamedTuple):
    """The size of a run: number of parameters (shared ones count once), of trained parameters, and memory."""

    parameters: int
    trained: int
    memory: Memory


def estimate(
    config: transformers.PretrainedConfig, model_args: ModelArguments, max_length: int, args: MDLMConfig
) -> Estimate:
    """Estimate the parameters and the memory of training a model of this configuration.

    Args:
        config: configuration of the model.
        model_args: dtype, attention, adapter and quantisation.
        max_length: tokens per sample.
        args: batch size, optimizer, precision and averaged weights.

    Raises:
        ValueError: transformers has no masked language model for this configuration, or max_length exceeds its number
            of positions.

    Example:
        >>> config = transformers.BertConfig(
        ...     hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, vocab_size=50
        ... )
        >>> args = MDLMConfig(output_dir="out", report_to="none")
        >>> estimate(config, ModelArguments(model_name_or_path="bert", dtype="float32"), 16, args).parameters
        5130
    """
    model = model_on_meta(config, model_args)
    check_positions(model, max_length, "max_length must fit")
    with FakeTensorMode():
        _replace_by_fake_tensors(model)
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


def model_on_meta(config: transformers.PretrainedConfig, model_args: ModelArguments) -> nn.Module:
    """The model as it will be trained, adapter included, on the meta device."""
    with torch.device("meta"), _no_initial_weights():
        model = new_model(config, model_args)
        if hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("batched_mm")  # the grouped product of fake tensors has bfloat16 only
        model.tie_weights()
        model_args = replace(model_args, load_in_4bit=False)
        # a model with random weights does not use an adapter that may lie in the folder of its configuration
        fresh = getattr(model_args, "random", False)
        return (load_peft(model, model_args) if fresh else adapted(model, model_args, weights=False)).train()


def kept_for_backward(model: nn.Module, rows: int, length: int, half: torch.dtype | None = None) -> int:
    """Bytes that the body of a model saves in one forward pass for its backward pass, without the weights themselves.

    Args:
        model: with real or fake tensors.
        rows: samples in the batch.
        length: tokens per sample.
        half: autocast dtype; None for no autocast.
    """
    kept: dict[int, Tensor] = {}  # kept alive, so that no storage address is reused

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
    """The number of optimizer steps of a run, counted as transformers' Trainer does.

    Args:
        samples: number of training samples.
        processes: number of processes.
        args: batch size, accumulation, epochs or max_steps.

    Example:
        >>> args = MDLMConfig(output_dir="out", report_to="none", per_device_train_batch_size=4, num_train_epochs=2)
        >>> optimizer_steps(samples=100, processes=2, args=args)
        26
    """
    if args.max_steps > 0:
        return args.max_steps
    batch = args.per_device_train_batch_size * processes
    batches = samples // batch if args.dataloader_drop_last else math.ceil(samples / batch)
    steps = max(math.ceil(batches / args.gradient_accumulation_steps), 1)
    return math.ceil(args.num_train_epochs * steps)


def _activations(model: nn.Module, rows: int, length: int, half: torch.dtype | None) -> int | None:
    """Bytes of the saved activations; None if the forward reads its inputs' values (BERT, SDPA, transformers 4)."""
    for module in model.modules():  # transformers 4 reads the input ids to warn of padding
        if hasattr(module, "warn_if_padding_and_no_attention_mask"):
            module.warn_if_padding_and_no_attention_mask = _do_nothing
    try:
        return kept_for_backward(model, rows, length, half)
    except DataDependentOutputException:
        return None


def _do_nothing(*_: Any) -> None:
    """Accepts any arguments and ignores them."""


def _replace_by_fake_tensors(model: nn.Module) -> None:
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


def _weight_bytes(model: nn.Module, model_args: ModelArguments) -> int:
    if not model_args.load_in_4bit:
        return _bytes(model.parameters())
    head = output_head(unwrapped(model))
    linear = {
        id(m.weight)
        for m in model.modules()
        if isinstance(m, nn.Linear) and m is not head and not m.weight.requires_grad
    }
    # weights that are not quantised are stored in float32 when an adapter is trained
    return round(sum(w.numel() * (_NF4_BYTES if id(w) in linear else 4) for w in model.parameters()))


def _optimizer_bytes(trained: list[nn.Parameter], args: MDLMConfig) -> int | None:
    state = _STATE_PER_WEIGHT.get(str(getattr(args.optim, "value", args.optim)))
    if state is None:
        return None
    averaged = sum(4 * weight.numel() for weight in trained) if args.ema_decay is not None else 0
    return state * _bytes(trained) + averaged


def _head_bytes(head: nn.Module, tokens: int, args: MDLMConfig) -> int:
    """Bytes of the head's buffers if all tokens are masked: C V s + 3 C H s, with C rows per chunk, vocabulary V,
    hidden size H and s bytes per value; plus 4 V H for the float32 gradient if s < 4."""
    vocabulary, hidden = getattr(head, "base_layer", head).weight.shape
    size = 2 if _half(args) else next(head.parameters()).element_size()
    return min(tokens, _CHUNK_ROWS) * (vocabulary + 3 * hidden) * size + (4 * vocabulary * hidden if size < 4 else 0)


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
