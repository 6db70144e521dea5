"""The chosen experts of every token on a CPU: transformers' implementations of experts, ours, and ours in 8 bits.

    python benchmarks/cpu_experts.py

Four layers of 64 experts of 512 x 256, 8 of them a token, 32 to 1536 tokens, float32 and bfloat16. RND1 and Qwen3-MoE
have layers of this kind, twelve times as large. Four layers do not fit the cache, as those of a model do not. Programs
are interleaved. The floor is the larger of two times, both at rates measured in the same run: that of the products, one
large product's (in 8 bits that of int8_linear), and that of reading the experts that were chosen. Output: a table and,
as the last line, one JSON object on stdout; a JSON row in the results folder.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

if __package__ in (None, ""):  # run as a file: packages are imported from the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import report, timing
from benchmarks.models import DTYPES
from dllm.exits import exit_code
from dllm.fast.int8 import Int8Experts
from dllm.models import experts
from dllm.tools.command import at_least_one
from dllm_kernels import int8_linear
from dllm_kernels.int8 import quantize_rows

CPU = torch.device("cpu")
LAYERS = 4
WARMUP = 2
COLUMNS = ("tokens", "program", "ms a layer", "against ours", "floor, ms", "of floor", "MB a layer")
READ = 2**26  # float32 numbers that are read to measure the memory: 256 MB, more than any cache
PRODUCT = (1024, 2048, 2048)  # rows, width and results of the product that is timed for its rate


class Case(NamedTuple):
    """Tokens [T, H], their chosen experts [T, k] and weights [T, k]."""

    hidden: Tensor
    index: Tensor
    weights: Tensor


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; unknown options end the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--tokens", type=at_least_one, nargs="+", default=[32, 64, 192, 1536])
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=["float32", "bfloat16"])
    parser.add_argument("--experts", type=at_least_one, default=64)
    parser.add_argument("--chosen", type=at_least_one, default=8, help="experts of a token")
    parser.add_argument("--width", type=at_least_one, default=512)
    parser.add_argument("--inner", type=at_least_one, default=256, help="width inside an expert")
    parser.add_argument("--repeats", type=at_least_one, default=7)
    parser.add_argument("--threads", type=at_least_one, default=None)
    parser.add_argument("--cpu-time", action="store_true", help="measure the time that the process ran")
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder for the JSON row")
    options = parser.parse_args(arguments)
    if not 0 < options.chosen <= options.experts:
        parser.error(f"chosen must be from 1 to experts, {options.experts}, got {options.chosen}")
    return options


def make_layers(options: argparse.Namespace, dtype: torch.dtype) -> list[nn.Module]:
    """transformers' module of experts, LAYERS times, each with its own weights.

    Raises:
        RuntimeError: transformers is older than 5, where experts are modules of their own.
    """
    if experts.moe is None:
        raise RuntimeError("experts are measured as transformers 5 has them, and an older one is installed")
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeConfig, Qwen3MoeExperts

    config = Qwen3MoeConfig(
        hidden_size=options.width,
        moe_intermediate_size=options.inner,
        num_experts=options.experts,
        num_experts_per_tok=options.chosen,
    )
    layers = [Qwen3MoeExperts(config).to(dtype).requires_grad_(False) for _ in range(LAYERS)]
    draw = torch.Generator().manual_seed(0)
    for layer in layers:
        for weight in layer.parameters():
            weight.normal_(std=0.02, generator=draw)
    return layers


def make_case(options: argparse.Namespace, tokens: int, dtype: torch.dtype) -> Case:
    """Tokens that choose experts at random, each with a weight of its own."""
    draw = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, options.width, generator=draw).to(dtype)
    scores, index = torch.rand(tokens, options.experts, generator=draw).topk(options.chosen)
    return Case(hidden, index, scores.to(dtype))


def run(layers: list[nn.Module], implementation: str, case: Case) -> list[Tensor]:
    """The layers' results, each of the same tokens, by one implementation."""
    for layer in layers:
        layer.config._experts_implementation = implementation
    return [layer(case.hidden, case.index, case.weights) for layer in layers]


def programs(layers: list[nn.Module]) -> dict[str, Callable[[Case], list[Tensor]]]:
    """The implementations: one expert after the other, transformers' default, ours, and ours in 8 bits."""
    experts.register()
    names = {"eager": "eager", "grouped_mm": "grouped_mm", "ours": experts.NAME}
    small = [Int8Experts(layer) for layer in layers]
    programs = {name: functools.partial(run, layers, implementation) for name, implementation in names.items()}
    return programs | {"int8": lambda case: [layer(*case) for layer in small]}


