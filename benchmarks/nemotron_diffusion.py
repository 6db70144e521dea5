"""Nemotron's decoding on a causal model of transformers: the published loop, and NemotronDiffusionSampler.

    python benchmarks/nemotron_diffusion.py
    python benchmarks/nemotron_diffusion.py --batch 4 --temperature 1.0 --vocab 32768

The model is small and random (hidden size 256, 4 layers), the vocabulary that of the published models, so that what
lies outside the body decides: speed does not depend on weights. Prompts have one length, as the published loop needs.
Runs are interleaved; a run is the whole call. At temperature 0 both give the same tokens, which is counted.
Output: a table and, as the last line, one JSON object on stdout; a JSON row in the results folder.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

if __package__ in (None, ""):  # run as a file: packages are imported from the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from torch import Tensor, nn

from benchmarks import report, timing
from benchmarks.baselines import nemotron_diffusion
from benchmarks.models import DTYPES
from dllm.exits import exit_code
from dllm.tools.command import at_least_one

PROMPT, MASK_ID, EOS = 32, 100, 11
COLUMNS = (
    "case",
    "program",
    "ms a run of the model: median, 10 %, 90 %",
    "runs",
    "ms/token",
    "speed-up",
    "peak MB",
    "same tokens",
)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; unknown options end the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--vocab", nargs="+", type=at_least_one, default=[131072])
    add("--batch", nargs="+", type=at_least_one, default=[1, 4])
    add("--temperature", nargs="+", type=float, default=[0.0, 1.0])
    add("--dtype", choices=list(DTYPES), default="float32")
    add("--block", type=at_least_one, default=32)
    add("--blocks", type=at_least_one, default=2)
    add("--hidden", type=at_least_one, default=256)
    add("--threshold", type=float, default=0.9)
    add("--repeats", type=at_least_one, default=5)
    add("--device", default="cpu")
    add("--threads", type=at_least_one, default=None)
    add("--out", type=Path, default=report.RESULTS, help="folder for the JSON row")
    return parser.parse_args(arguments)


def make_model(vocab: int, hidden: int, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """A random causal model with seeded weights, sure of some tokens and unsure of others, never of a mask."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(32)
        model.lm_head.weight[MASK_ID] = 0
    return model.to(device, dtype)


class Case:
    """One model and its prompts; each program continues all of them."""

    def __init__(self, options: argparse.Namespace, vocab: int, batch: int, temperature: float):
        self.options, self.device = options, torch.device(options.device)
        self.model = make_model(vocab, options.hidden, DTYPES[options.dtype], self.device)
        draw = torch.Generator().manual_seed(batch)
        self.prompts = torch.randint(200, vocab, (batch, PROMPT), generator=draw).to(self.device)
        self.settings = dict(
            max_new_tokens=options.block * options.blocks, threshold=options.threshold, temperature=temperature
        )

    def published(self) -> tuple[Tensor, int]:
        """The published loop."""
        return nemotron_diffusion.generate(
            self.model, self.prompts, mask_id=MASK_ID, block_length=self.options.block, **self.settings
        )

    def sampler(self) -> tuple[Tensor, int]:
        """Our own sampler."""
        from dllm.core.samplers import NemotronDiffusionSampler

        found = NemotronDiffusionSampler(self.model, SimpleNamespace(mask_token_id=MASK_ID, eos_token_id=EOS)).sample(
            self.prompts,
            seed=0,
            block_size=self.options.block,
            stop_at_eos=False,
            return_dict=True,
            keep_histories=False,
            **self.settings,
        )
        return found.sequences, found.stats.forwards

    @property
    def programs(self) -> dict[str, Callable[[], tuple[Tensor, int]]]:
        return {"published": self.published, "sampler": self.sampler}


def measure(
    options: argparse.Namespace, vocab: int, batch: int, temperature: float, begin: Callable[[str], None]
) -> dict:
    """The result of one case."""
    case = Case(options, vocab, batch, temperature)
    text = f"{vocab} tokens, batch {batch}, temperature {temperature:g}"
    peaks, runs, tokens = {}, {}, {}
    for name, program in case.programs.items():
        begin(f"{text}: memory of {name}")
        program()  # what is set up once
        with timing.PeakMemory(case.device) as memory:
            tokens[name], runs[name] = program()
        peaks[name] = memory.bytes
    begin(text)
    calls = {
        name: functools.partial(timing.wall_seconds, program, case.device) for name, program in case.programs.items()
    }
    seconds = {name: timing.summary(each) for name, each in timing.interleave(calls, options.repeats).items()}
    same = (tokens["published"] == tokens["sampler"])[:, PROMPT:].float().mean()
    return {
        "vocab": vocab,
        "batch": batch,
        "temperature": temperature,
        "dtype": options.dtype,
        "seconds": seconds,
        "runs": runs,
        "peak_bytes": peaks,
        "same_tokens": float(same) if temperature == 0 else None,
        "speedup": {name: seconds["published"]["median"] / each["median"] for name, each in seconds.items()},
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the row."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    kind = "nemotron_diffusion"
    row = report.new_row(kind, f"benchmarks/{kind}.py", arguments, torch.device(options.device))
    row["settings"] = {name: getattr(options, name) for name in ("block", "blocks", "hidden", "threshold")}
    cases = [(v, b, t) for v in options.vocab for t in options.temperature for b in options.batch]
    with report.progress(total=3 * len(cases)) as begin:
        row["results"] = [measure(options, *case, begin) for case in cases]
    new = options.block * options.blocks
    lines = [line for result in row["results"] for line in cells(result, new)]
    report.print_table("Nemotron's decoding", COLUMNS, lines)
    path = report.write_row(row, options.out, "-".join(map(str, options.vocab)))
    report.print_last_line({"row": str(path), "results": row["results"]})
    return 0


def cells(result: dict[str, object], new: int) -> list[list[str]]:
    """The lines of one case; `new` tokens of each row."""
    case = f"{result['vocab']}, {report.count(result['batch'], 'row')}, T {result['temperature']:g}, {result['dtype']}"
    same, lines = result["same_tokens"], []
    for name, taken in result["seconds"].items():
        runs, peak = result["runs"][name], result["peak_bytes"][name]
        lines.append(
            [
                case,
                name,
                " ".join(f"{1000 * taken[part] / runs:.1f}" for part in ("median", "p10", "p90")),
                str(runs),
                f"{1000 * taken['median'] / (new * result['batch']):.1f}",
                f"{result['speedup'][name]:.2f}x",
                "n/a" if peak is None else f"{peak / 1e6:.0f}",
                "n/a" if same is None else f"{same:.1%}",
            ]
        )
    return lines


if __name__ == "__main__":
    sys.exit(exit_code("nemotron_diffusion", main))
