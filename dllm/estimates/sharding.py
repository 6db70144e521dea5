"""Memory of a training process under each configuration of scripts/accelerate_configs, and which fits on which GPUs.

Notation, in bytes per process of G:

    T, F    trained weights (number) and frozen weights (bytes as they are loaded); s bytes per trained weight as loaded
    c       bytes per value under mixed precision: 2 with bf16 or fp16, else s
    m       bytes per value of what the optimizer updates: 4 with bf16 or fp16, else s
    n       values that the optimizer keeps per trained weight: 2 for AdamW
    L, R    the parameters of the largest layer, and of everything outside the layers (embedding, head)
    A       activations of the body, buffers of the head and the loss, averaged weights, reference model: the same
            under each
    S       with reinforcement learning the bytes of all weights as they are loaded, which each process samples with

    ddp     F + s T + 2 s T + n s T + A                                gradients once more in DDP's buckets
    zero1   F' + c T + c T + (n m + m') T / G + B + A                  optimizer state is sharded
    zero2   F' + c T + (c + n m + m') T / G + B + A                    gradients as well
    zero3   (F' + (2 c + n m + m') T) / G + c min(10^9, T + F) + A     weights as well; F here as a number
    fsdp    (F + (2 + n) m T) / G + c (R + 2 L) + c max(R, L) + A      weights, gradients, state; units are gathered
    fsdp2   as fsdp

Reinforcement learning takes S besides under fsdp and fsdp2.

With mixed precision DeepSpeed keeps weights and gradients in 16 bits and a float32 copy of trained weights (m' = 4,
else 0; F' = F in 16 bits), and accelerate keeps the trained weights of FSDP in float32. B = 2 c min(5 10^8, T) are the
two buckets of ZeRO 1 and 2, and 10^9 is the number of parameters that ZeRO-3 keeps gathered: defaults of DeepSpeed.
FSDP gathers the unit that runs, prefetches the next one, keeps the outermost one, and holds the gradient of one unit.
Float32 weights under mixed precision: A holds the 16-bit copies that autocast makes. DeepSpeed and FSDP need none, so
that their numbers are upper bounds then.

Sources: ZeRO (arXiv:1910.02054), section 3 and table 1; DeepSpeed's configuration reference (reduce_bucket_size,
allgather_bucket_size, stage3_max_live_parameters); torch.nn.parallel.DistributedDataParallel (gradient_as_bucket_view);
accelerate's Accelerator.prepare_model and fsdp2_prepare_model (float32 weights under mixed precision).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from dllm.core.trainers.base.sharding import layer_classes

CONFIGS = ("ddp", "zero1", "zero2", "zero3", "fsdp", "fsdp2")
GPUS = (1, 4, 8)
# Bytes of a GPU of 80 GB. Those sold as such have about 79 GiB; the rest is for the context and for fragmentation.
GPU_BYTES = 80 * 10**9
# DeepSpeed's defaults, in values.
_BUCKET, _LIVE = 5 * 10**8, 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """What a run holds, for the formulae above.

    trained, trained_bytes: T and s T.
    frozen, frozen_bytes: number and bytes of frozen weights.
    layer, rest: L and R.
    states: n; None: the optimizer is unknown.
    fixed: A; None: unknown.
    half: whether the run has mixed precision.
    quantised: whether frozen weights are stored in 4 bit.
    sampled: S; 0 where nothing is sampled.
    refused: configurations that the trainer refuses.
    """

    trained: int
    trained_bytes: int
    frozen: int
    frozen_bytes: int
    layer: int
    rest: int
    states: int | None
    fixed: int | None
    half: bool
    quantised: bool = False
    sampled: int = 0
    refused: tuple[str, ...] = ()


def bytes_per_process(config: str, gpus: int, run: Shares) -> int | None:
    """Bytes of a process under a configuration, by the formulae above.

    Args:
        config: one of CONFIGS, the name of a file in scripts/accelerate_configs.
        gpus: number of processes.
        run: what the run holds.

    Returns:
        None where the trainer refuses the configuration, and where it is unknown: of an optimizer that is not known, or
        where 4-bit weights would be sharded, which these configurations do not prepare.

    Raises:
        ValueError: the configuration is unknown, or there is no GPU.

    Example:
        >>> run = Shares(trained=10**9, trained_bytes=2 * 10**9, frozen=0, frozen_bytes=0, layer=10**7, rest=10**8,
        ...              states=2, fixed=0, half=True)
        >>> bytes_per_process("ddp", 8, run), bytes_per_process("zero2", 8, run)
        (10000000000, 5750000000)
    """
    if config not in CONFIGS:
        raise ValueError(f"the configuration must be one of {', '.join(CONFIGS)}, got {config!r}")
    if gpus < 1:
        raise ValueError(f"the number of GPUs must be at least 1, got {gpus}")
    if run.states is None or run.fixed is None or config in run.refused:
        return None
    if run.quantised and config in ("zero3", "fsdp", "fsdp2"):
        return None
    if config == "ddp":
        return run.frozen_bytes + (3 + run.states) * run.trained_bytes + run.fixed
    held = _fsdp(gpus, run) if config.startswith("fsdp") else _zero(int(config[-1]), gpus, run)
    return round(held) + run.fixed


def units(model: nn.Module) -> tuple[int, int]:
    """The parameters of the largest layer that is sharded by itself, and of everything outside such layers.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> tiny = dict(hidden_size=8, num_attention_heads=2, num_hidden_layers=3, intermediate_size=8, vocab_size=50)
        >>> units(BertForMaskedLM(BertConfig(**tiny)))
        (464, 4666)
    """
    classes = layer_classes(model) or []
    layers = [
        sum(weight.numel() for weight in module.parameters())
        for module in model.modules()
        if type(module).__name__ in classes
    ]
    everything = sum(weight.numel() for weight in model.parameters())
    return max(layers, default=0), everything - sum(layers)


def _zero(stage: int, gpus: int, run: Shares) -> float:
    """ZeRO without the fixed part."""
    each = 2 if run.half else _each(run)
    updated = 4 if run.half else _each(run)
    frozen = run.frozen_bytes if run.quantised or not run.half else 2 * run.frozen
    weights, gradients = frozen + each * run.trained, each * run.trained
    state = (run.states * updated + (4 if run.half else 0)) * run.trained
    if stage == 3:
        return (weights + gradients + state) / gpus + each * min(_LIVE, run.trained + run.frozen)
    buckets = 2 * each * min(_BUCKET, run.trained)
    return weights + buckets + (gradients + state / gpus if stage == 1 else (gradients + state) / gpus)


def _fsdp(gpus: int, run: Shares) -> float:
    """FSDP without the fixed part."""
    each = 2 if run.half else _each(run)
    updated = 4 if run.half else _each(run)
    sharded = run.frozen_bytes + (2 + run.states) * updated * run.trained
    return sharded / gpus + each * (run.rest + 2 * run.layer) + each * max(run.rest, run.layer) + run.sampled


def _each(run: Shares) -> int:
    """s, bytes per trained weight as it is loaded."""
    return run.trained_bytes // max(run.trained, 1)
