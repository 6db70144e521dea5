"""Sampling with block caches of keys and values against sampling without, on a Llama shape with random weights.

    python benchmarks/cached_decoding.py

It compares two pairs of loops: BD3LM with and without its exact cache (the same tokens), and Fast-dLLM's schedule with
the dual cache and on the full canvas. Runs are interleaved. Every step is timed; steps that begin a block are reported
separately. Output: a table and, as the last line, one JSON object on stdout; a JSON row in the results folder.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

if __package__ in (None, ""):  # run as a file: packages are imported from the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from torch import nn

from benchmarks import models, report, timing
from benchmarks.models import DTYPES
from dllm.core import samplers
from dllm.exits import exit_code
from dllm.models import bidirectional
from dllm.tools.command import at_least_one

COLUMNS = ("loop", "call s", "step ms", "first of a block", "others", "cache MB", "speed-up")
MASK_ID, EOS_ID = 3, 2
PAIRS = {"bd3lm cached": "bd3lm recomputed", "dual cache": "full canvas"}


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; unknown options end the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--model", choices=list(models.PRESETS), help="a preset instead of the four sizes below")
    parser.add_argument("--layers", type=at_least_one, default=8)
    parser.add_argument("--hidden", type=at_least_one, default=512)
    parser.add_argument("--heads", type=at_least_one, default=8)
    parser.add_argument("--vocab", type=at_least_one, default=32000)
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--batch", type=at_least_one, default=1)
    parser.add_argument("--prompt", type=at_least_one, default=64)
    parser.add_argument("--new", type=at_least_one, default=448)
    parser.add_argument("--block", type=at_least_one, default=32)
    parser.add_argument("--steps", type=at_least_one, default=112, help="denoising steps of all blocks together")
    parser.add_argument("--repeats", type=at_least_one, default=3)
    parser.add_argument("--budget", type=float, default=None, metavar="SECONDS", help="start no round after this time")
    parser.add_argument("--threads", type=at_least_one, default=None)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder for the JSON row")
    return parser.parse_args(arguments)


def build(options: argparse.Namespace) -> nn.Module:
    """The bidirectional model, with weights from seed 0."""
    if options.model:
        return bidirectional(models.load(options.model, DTYPES[options.dtype], torch.device(options.device)).model)
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=options.vocab,
        hidden_size=options.hidden,
        intermediate_size=8 * options.hidden // 3,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        max_position_embeddings=options.prompt + options.new,
    )
    model = transformers.LlamaForCausalLM(config).eval().to(options.device, DTYPES[options.dtype])
    return bidirectional(model)


class Loop:
    """A sampling loop; a call runs it once and returns its seconds."""

    def __init__(self, sampler: samplers.BaseSampler, prompts: torch.Tensor, **settings: object):
        self.sampler, self.prompts, self.settings = sampler, prompts, settings
        self.first, self.others = [], []  # seconds of steps
        self.sequences = self.stats = None

    def __call__(self) -> float:
        last = began = time.perf_counter()

        def on_step(step: object) -> None:
            nonlocal last
            timing.synchronize(self.prompts.device)
            now = time.perf_counter()
            (self.first if step.step == 0 else self.others).append(now - last)
            last = now

        out = self.sampler.sample(self.prompts, on_step=on_step, return_dict=True, seed=0, **self.settings)
        self.sequences, self.stats = out.sequences, out.stats
        return time.perf_counter() - began

    def warm_up(self) -> None:
        """Run once without counting: the first run on a GPU compiles kernels and loads libraries."""
        self()
        self.first, self.others = [], []

    def result(self, name: str, seconds: list[float]) -> dict[str, object]:
        """The loop's entry in the row."""
        return {
            "loop": name,
            "call_seconds": timing.summary(seconds),
            "forwards": self.stats.forwards,
            "step_seconds": timing.summary(self.first + self.others),
            "first_seconds": timing.summary(self.first),
            "other_seconds": timing.summary(self.others) if self.others else None,
            "cache_bytes": self.stats.cache_bytes,
        }


def loops(options: argparse.Namespace, model: nn.Module) -> dict[str, Loop]:
    """The four loops, by name."""
    tokenizer = SimpleNamespace(mask_token_id=MASK_ID, eos_token_id=EOS_ID)
    prompts = torch.randint(5, options.vocab, (options.batch, options.prompt)).to(options.device)
    common = dict(max_new_tokens=options.new, block_size=options.block, steps=options.steps)
    # random weights would propose the mask token as often as any other, and leave positions masked
    common |= dict(suppress_tokens=[MASK_ID])
    exact = dict(stop_at_eos=False, **common)
    fast = dict(threshold=None, **common)
    block, approximate = samplers.BD3LMSampler(model, tokenizer), samplers.FastDLLMSampler(model, tokenizer)
    return {
        "bd3lm recomputed": Loop(block, prompts, cache=False, **exact),
        "bd3lm cached": Loop(block, prompts, cache=True, **exact),
        "full canvas": Loop(approximate, prompts, cache=None, **fast),
        "dual cache": Loop(approximate, prompts, cache="dual", **fast),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the row."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    deadline = time.monotonic() + options.budget if options.budget else None
    row = report.new_row("cached_decoding", "benchmarks/cached_decoding.py", arguments, torch.device(options.device))
    row["settings"] = {name: value for name, value in vars(options).items() if name not in ("out", "repeats", "budget")}
    calls = loops(options, build(options))
    if options.device.startswith("cuda"):
        for call in calls.values():
            call.warm_up()
    with report.progress(total=len(calls) * options.repeats) as begin:

        def announced(name: str) -> float:
            begin(name)
            return calls[name]()

        turns = {name: lambda name=name: announced(name) for name in calls}
        seconds = timing.interleave(turns, options.repeats, deadline)
    recomputed, cached = (calls[name].sequences for name in ("bd3lm recomputed", "bd3lm cached"))
    row["same_tokens"] = float((recomputed == cached).float().mean())
    row["results"] = [call.result(name, seconds[name]) for name, call in calls.items()]
    median = {name: statistics.median(values) for name, values in seconds.items()}
    for result in row["results"]:
        if result["loop"] in PAIRS:
            result["speedup"] = median[PAIRS[result["loop"]]] / median[result["loop"]]
    shape = options.model or f"{options.layers}x{options.hidden}"
    title = f"{shape}, {options.dtype}, batch {options.batch}, "
    title += f"{options.prompt} + {options.new} tokens, blocks of {options.block}, {options.steps} steps"
    notes = [f"BD3LM's two loops give the same token at {row['same_tokens']:.2%} of the positions"]
    report.print_table(title, COLUMNS, [cells(result) for result in row["results"]], notes)
    path = report.write_row(row, options.out, f"{shape}-{options.dtype}-b{options.batch}")
    report.print_last_line({"row": str(path), "results": row["results"], "same_tokens": row["same_tokens"]})
    return 0


def cells(result: dict[str, object]) -> list[str]:
    """A line of the table."""
    return [
        str(result["loop"]),
        f"{result['call_seconds']['median']:.2f}",
        *(
            f"{1000 * result[name]['median']:.1f}" if result[name] else ""
            for name in ("step_seconds", "first_seconds", "other_seconds")
        ),
        f"{result['cache_bytes'] / 1e6:.1f}" if result["cache_bytes"] else "",
        f"{result['speedup']:.1f}x" if "speedup" in result else "",
    ]


if __name__ == "__main__":
    sys.exit(exit_code("cached_decoding", main))
