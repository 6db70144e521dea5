"""Tables of single operations, and of a machine's measured ceilings."""

from __future__ import annotations

from benchmarks import machine, report
from benchmarks.markdown import megabytes

KERNEL_HEAD = ("logits", "T", "machine", "eager chain, ms", "gumbel_argmax, ms", "speed-up", "of read speed", "command")
HEAD_HEAD = (
    "head and sampling",
    "machine",
    "F.linear and one pass, ms",
    "linear_gumbel_argmax, ms",
    "speed-up",
    "over the same product, logits stored",
    "peak memory of stored, MB",
    "ours, MB",
    "same tokens",
    "command",
)
EXPERTS_HEAD = (
    "chosen experts",
    "machine",
    "one after the other, ms a layer",
    "grouped_mm, ms",
    "swiglu_experts, ms",
    "speed-up over grouped_mm",
    "of the floor",
    "command",
)
CEILINGS_HEAD = ("machine", "copy, TB/s", "read, TB/s", "bfloat16 product, TFLOP/s", "command")
GPU_KERNEL_HEAD = (
    "operation",
    "case",
    "dllm, us (10-90 %)",
    "floor, us",
    "of floor",
    "predicted, us",
    "peak MB",
    "others, times as long",
    "command",
)


def kernel_lines(row: dict, commands: list[str]) -> list[list[str]]:
    """A line for each dtype and temperature of a kernel row."""
    settings = row["settings"]
    return [
        [
            f"{settings['rows']} x {settings['vocab']} {result['dtype']}",
            f"{result['temperature']:g}",
            machine.short_name(row["machine"]),
            f"{1000 * result['eager_seconds']['median']:.1f}",
            f"{1000 * result['kernel_seconds']['median']:.2f}",
            f"{result['speedup']:.1f}x",
            f"{result['share_of_read_speed']:.0%}",
            f"{commands.index(row['command']) + 1}",
        ]
        for result in row["results"]
    ]


def head_lines(row: dict, commands: list[str]) -> list[list[str]]:
    """A line for each head, number of rows and dtype of a cpu_head row."""
    return [
        [
            f"{result['head']} {result['dtype']}, {report.count(result['rows'], 'row')}, "
            f"T {row['settings']['temperature']:g}",
            machine.short_name(row["machine"]),
            *(f"{1000 * result['seconds'][name]['median']:.1f}" for name in ("eager", "ours")),
            *(f"{result['speedup'][name]:.1f}x" for name in ("eager", "stored")),
            *(megabytes(result["peak_bytes"][name]) for name in ("stored", "ours")),
            f"{result['equal_tokens']:.1%}",
            f"{commands.index(row['command']) + 1}",
        ]
        for result in row["results"]
    ]


def experts_lines(row: dict, commands: list[str]) -> list[list[str]]:
    """A line for each dtype and number of tokens of a cpu_experts row."""
    settings, cases = row["settings"], {}
    for result in row["results"]:
        cases.setdefault((result["dtype"], result["tokens"]), {})[result["program"]] = result
    return [
        [
            f"{settings['chosen']} of {settings['experts']}, {settings['width']} x {settings['inner']}, {dtype}, "
            f"{report.count(tokens, 'token')}",
            machine.short_name(row["machine"]),
            *(f"{1000 * case[name]['seconds']['median']:.1f}" for name in ("eager", "grouped_mm", "ours")),
            f"{case['grouped_mm']['ours_is_faster_by']:.2f}x",
            f"{case['ours']['floor_seconds'] / case['ours']['seconds']['median']:.0%}",
            f"{commands.index(row['command']) + 1}",
        ]
        for (dtype, tokens), case in cases.items()
    ]


def ceilings_lines(row: dict, commands: list[str]) -> list[list[str]]:
    """A line with the measured memory speed and product speed of a machine."""
    speeds = row["bytes_per_second"]
    return [
        [
            machine.short_name(row["machine"]),
            *(f"{speeds[name] / 1e12:.2f}" for name in ("copy", "read")),
            f"{row['flops_per_second']['bfloat16'] / 1e12:.0f}",
            f"{commands.index(row['command']) + 1}",
        ]
    ]


def gpu_kernel_lines(row: dict, commands: list[str]) -> list[list[str]]:
    """A line for a case of an operation: dllm's time, its least and predicted time, and the other programs.

    Raises:
        ValueError: dllm's program was not measured.
    """
    results = row["providers"]
    if "seconds" not in results["ours"]:
        raise ValueError(f"a row has no measurement of ours: {row['settings']['op']}, {row['title']}")
    seconds, floor, predicted = results["ours"]["seconds"], row.get("floor_seconds"), row.get("predicted_seconds")
    others = [
        f"{name} {result['seconds']['median'] / seconds['median']:.2f}" if "seconds" in result else f"{name} failed"
        for name, result in results.items()
        if name != "ours"
    ]
    return [
        [
            row["settings"]["op"],
            row["title"],
            "{:.1f} ({:.1f}-{:.1f})".format(*(1e6 * seconds[q] for q in ("median", "p10", "p90"))),
            "n/a" if floor is None else f"{1e6 * floor:.1f}",
            "n/a" if floor is None else f"{floor / seconds['median']:.0%}",
            "n/a" if predicted is None else f"{1e6 * predicted:.1f}",
            megabytes(results["ours"]["peak_bytes"]),
            ", ".join(others),
            f"{commands.index(row['command']) + 1}",
        ]
    ]
