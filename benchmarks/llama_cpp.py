"""llama.cpp's diffusion example against the published loop and dllm, on the same weights, on a CPU.

    python benchmarks/llama_cpp.py --model llada-0.5b --example build/bin/llama-diffusion-cli
    python benchmarks/llama_cpp.py --model dream-0.5b --example build/bin/llama-diffusion-cli --temperature 1

`benchmarks/peers/llama_cpp.py` says how the example is built. The weights are random and exact in bfloat16, so that
GGUF files in f32 and bf16 and the models of transformers hold the same numbers; q8_0 rounds them. Before anything is
timed, the logits of a canvas are compared with float64: "error", and "of eager's" in multiples of PyTorch's. A file in
f32 or bf16 with more than twice PyTorch's error is not timed; of the others the error is only reported. In f32, flash
attention is off, since it rounds keys and values to float16.

All programs complete one canvas in so many steps, with the same number of tokens in each step: those of a step in the
middle of a run with one token per step. At temperature 0 the example commits from left to right, see
:func:`benchmarks.peers.llama_cpp.complete`, so its tokens are compared with a float32 loop in that order. Like the
published loops, it runs the LM head on every position. Runs are interleaved. Memory is the weights and the growth of
resident memory in a run; of the example, the peak of its process.

Output: a table and, as the last line, one JSON object on stdout; a JSON row in the results folder.
"""

from __future__ import annotations

import argparse
import copy
import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

if __package__ in (None, ""):  # run as a file: packages are imported from the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from torch import Tensor, nn

from benchmarks import card_loop, models, peers, providers, report, timing
from benchmarks.body_case import run_of
from benchmarks.case import Case
from benchmarks.failures import Result, failures_in
from benchmarks.measure import random_prompt
from benchmarks.models import Loaded
from dllm.exits import exit_code
from dllm.tools.command import at_least_one

CPU = torch.device("cpu")
EXAMPLE, LOGITS = "llama-diffusion-cli", "llama-debug"  # the second lies beside the first
LOOPS = {"card": "published loop", "ours-eager": "dllm"}
DTYPES = ("float32", "bfloat16")  # of the loops
SAME_PRECISION = {"f32": "float32", "bf16": "bfloat16"}  # of a GGUF file and of PyTorch
COLUMNS = ("program", "ms/step (10-90 %)", "tokens/s", "error", "of eager's", "same tokens", "MB")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; unknown options, or a missing example, end the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--model", choices=["small-llama", "llada-0.5b", "dream-0.5b"], default="llada-0.5b")
    add("--example", type=Path, default=shutil.which(EXAMPLE), help=f"path of {EXAMPLE}; {LOGITS} must lie beside it")
    add("--precisions", nargs="+", choices=["f32", "f16", "bf16", "q8_0"], default=["f32", "bf16", "q8_0"])
    add("--length", type=at_least_one, default=192, help="of the canvas")
    add("--steps", type=at_least_one, default=8)
    add("--temperature", type=float, default=0.0)
    add("--repeats", type=at_least_one, default=5)
    add("--seed", type=int, default=0)
    add("--threads", type=at_least_one, default=None)
    add("--out", type=Path, default=report.RESULTS, help="folder for the JSON row")
    options = parser.parse_args(arguments)
    if not peers.installed("gguf"):
        parser.error("the package gguf is not installed: pip install gguf")
    for path in [options.example and Path(options.example), options.example and Path(options.example).parent / LOGITS]:
        if path is None or not path.is_file():
            parser.error(f"--example must be the path of {EXAMPLE}, with {LOGITS} beside it, got {options.example}")
    return options


def left_to_right(model: nn.Module, prompt: Tensor, run: Case, mask_id: int, shifted: bool) -> Tensor:
    """What the example computes at temperature 0, in plain PyTorch: the argmax of the first masked positions.

    Args:
        prompt: int64 [1, P].
        shifted: the logits of position p are those at p - 1.
    """
    canvas = torch.full((1, prompt.shape[1] + run.gen_length), mask_id)
    canvas[:, : prompt.shape[1]] = prompt
    for count in card_loop.transfer_counts(canvas == mask_id, run.steps)[0].tolist():
        logits = model(canvas).logits[0]
        if shifted:
            logits = torch.cat([logits[:1], logits[:-1]])
        first = (canvas[0] == mask_id).nonzero()[:count, 0]
        canvas[0, first] = logits[first].argmax(dim=-1)
    return canvas


