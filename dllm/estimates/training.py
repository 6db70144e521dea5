"""Estimate of a training run before it starts: parameters, optimizer steps and memory per process.

No weights are loaded or allocated: the model is built and run on fake tensors, which have shapes but no data.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dllm.configs import ModelArguments
from dllm.core.trainers import MDLMConfig
from dllm.estimates.fake import NEEDS_VALUES, check_size, model_on_meta, replace_by_fake_tensors, total_bytes
from dllm.estimates.sharding import Shares, units
from dllm.fast.head.split import output_head
from dllm.fast.model import check_positions, unwrapped
from dllm_kernels.linear_cross_entropy.chunked import chunk_rows

# Values that an optimizer stores per trained weight, in the weight's dtype. Other optimizers: unknown.
_STATE_PER_WEIGHT = {"adamw_torch": 2, "adamw_torch_fused": 2, "adagrad": 1, "rmsprop": 1, "sgd": 0}
# Bytes per weight in NF4 with double quantisation: 4 bits, 8 bits per 64 weights, 32 per 64 x 256 (arXiv:2305.14314).
_NF4_BYTES = 4 / 8 + 1 / 64 + 4 / (64 * 256)


class Memory(NamedTuple):
    """Memory of one process in bytes, without sharding; None where it is unknown.

    Attributes:
        weights: of the model, in the dtype in which they are loaded.
        gradients: of the trained weights.
        optimizer: the optimizer's state, and the averaged weights if `ema_decay` is set.
        activations: tensors that the body saves for the backward pass of one batch of samples of full length. With
            gradient checkpointing: each layer's input, and what one layer saves while it is computed again.
        head: buffers of the head and the loss.
        reference: copy of the weights that reinforcement learning compares with; 0 without.
    """

    weights: int
    gradients: int
    optimizer: int | None
    activations: int | None
    head: int
    reference: int


class Estimate(NamedTuple):
    """The size of a run: number of parameters (shared ones count once), of trained parameters, memory, and what the
    configurations of accelerate share out (:mod:`dllm.estimates.sharding`)."""

    parameters: int
    trained: int
    memory: Memory
    shares: Shares


def estimate(
    config: transformers.PretrainedConfig,
    model_args: ModelArguments,
    max_length: int,
    args: MDLMConfig,
    length_options: str = "max_length",
) -> Estimate:
    """Estimate the parameters and the memory of training a model of this configuration.

    Args:
        config: configuration of the model.
        model_args: dtype, attention, adapter and quantisation.
        max_length: tokens per sample.
        args: batch size, optimizer, precision, averaged weights and reference model.
        length_options: the options that max_length is the value of, for the error.

    Raises:
        ValueError: transformers has no masked language model for this configuration; max_length exceeds its number of
            positions; or a forward has too many tokens (:func:`dllm.estimates.fake.check_size`).

    Example:
        >>> config = transformers.BertConfig(
        ...     hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, vocab_size=50
        ... )
        >>> args = MDLMConfig(output_dir="out", report_to="none")
        >>> estimate(config, ModelArguments(model_name_or_path="bert", dtype="float32"), 16, args).parameters
        5130
    """
    model = model_on_meta(config, model_args)
    check_positions(model, max_length, f"{length_options} must fit")
    check_size(args.rows_per_forward, max_length, length_options)
    with FakeTensorMode():
        replace_by_fake_tensors(model)
        weights = list(model.parameters())
        trained = [weight for weight in weights if weight.requires_grad]
        rows = args.rows_per_forward
        averaged = sum(4 * weight.numel() for weight in trained) if args.ema_decay is not None else 0
        states = _STATE_PER_WEIGHT.get(str(getattr(args.optim, "value", args.optim)))
        memory = Memory(
            weights=_weight_bytes(model, model_args),
            gradients=total_bytes(trained),
            optimizer=None if states is None else states * total_bytes(trained) + averaged,
            activations=_activations(model, rows, max_length, args),
            head=_head_bytes(output_head(unwrapped(model)), rows * max_length, args),
            # the base of an adapter is the reference, without a copy
            reference=total_bytes(weights) if args.keeps_reference and not model_args.lora else 0,
        )
        layer, rest = units(model)
    parameters, number = (sum(weight.numel() for weight in some) for some in (weights, trained))
    shares = Shares(
        trained=number,
        trained_bytes=memory.gradients,
        frozen=parameters - number,
        frozen_bytes=memory.weights - memory.gradients,
        layer=layer,
        rest=rest,
        states=states,
        fixed=None if memory.activations is None else memory.activations + memory.head + memory.reference + averaged,
        half=_half(args) is not None,
        quantised=model_args.load_in_4bit,
        sampled=memory.weights if args.samples_while_training else 0,
        refused=args.refused_configs,
    )
    return Estimate(parameters, number, memory, shares)


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
        samples: number of training samples, or of prompts.
        processes: number of processes.
        args: batch size, accumulation, epochs or max_steps; completions of a prompt.

    Raises:
        ValueError: there are fewer prompts than a step takes.

    Example:
        >>> args = MDLMConfig(output_dir="out", report_to="none", per_device_train_batch_size=4, num_train_epochs=2)
        >>> optimizer_steps(samples=100, processes=2, args=args)
        26
    """
    if args.max_steps > 0:
        return args.max_steps
    batch = args.per_device_train_batch_size * processes
    rows = args.rows_of_epoch(samples, processes)
    batches = rows // batch if args.dataloader_drop_last else math.ceil(rows / batch)
    steps = max(math.ceil(batches / args.gradient_accumulation_steps), 1)
    return math.ceil(args.num_train_epochs * steps)