def floor_seconds(options: argparse.Namespace, case: Case, size: int, flops: float, bandwidth: float) -> float:
    """The least time of a layer with numbers of so many bytes: 6 H I operations for each pair of token and expert, or
    3 H I numbers of each expert that was chosen, whichever takes longer."""
    matrix = options.width * options.inner
    products = 6 * matrix * case.index.numel() / flops
    return max(products, 3 * matrix * len(case.index.unique()) * size / bandwidth)


def measure(options: argparse.Namespace, dtype: torch.dtype, begin: Callable[[str], None]) -> list[dict[str, object]]:
    """The result of each program for each number of tokens; runs are interleaved, and so are those of the rates."""
    layers, results = make_layers(options, dtype), []
    measured, clock = programs(layers), time.process_time if options.cpu_time else time.perf_counter
    weights = layers[0].gate_up_proj.numel() + layers[0].down_proj.numel()
    rows, width, columns = PRODUCT
    left, right, read = torch.randn(rows, width).to(dtype), torch.randn(columns, width).to(dtype), torch.zeros(READ)
    for tokens in options.tokens:
        case = make_case(options, tokens, dtype)
        calls = {name: functools.partial(program, case) for name, program in measured.items()}
        calls |= {
            "product": functools.partial(F.linear, left, right),
            "product in 8 bits": functools.partial(int8_linear, left, *quantize_rows(right)),
            "read": read.sum,
        }

        def once(name: str, tokens: int = tokens, calls: dict = calls) -> float:
            begin(f"{tokens} tokens, {dtype}, {name}")
            return timing.host_seconds(calls[name], clock)

        for name in list(calls) * WARMUP:
            once(name)
        seconds = timing.interleave({name: functools.partial(once, name) for name in calls}, options.repeats)
        taken = {name: timing.summary(values) for name, values in seconds.items()}
        flops, flops_of_int8 = (
            2 * rows * width * columns / taken.pop(name)["median"] for name in ("product", "product in 8 bits")
        )
        bandwidth = read.nbytes / taken.pop("read")["median"]
        for name, of_name in taken.items():
            size, rate = (1, flops_of_int8) if name == "int8" else (dtype.itemsize, flops)
            results.append(
                {
                    "tokens": tokens,
                    "dtype": str(dtype).removeprefix("torch."),
                    "program": name,
                    "seconds": {key: value if key == "runs" else value / LAYERS for key, value in of_name.items()},
                    "ours_is_faster_by": of_name["median"] / taken["ours"]["median"],
                    "floor_seconds": floor_seconds(options, case, size, rate, bandwidth),
                    "rates": {"flops": rate, "bytes": bandwidth},
                    "weight_bytes": weights * size,
                }
            )
    return results


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the row."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    row = report.new_row("cpu_experts", "benchmarks/cpu_experts.py", arguments, CPU)
    row["settings"] = {name: getattr(options, name) for name in ("experts", "chosen", "width", "inner")}
    row["results"] = []
    runs = len(options.dtype) * len(options.tokens) * 7 * (WARMUP + options.repeats)
    with report.progress(total=runs) as begin, torch.inference_mode():
        for dtype in options.dtype:
            row["results"] += measure(options, DTYPES[dtype], begin)
    report.print_table(
        f"{options.chosen} of {options.experts} experts, {options.width} x {options.inner}",
        COLUMNS,
        [cells(result) for result in row["results"]],
    )
    path = report.write_row(row, options.out, "-".join(str(tokens) for tokens in options.tokens))
    report.print_last_line({"row": str(path), "results": row["results"]})
    return 0


def cells(result: dict[str, object]) -> list[str]:
    """A line of the table."""
    seconds, floor = result["seconds"]["median"], result["floor_seconds"]
    return [
        f"{result['tokens']} {result['dtype']}",
        str(result["program"]),
        f"{1000 * seconds:.2f}",
        f"{result['ours_is_faster_by']:.2f}x",
        f"{1000 * floor:.2f}",
        f"{floor / seconds:.0%}",
        f"{result['weight_bytes'] / 10**6:.1f}",
    ]


if __name__ == "__main__":
    sys.exit(exit_code("cpu_experts", main))
