"""Evaluation against dLLM 0.1's: likelihood and generation, request by request there, in batches here.

    python benchmarks/evaluation.py
    python benchmarks/evaluation.py --repeats 3 --plot build/evaluation.png

The requests are those of the bundled model's problems: four letters to choose from, four numbers, four sentences, and
products and solutions to write out. Both programs are given token ids, and runs are interleaved. Beside the seconds it
tells how far apart the two estimates are, and on how many questions they choose alike. Output: a table and, as the last
line, one JSON object on stdout; a JSON row in the results folder.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

if __package__ in (None, ""):  # run as a file: packages are imported from the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from torch import nn

from benchmarks import report, timing
from benchmarks.baselines import harness
from benchmarks.models import DTYPES
from dllm.core.eval.generation import GenerationRequest, generate_requests
from dllm.core.likelihood import LikelihoodConfig, Target, log_likelihoods
from dllm.core.samplers import MDLMSampler, MDLMSamplerConfig
from dllm.demo.shipped import SHIPPED, load
from dllm.demo.training.problems import PHRASINGS, held_out
from dllm.exits import exit_code
from dllm.tools.command import at_least_one

COLUMNS = ("requests", "tokens", "published s", "dllm s", "faster", "agree")
LETTERS = "ABCD"


class Question(NamedTuple):
    """A context and its four choices, token ids."""

    context: list[int]
    choices: list[list[int]]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; unknown options end the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--model", default=None, help="a folder or a name on the Hub (default: the bundled model)")
    add("--questions", type=at_least_one, default=16, help="of each kind (default: %(default)s)")
    add("--mc-num", type=at_least_one, default=128, help="published masks of a target (default: %(default)s)")
    add("--masks", type=at_least_one, default=None, help="masks of a target here, if not all (default: dllm's)")
    add("--batch-size", type=at_least_one, default=32, help="rows of a published forward, a divisor of --mc-num")
    add("--new-tokens", type=at_least_one, default=128, help="room for a solution (default: %(default)s)")
    add("--block-size", type=at_least_one, default=32, help="tokens of a block (default: %(default)s)")
    add("--repeats", type=at_least_one, default=1)
    add("--threads", type=at_least_one, default=None)
    add("--dtype", choices=list(DTYPES), default="float32")
    add("--plot", type=Path, default=None, help="write the seconds of each kind as a plot")
    add("--out", type=Path, default=report.RESULTS, help="folder for the JSON row")
    options = parser.parse_args(arguments)
    if options.questions < 1 or options.mc_num % options.batch_size:
        parser.error("--questions must be at least 1, and --batch-size must divide --mc-num")
    return options


def questions(tokenizer: object, count: int) -> dict[str, list[Question]]:
    """Questions by the length of their choices."""
    problems = held_out(4 * count, 0, PHRASINGS)

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    found: dict[str, list[Question]] = {"letters": [], "numbers": [], "sentences": []}
    for number in range(count):
        four = problems[4 * number : 4 * number + 4]
        asked = [f"{letter}. {problem.answer}" for letter, problem in zip(LETTERS, four, strict=True)]
        context = encode("\n".join([four[0].question, *asked, "Answer:"]))
        found["letters"].append(Question(context, [encode(f" {letter}") for letter in LETTERS]))
        context = encode(f"{four[0].question}\n\nThe answer is")
        found["numbers"].append(Question(context, [encode(f" {problem.answer}.") for problem in four]))
        sentences = [problem.solution.partition(". ")[0] for problem in four]
        found["sentences"].append(Question(encode(f"{four[0].question}\n\n"), [encode(text) for text in sentences]))
    return found


class Likelihood:
    """Questions of one kind, answered by both programs."""

    def __init__(self, asked: Sequence[Question], model: nn.Module, mask_id: int, options: argparse.Namespace):
        self.asked, self.model, self.mask_id, self.options = asked, model, mask_id, options
        self.estimates: dict[str, list[float]] = {}

    def published(self) -> None:
        """One request after the other."""
        generator = torch.Generator().manual_seed(0)
        settings = dict(mc_num=self.options.mc_num, batch_size=self.options.batch_size, generator=generator)
        self.estimates["published"] = [
            harness.log_likelihood(self.model, asked.context, choice, mask_id=self.mask_id, **settings)
            for asked in self.asked
            for choice in asked.choices
        ]

    def ours(self) -> None:
        """All requests at once."""
        targets = [
            Target(asked.context, choice, seed=number)
            for number, asked in enumerate(self.asked)
            for choice in asked.choices
        ]
        config = LikelihoodConfig(mc_num=self.options.masks)
        found = log_likelihoods(self.model, targets, config, mask_id=self.mask_id)
        self.estimates["dllm"] = [estimate.log_likelihood for estimate in found]
        self.stderr = [estimate.stderr for estimate in found]

    def result(self) -> dict[str, object]:
        """What is told beside the seconds."""
        theirs, ours = (torch.tensor(self.estimates[name]).view(-1, 4) for name in ("published", "dllm"))
        lengths = [len(choice) for asked in self.asked for choice in asked.choices]
        return {
            "requests": 4 * len(self.asked),
            "target_tokens": statistics.mean(lengths),
            "root_mean_square_difference": float((theirs - ours).square().mean().sqrt()),
            "mean_standard_error": statistics.mean(self.stderr),
            "agree": float((theirs.argmax(1) == ours.argmax(1)).float().mean()),
        }


class Generation:
    """Solutions, written by both programs."""

    def __init__(self, prompts: Sequence[list[int]], model: nn.Module, tokenizer: object, options: argparse.Namespace):
        self.prompts, self.model, self.tokenizer, self.options = prompts, model, tokenizer, options
        self.texts: dict[str, list[str]] = {}

    def published(self) -> None:
        """One request after the other, all steps of each."""
        fixed = dict(mask_id=self.tokenizer.mask_token_id, eos_id=self.tokenizer.eos_token_id)
        fixed |= dict(max_new_tokens=self.options.new_tokens, block_size=self.options.block_size)
        tokens = [harness.generate(self.model, prompt, **fixed) for prompt in self.prompts]
        self.texts["published"] = [self.tokenizer.decode(row, skip_special_tokens=True) for row in tokens]

    def ours(self) -> None:
        """All requests at once; a row ends with its answer."""
        new = self.options.new_tokens
        config = MDLMSamplerConfig(max_new_tokens=new, steps=new, block_size=self.options.block_size, stop_at_eos=True)
        requests = [GenerationRequest(prompt, (), seed, {}) for seed, prompt in enumerate(self.prompts)]
        sampler = MDLMSampler(self.model, self.tokenizer)
        found = generate_requests(sampler, requests, config, batch_size=len(requests))
        self.texts["dllm"] = [one.text for one in found]
        self.tokens = [one.tokens for one in found]

    def result(self) -> dict[str, object]:
        """What is told beside the seconds."""
        same = [a.strip() == b.strip() for a, b in zip(self.texts["published"], self.texts["dllm"], strict=True)]
        return {
            "requests": len(self.prompts),
            "target_tokens": statistics.mean(self.tokens),
            "agree": sum(same) / len(same),
        }


def measure(options: argparse.Namespace, begin: Callable[[str], None]) -> list[dict[str, object]]:
    """The result of each kind of request."""
    model, tokenizer = load(options.model or SHIPPED, torch.device("cpu"), DTYPES[options.dtype])
    kinds: dict[str, Likelihood | Generation] = {
        name: Likelihood(asked, model, tokenizer.mask_token_id, options)
        for name, asked in questions(tokenizer, options.questions).items()
    }
    problems = held_out(2 * options.questions, 1, PHRASINGS)
    products = [f"What is {problem.numbers[0]} * {problem.numbers[1]}?" for problem in problems]
    for name, asked in (("products", products), ("solutions", [problem.question for problem in problems])):
        chats = [[{"role": "user", "content": text}] for text in asked]
        prompts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=True, return_dict=False)
        kinds[name] = Generation(prompts, model, tokenizer, options)
    results = []
    for name, kind in kinds.items():

        def timed(program: str, name: str = name, kind: Likelihood | Generation = kind) -> float:
            begin(f"{name}, {program}")
            started = time.perf_counter()
            getattr(kind, program)()
            return time.perf_counter() - started

        turns = {"published": lambda t=timed: t("published"), "dllm": lambda t=timed: t("ours")}
        seconds = timing.interleave(turns, options.repeats)
        faster = statistics.median(seconds["published"]) / statistics.median(seconds["dllm"])
        summaries = {f"{program}_seconds": timing.summary(values) for program, values in seconds.items()}
        results.append({"kind": name, **kind.result(), **summaries, "faster": faster})
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the row."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    row = report.new_row("evaluation", "benchmarks/evaluation.py", arguments, torch.device("cpu"))
    row["settings"] = {name: value for name, value in vars(options).items() if name not in ("out", "plot", "repeats")}
    with report.progress(total=10 * options.repeats) as begin:
        row["results"] = measure(options, begin)
    title = f"evaluation, {options.model or 'the bundled model'}, {options.dtype}, {options.mc_num} published masks"
    report.print_table(title, COLUMNS, [cells(result) for result in row["results"]])
    if options.plot:
        from benchmarks import plot

        print(f"plot: {plot.evaluation_row(row, options.plot).resolve()}")
    path = report.write_row(row, options.out, f"{Path(options.model or 'shipped').name}-{options.dtype}")
    report.print_last_line({"row": str(path), "results": row["results"]})
    return 0


def cells(result: dict[str, object]) -> list[str]:
    """A line of the table."""
    return [
        f"{result['requests']} {result['kind']}",
        f"{result['target_tokens']:.1f}",
        f"{result['published_seconds']['median']:.2f}",
        f"{result['dllm_seconds']['median']:.2f}",
        f"{result['faster']:.1f}x",
        f"{result['agree']:.0%}",
    ]


if __name__ == "__main__":
    sys.exit(exit_code("evaluation", main))