def _activations(model: nn.Module, rows: int, length: int, args: MDLMConfig) -> int | None:
    """Bytes of the saved activations; None if the forward reads its inputs' values (BERT, SDPA, transformers 4)."""
    try:
        kept = kept_for_backward(model, rows, length, _half(args))
    except NEEDS_VALUES:
        return None
    if not args.gradient_checkpointing:
        return kept
    layers, hidden = unwrapped(model).config.num_hidden_layers, unwrapped(model).config.hidden_size
    inputs = rows * length * hidden * next(model.parameters()).element_size()
    return min(kept, layers * inputs + kept // layers)


def _weight_bytes(model: nn.Module, model_args: ModelArguments) -> int:
    if not model_args.load_in_4bit:
        return total_bytes(model.parameters())
    head = output_head(unwrapped(model))
    linear = {
        id(m.weight)
        for m in model.modules()
        if isinstance(m, nn.Linear) and m is not head and not m.weight.requires_grad
    }
    # weights that are not quantised are stored in float32 when an adapter is trained
    return round(sum(w.numel() * (_NF4_BYTES if id(w) in linear else 4) for w in model.parameters()))


def _head_bytes(head: nn.Module, tokens: int, args: MDLMConfig) -> int:
    """Bytes of the head's buffers if all tokens are masked: C V s + 3 C H s, with C rows per chunk
    (:func:`dllm_kernels.linear_cross_entropy.chunked.chunk_rows`), vocabulary V, hidden size H and s bytes per value;
    plus 4 V H for the float32 gradient of a trained weight if s < 4, unless bfloat16 takes all tokens at once."""
    weight = getattr(head, "base_layer", head).weight
    (vocabulary, hidden), dtype = weight.shape, _half(args) or weight.dtype
    rows = min(tokens, chunk_rows(dtype, hidden, tokens, weight.requires_grad))
    summed = weight.requires_grad and dtype.itemsize < 4 and (rows < tokens or dtype == torch.float16)
    return rows * (vocabulary + 3 * hidden) * dtype.itemsize + (4 * vocabulary * hidden if summed else 0)


def _half(args: MDLMConfig) -> torch.dtype | None:
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