class Comparison:
    """Loops of PyTorch in two dtypes and the example in several precisions, on one prompt."""

    def __init__(self, loaded: Loaded, options: argparse.Namespace, begin: Callable[[str], None]):
        self.options, self.begin = options, begin
        self.by_dtype = {dtype: self._in_dtype(loaded, dtype) for dtype in DTYPES}
        run = run_of(options.model, "float32", (1, options.length), options.steps, options.temperature, options.seed)
        self.shifted = loaded.model.config.model_type == "qwen2"  # as Dream's models are trained
        sampler = {"sampler": "llada"}
        if self.shifted:
            none = {"top_p": None, "top_k": None}
            sampler = {"sampler": "dream-maskgit_plus", "remasking": None, "options": {"alg_temp": 0.0} | none}
        self.run = replace(run, **sampler)
        self.tokens = random_prompt(loaded, replace(self.run, prompt_length=options.length))
        self.prompt = self.tokens[:, : self.run.prompt_length]
        self.results: dict[str, Result] = {}

    def _in_dtype(self, loaded: Loaded, dtype: str) -> Loaded:
        return replace(loaded, model=copy.deepcopy(loaded.model).to(models.DTYPES[dtype]))

    @torch.no_grad()
    def measure(self) -> dict[str, Result]:
        """The numbers of every program, or {"error": reason}."""
        with tempfile.TemporaryDirectory() as folder:
            calls = self._loops() | self._examples(Path(folder))
            taken = timing.interleave(calls, self.options.repeats)
        for name, seconds in taken.items():
            spread = timing.summary([each / self.run.steps for each in seconds])
            self.results[name] |= {"seconds_per_step": spread, "tokens_per_second": 1 / spread["median"]}
        return self.results

    def _loops(self) -> dict[str, Callable[[], float]]:
        calls = {}
        for dtype, loaded in self.by_dtype.items():
            for loop in LOOPS:
                name = f"{LOOPS[loop]}, {dtype}"
                self.begin(f"first run of {name}")
                self.results[name] = {}
                with failures_in(self.results, name):
                    complete = providers.build(loop, loaded, self.run, self.prompt).complete
                    complete(None)
                    with timing.PeakMemory(CPU) as memory:
                        complete(None)
                    weights = sum(parameter.nbytes for parameter in loaded.model.parameters())
                    self.results[name]["memory_bytes"] = None if memory.bytes is None else weights + memory.bytes
                    calls[name] = functools.partial(self._seconds, name, functools.partial(complete, None))
        return calls

    def _seconds(self, name: str, complete: Callable[[], Tensor]) -> float:
        self.begin(name)
        return timing.host_seconds(complete)

    def _examples(self, folder: Path) -> dict[str, Callable[[], float]]:
        truth, calls = self._last_logits("float64"), {}
        for precision in self.options.precisions:
            name = f"llama.cpp, {precision}"
            self.begin(f"checking {name}")
            self.results[name] = {}
            with failures_in(self.results, name):
                calls[name] = functools.partial(
                    self._example_seconds, name, self._example(name, precision, folder, truth)
                )
        return calls

    def _example(self, name: str, precision: str, folder: Path, truth: Tensor) -> Callable[[], object]:
        """A run of the example in one precision, after the checks of its logits and of a first run's tokens."""
        from benchmarks.peers import llama_cpp

        loaded, example, path = (
            self.by_dtype["bfloat16"],
            Path(self.options.example).resolve(),
            folder / f"{precision}.gguf",
        )
        flash = precision != "f32"  # it rounds keys and values to float16
        llama_cpp.write_gguf(loaded.model, loaded.mask_id, path, precision)
        logits = llama_cpp.last_logits(example.parent / LOGITS, path, self.tokens[0].tolist(), folder, flash)
        self.results[name] |= self._errors(logits, truth, precision)
        settings = (self.prompt[0].tolist(), self.options.length, self.run.steps, self.run.temperature, flash)
        complete = functools.partial(llama_cpp.complete, example, path, *settings)
        self.results[name] |= self._checked(complete())
        return complete

    def _example_seconds(self, name: str, complete: Callable[[], object]) -> float:
        self.begin(name)
        return complete().seconds

    def _last_logits(self, dtype: str) -> Tensor:
        """Logits [V] of the last position of the canvas of given tokens, by transformers."""
        model = copy.deepcopy(self.by_dtype["float32"].model).to(getattr(torch, dtype))
        return model(self.tokens).logits[0, -1].double()

    def _errors(self, logits: Tensor, truth: Tensor, precision: str) -> Result:
        """The error of the logits, root mean square over that of the true ones, and in multiples of PyTorch's.

        Raises:
            ValueError: it is more than twice PyTorch's, so the file holds another model.
        """
        found = {"relative_error": _relative_error(logits, truth)}
        if precision in SAME_PRECISION:
            eager = _relative_error(self._last_logits(SAME_PRECISION[precision]), truth)
            found["times_eager_error"] = found["relative_error"] / eager
            if not found["times_eager_error"] <= 2:
                raise ValueError(
                    f"the error must be at most twice PyTorch's in {SAME_PRECISION[precision]}, "
                    f"got {found['times_eager_error']:.3g} times it"
                )
        return found

    @functools.cached_property
    def expected(self) -> Tensor:
        """The canvas of :func:`left_to_right` in float32."""
        loaded = self.by_dtype["float32"]
        return left_to_right(loaded.model, self.prompt, self.run, loaded.mask_id, self.shifted)

    def _checked(self, run: object) -> Result:
        """Facts of the example's first run, which does not count: tokens, memory, the choice of tokens."""
        found = {"memory_bytes": run.peak_bytes, "sampling_seconds_per_step": run.sampling_seconds / run.forwards}
        if self.run.temperature == 0:
            new = slice(self.run.prompt_length, None)
            found["same_tokens"] = (run.canvas[new] == self.expected[0, new]).float().mean().item()
        return found


