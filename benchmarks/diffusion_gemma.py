"""A denoising step of DiffusionGemma: transformers' own `generate`, the same patched, and DiffusionGemmaSampler.

    python benchmarks/diffusion_gemma.py
    python benchmarks/diffusion_gemma.py --vocab 32768 --batch 1 4 --dtype float32

The model is small and random (hidden size 256, 4 layers, 8 experts), the vocabulary the real one, so that what lies
outside the body decides: speed does not depend on weights. One canvas is denoised; its encoder's forward and all else
outside of the steps are measured too, as people wait for them. Runs are interleaved, and a step is a run over its
steps. transformers runs on its dynamic cache. Peak memory is of a separate run, above what was in use before it.
Output: a table and, as the last line, one JSON object on stdout; a JSON row in the results folder.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a file: packages are imported from the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from torch import nn

from benchmarks import report, timing
from benchmarks.models import DTYPES
from dllm.exits import exit_code
from dllm.tools.command import at_least_one

PROMPT = 32
NEVER = 1e-9  # a mean entropy that stops no canvas
COLUMNS = ("case", "program", "ms/step (10-90 %)", "body", "speed-up", "peak MB", "MB a row", "of its memory")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; unknown options end the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--vocab", nargs="+", type=at_least_one, default=[32768, 262144])
    add("--batch", nargs="+", type=at_least_one, default=[1, 4])
    add("--dtype", nargs="+", choices=list(DTYPES), default=["float32"])
    add("--canvas", type=at_least_one, default=64)
    add("--hidden", type=at_least_one, default=256)
    add("--steps", type=at_least_one, default=4)
    add("--repeats", type=at_least_one, default=5)
    add("--device", default="cpu")
    add("--threads", type=at_least_one, default=None)
    add("--plot", type=Path, default=None, help="write memory against batch as a plot")
    add("--out", type=Path, default=report.RESULTS, help="folder for the JSON row")
    return parser.parse_args(arguments)


def make_model(vocab: int, hidden: int, canvas: int, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """A random model with seeded weights."""
    import transformers

    text = transformers.DiffusionGemmaTextConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        global_head_dim=hidden // 4,
        sliding_window=1024,
        layer_types=["sliding_attention"] * 3 + ["full_attention"],
        num_experts=8,
        top_k_experts=2,
        moe_intermediate_size=hidden // 2,
        use_bidirectional_attention="vision",
    )
    vision = transformers.AutoConfig.for_model(
        "gemma4_vision", hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, head_dim=16
    )
    special = dict(image_token_id=vocab - 1, boi_token_id=vocab - 2, eoi_token_id=vocab - 3)
    config = transformers.DiffusionGemmaConfig(text_config=text, vision_config=vision, canvas_length=canvas, **special)
    torch.manual_seed(0)
    model = transformers.DiffusionGemmaForBlockDiffusion(config).eval().to(device, dtype)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # sure of some tokens, unsure of others
    return model


class Case:
    """One model and its prompts; each program denoises one canvas of each."""

    def __init__(self, options: argparse.Namespace, vocab: int, batch: int, dtype: str):
        self.options, self.device = options, torch.device(options.device)
        self.model = make_model(vocab, options.hidden, options.canvas, DTYPES[dtype], self.device)
        draw = torch.Generator().manual_seed(batch)
        self.prompts = torch.randint(5, vocab - 5, (batch, PROMPT), generator=draw).to(self.device)
        self.settings = dict(
            max_new_tokens=options.canvas, max_denoising_steps=options.steps, confidence_threshold=NEVER
        )

    def transformers(self) -> object:
        """`model.generate` as it is."""
        return self.model.generate(input_ids=self.prompts, **self.settings)

    def patched(self) -> object:
        """The same call, patched."""
        import dllm.fast

        with dllm.fast.patch(self.model):
            return self.transformers()

    def sampler(self) -> object:
        """Our own sampler."""
        from dllm.core.samplers import DiffusionGemmaSampler

        return DiffusionGemmaSampler(self.model).sample(self.prompts, seed=0, **self.settings)

    @property
    def programs(self) -> dict[str, Callable[[], object]]:
        return {"transformers": self.transformers, "patched": self.patched, "sampler": self.sampler}

    def body(self) -> float:
        """Seconds of one forward of the decoder, without the head: what a step cannot fall below."""
        from dllm.fast.sampling.cache import KeyValueCache
        from dllm.fast.uniform.model import DiffusionGemma

        parts, batch = DiffusionGemma(self.model), len(self.prompts)
        cache = KeyValueCache(parts.layout(), rows=batch, columns=PROMPT, device=self.device)
        everyone = torch.arange(batch, device=self.device)
        column = torch.arange(PROMPT, device=self.device).expand(batch, -1)
        canvas = self.prompts.repeat(1, -(-self.options.canvas // PROMPT))[:, : self.options.canvas]
        length = torch.full((batch,), PROMPT, device=self.device)
        with torch.no_grad():
            parts.encode(cache, everyone, self.prompts, column, torch.ones_like(column, dtype=torch.bool))
            return timing.median_seconds(lambda: parts.decode(cache, length, canvas, None), self.device, 7)


def measure(options: argparse.Namespace, vocab: int, batch: int, dtype: str, begin: Callable[[str], None]) -> dict:
    """The result of one case."""
    case = Case(options, vocab, batch, dtype)
    text = f"{vocab} tokens, batch {batch}, {dtype}"
    peaks = {}
    for name, program in case.programs.items():
        begin(f"{text}: memory of {name}")
        program()  # what is set up once
        with timing.PeakMemory(case.device) as memory:
            program()
        peaks[name] = memory.bytes
    begin(text)
    calls = {
        name: functools.partial(timing.wall_seconds, program, case.device) for name, program in case.programs.items()
    }
    taken = timing.interleave(calls, options.repeats)
    steps = {name: timing.summary([one / options.steps for one in each]) for name, each in taken.items()}
    return {
        "vocab": vocab,
        "batch": batch,
        "dtype": dtype,
        "step_seconds": steps,
        "body_seconds": case.body(),
        "peak_bytes": peaks,
        "speedup": {name: steps["transformers"]["median"] / step["median"] for name, step in steps.items()},
        "share_of_memory": {
            name: peak / peaks["transformers"] if peak is not None and peaks["transformers"] else None
            for name, peak in peaks.items()
        },
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the row."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    row = report.new_row("diffusion_gemma", "benchmarks/diffusion_gemma.py", arguments, torch.device(options.device))
    row["settings"] = {name: getattr(options, name) for name in ("canvas", "hidden", "steps")}
    cases = [(vocab, batch, dtype) for vocab in options.vocab for dtype in options.dtype for batch in options.batch]
    with report.progress(total=4 * len(cases)) as begin:
        row["results"] = [measure(options, *case, begin) for case in cases]
    lines = [line for result in row["results"] for line in cells(result)]
    report.print_table("A denoising step of DiffusionGemma", COLUMNS, lines)
    path = report.write_row(row, options.out, "-".join(map(str, options.vocab)))
    report.print_last_line({"row": str(path), "results": row["results"]})
    if options.plot is not None:
        from benchmarks.plot.canvases import plot_canvas_memory

        plot_canvas_memory(row, options.plot)
    return 0


def cells(result: dict[str, object]) -> list[list[str]]:
    """The lines of one case."""
    lines = []
    for name, step in result["step_seconds"].items():
        peak, share = result["peak_bytes"][name], result["share_of_memory"][name]
        lines.append(
            [
                f"{result['vocab']}, {report.count(result['batch'], 'row')}, {result['dtype']}",
                name,
                f"{1000 * step['median']:.1f} ({1000 * step['p10']:.1f}-{1000 * step['p90']:.1f})",
                f"{1000 * result['body_seconds']:.1f}",
                f"{result['speedup'][name]:.2f}x",
                "n/a" if peak is None else f"{peak / 1e6:.0f}",
                "n/a" if peak is None else f"{peak / 1e6 / result['batch']:.0f}",
                "n/a" if share is None else f"{share:.0%}",
            ]
        )
    return lines


if __name__ == "__main__":
    sys.exit(exit_code("diffusion_gemma", main))
