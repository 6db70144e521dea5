"""Estimates as text: sizes with their unit, aligned tables, the report on sampling, which GPUs a training run fits."""

from __future__ import annotations

from collections.abc import Sequence

from dllm.estimates.costs import CacheCost, Canvas, SamplingEstimate
from dllm.estimates.sharding import CONFIGS, GPU_BYTES, GPUS, Shares, bytes_per_process

_HEADER = ("cache", "kept", "step", "times", "columns", "memory", "read", "TFLOP")


def size_text(amount: float) -> str:
    """A number of bytes in GiB or MiB.

    Example:
        >>> size_text(3 * 2**30), size_text(2**19)
        ('3.00 GiB', '0.5 MiB')
    """
    return f"{amount / 2**30:.2f} GiB" if amount >= 2**30 else f"{amount / 2**20:.1f} MiB"


def table(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lines of a table with aligned columns.

    Args:
        rows: cells, the header first.
        left: so many first columns are aligned to the left, the others to the right.

    Example:
        >>> table([("name", "n"), ("a", "10")])
        ['name   n', 'a     10']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def sampling_report(kind: str, dtype: str, canvas: Canvas, found: SamplingEstimate) -> str:
    """The text that `dllm generate --dry-run` prints.

    Args:
        kind: the model's type.
        dtype: of the weights.
        canvas: the rows.
        found: the estimate.
    """
    settings = canvas.settings
    steps = settings.blocks * len(settings.transfers())
    parameters = f"{found.parameters:,} parameters"
    if found.active < found.parameters:
        parameters += f", {found.active:,} of them active for a token"
    guided = ", with and without guidance" if settings.cfg_scale > 0 else ""
    peak = max(cost.peak for cost in found.caches)
    lines = [
        f"model    {kind}, {parameters}",
        f"weights  {size_text(found.weights)} in {dtype}",
        f"rows     {canvas.batch} of {canvas.prompt} given and {settings.gen_length} generated tokens{guided}",
        f"steps    {steps} in {settings.blocks} blocks of {settings.block_length}",
        f"in all   {size_text(found.weights + peak)} at most: weights, KV cache and the memory of a step",
        "",
        *table([_HEADER, *(row for cost in found.caches for row in _rows(cost))], left=3),
        "",
        "cache: none, all samplers but those of LLaDA2; block, BD3LM and LLaDA2; dual, Fast-dLLM",
        "kept: bytes of the KV cache; columns: of each row that run through the model, at most",
        "memory: at the peak of a step; read: weights and KV cache; TFLOP: of a step, and of all steps",
    ]
    return "\n".join(lines)


def fit_report(run: Shares) -> list[str]:
    """Lines of the table which configuration of accelerate fits on how many GPUs, with the bytes of a process.

    Args:
        run: what the run holds.

    Example:
        >>> run = Shares(trained=10**10, trained_bytes=2 * 10**10, frozen=0, frozen_bytes=0, layer=10**8, rest=10**9,
        ...              states=2, fixed=0, half=True)
        >>> fit_report(run)[-1]
        'fsdp2  no, 153.11 GiB  yes, 41.35 GiB  yes, 22.72 GiB'
    """
    header = "fits", *(f"{gpus} GPU{'s' * (gpus > 1)}" for gpus in GPUS)
    return table([header, *((config, *(_fit(config, gpus, run) for gpus in GPUS)) for config in CONFIGS)])


def _fit(config: str, gpus: int, run: Shares) -> str:
    if config in run.refused:
        return "refused"
    needed = bytes_per_process(config, gpus, run)
    if needed is None:
        return "unknown"
    return f"{'yes' if needed <= GPU_BYTES else 'no'}, {size_text(needed)}"


def _rows(cost: CacheCost) -> list[tuple[str, ...]]:
    """The rows of one kind of cache: each kind of step, and all of them."""
    rows = []
    for number, step in enumerate(cost.steps):
        cache, kept = (cost.cache or "none", size_text(cost.bytes) if cost.bytes else "-") if number == 0 else ("", "")
        cells = str(step.times), str(step.columns), size_text(step.memory), size_text(step.read)
        rows.append((cache, kept, step.name, *cells, f"{step.flops / 1e12:.4g}"))
    times = sum(step.times for step in cost.steps)
    return [*rows, ("", "", "all", str(times), "", "", "", f"{cost.flops / 1e12:.4g}")]