def _relative_error(values: Tensor, truth: Tensor) -> float:
    return ((values.double() - truth).norm() / truth.norm()).item()


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the row."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    row = report.new_row("llama_cpp", "benchmarks/llama_cpp.py", arguments, CPU)
    row["settings"] = {name: getattr(options, name) for name in ("model", "length", "steps", "temperature")}
    row["load_average"] = os.getloadavg()[0]  # of the last minute; the measurement itself is a part of later ones
    loaded = models.load(options.model, torch.bfloat16, CPU, seed=options.seed)
    row["parameters"] = loaded.parameters
    programs = len(LOOPS) * len(DTYPES) + len(options.precisions)
    with report.progress(total=programs * (1 + options.repeats)) as begin:
        row["programs"] = Comparison(loaded, options, begin).measure()
    print_programs(options, row["programs"])
    path = report.write_row(row, options.out, f"{options.model}-t{options.temperature:g}")
    report.print_last_line({"row": str(path), "programs": row["programs"]})
    return 0


def print_programs(options: argparse.Namespace, programs: dict[str, Result]) -> None:
    """Print the table."""
    lines = [cells(name, result) for name, result in programs.items()]
    notes = [f"{name}: {result['error']}" for name, result in programs.items() if "error" in result]
    title = f"{options.model}, canvas {options.length}, batch 1, temperature {options.temperature:g}"
    report.print_table(title, COLUMNS, lines, notes)


def cells(name: str, result: Result) -> list[str]:
    """A program's line of the table; a dash where nothing was measured."""
    spread, memory = result.get("seconds_per_step"), result.get("memory_bytes")

    def number(key: str, pattern: str) -> str:
        return pattern.format(result[key]) if key in result else "-"

    return [
        name,
        "{:.1f} ({:.1f}-{:.1f})".format(*(1000 * spread[q] for q in ("median", "p10", "p90"))) if spread else "-",
        number("tokens_per_second", "{:.2f}"),
        number("relative_error", "{:.2g}"),
        number("times_eager_error", "{:.2f}x"),
        number("same_tokens", "{:.1%}"),
        "-" if memory is None else f"{memory / 1e6:.0f}",
    ]


if __name__ == "__main__":
    sys.exit(exit_code("llama_cpp", main))
