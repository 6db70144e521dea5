"""What reinforcement learning adds to the bundled model: exact answers to problems in wordings that it never learnt.

    OMP_NUM_THREADS=1 python -m benchmarks.grpo_lessons runs/grpo

The bundled model learnt word problems in some wordings. Here :class:`~dllm.core.rl.DiffuGRPOTrainer` trains it on
problems in three others, without solutions: it writes its own, and two rewards judge them by their numbers. Before and
after, exact answers are counted on problems in the new wordings, and in all others, whose numbers were never trained
on, neither here nor before.

The same command resumes an interrupted run. The last line is JSON; a row goes to the results, from which `python -m
benchmarks.plot` draws docs/grpo.svg. The trainer draws the curves of rewards and of the divergence from the bundled
model as a PNG, in the folder of the run.
"""

from __future__ import annotations

import argparse
import math
import random
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks import report
from benchmarks.resumable import add_arguments, has_checkpoint, once, read_settings
from dllm.core.rl import DiffuGRPOConfig, DiffuGRPOTrainer
from dllm.demo.shipped import load_shipped
from dllm.demo.training import gauge
from dllm.demo.training.problems import HELD_OUT_PHRASINGS, Problem, draw, final_answer, held_out, split_numbers
from dllm.demo.training.train import save_tokenizer
from dllm.exits import exit_code

TASKS = ("new-phrasings", "problems")
HELD_OUT_SEED, WATCHED_SEED = 1, 2  # of the questions that are counted, and of those that are asked during training
LOG_EVERY, SAVE_EVERY = 5, 20
COLUMNS = ("questions", "tokens a step", "order", "exact before", "95 %", "exact after", "95 %", "minutes of a core")


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a run; a resumed run must have the same.

    Raises:
        ValueError: a setting out of range.
    """

    updates: int = 300
    prompts: int = 4
    completions: int = 8
    iterations: int = 1
    steps: int = 16
    remasking: str = "random"
    learning_rate: float = 1e-4
    beta: float = 1e-12
    problems: int = 2000
    questions: int = 200
    watched: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("updates", "prompts", "iterations", "steps", "problems", "questions", "watched"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")
        if self.completions < 2:
            raise ValueError(f"expected completions of at least 2, a group, got {self.completions}")
        if gauge.GEN_LENGTH % self.steps:
            raise ValueError(f"steps must divide {gauge.GEN_LENGTH}, got {self.steps}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"expected a finite learning_rate above 0, got {self.learning_rate}")
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise ValueError(f"expected a finite beta of at least 0, got {self.beta}")


def exact(completions: Sequence[Sequence[Mapping[str, str]]], answer: Sequence[int], **_: object) -> list[float]:
    """A reward: 1 for a completion whose last number is the answer."""
    return [float(final_answer(reply["content"]) == right) for (reply,), right in zip(completions, answer, strict=True)]


def results_found(
    completions: Sequence[Sequence[Mapping[str, str]]], results: Sequence[Sequence[int]], **_: object
) -> list[float]:
    """A reward: the share of the solution's results (two products and their sum) that stand behind an equals sign."""
    found = []
    for (reply,), needed in zip(completions, results, strict=True):
        written = {int(number) for number in re.findall(r"= (\d+)", reply["content"])}
        found.append(sum(number in written for number in needed) / len(needed))
    return found


def row_of(problem: Problem) -> dict[str, object]:
    """A problem as the trainer takes it: the question as messages, and the columns of the rewards."""
    rate, hours, later_rate, later_hours = problem.numbers
    results = [rate * hours, later_rate * later_hours, problem.answer]
    prompt = [{"role": "user", "content": problem.question}]
    return {"prompt": prompt, "answer": problem.answer, "results": results}


def problems_of(settings: Settings) -> tuple[list[Problem], list[Problem]]:
    """The problems to train on, and those that are watched meanwhile, which have other numbers."""
    rng, (trained, _) = random.Random(settings.seed), split_numbers()
    problems = [draw(rng, trained, HELD_OUT_PHRASINGS) for _ in range(settings.problems)]
    return problems, held_out(settings.watched, WATCHED_SEED, HELD_OUT_PHRASINGS)


class LessonsTrainer(DiffuGRPOTrainer):
    """diffu-GRPO that logs the processor time of its process since it was made."""

    def __init__(self, *arguments: object, **options: object):
        self.began = time.process_time()
        super().__init__(*arguments, **options)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the parent class does."""
        super().log(logs | {"cpu_seconds": time.process_time() - self.began}, start_time)


def trainer(model: nn.Module, tokenizer: object, folder: Path, settings: Settings) -> LessonsTrainer:
    """The Trainer of a run; checkpoints go to `folder`."""
    trained, watched = problems_of(settings)
    config = DiffuGRPOConfig(
        output_dir=str(folder),
        seed=settings.seed,
        use_cpu=True,
        bf16=False,
        max_steps=settings.updates * settings.iterations,
        per_device_train_batch_size=settings.prompts * settings.completions,
        gradient_accumulation_steps=1,
        per_device_eval_batch_size=gauge.BATCH_SIZE,
        num_generations=settings.completions,
        num_iterations=settings.iterations,
        max_completion_length=gauge.GEN_LENGTH,
        block_size=gauge.GEN_LENGTH,
        steps=settings.steps,
        remasking=settings.remasking,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        warmup_ratio=0.0,
        adam_beta2=0.99,  # a gradient far above the others is forgotten sooner
        beta=settings.beta,
        p_mask_prompt=0.0,
        logging_steps=LOG_EVERY,
        save_strategy="steps",
        save_steps=SAVE_EVERY,
        save_total_limit=1,
        save_only_model=False,
        eval_strategy="steps",
        eval_steps=SAVE_EVERY,
        eval_on_start=True,
        report_to="none",
        disable_tqdm=True,
    )
    data = dict(train_dataset=[row_of(one) for one in trained], eval_dataset=[row_of(one) for one in watched])
    return LessonsTrainer(config, model, [exact, results_found], tokenizer=tokenizer, **data)


def scores(model: nn.Module, tokenizer: object, settings: Settings) -> list[dict[str, object]]:
    """Exact answers at temperature 0: one token a step, and as many as in training, in two orders."""
    found, several = [], gauge.GEN_LENGTH // settings.steps
    for task in TASKS:
        for tokens, order in ((1, "low_confidence"), (several, "low_confidence"), (several, "random")):
            asked = dict(task=task, tokens_per_step=tokens, remasking=order)
            score = gauge.measure(model, tokenizer, questions=settings.questions, seed=HELD_OUT_SEED, **asked)
            found.append(asked | score.row())
    return found


def learn(folder: Path, settings: Settings) -> dict[str, object]:
    """Train, and save the model as `folder`/model; returns the results."""
    model, tokenizer = load_shipped()
    before = once(folder / "before.json", scores, model, tokenizer, settings)
    run = trainer(model.requires_grad_(True), tokenizer, folder / "run", settings)
    run.train(resume_from_checkpoint=has_checkpoint(folder / "run"))
    model.save_pretrained(folder / "model")
    save_tokenizer(tokenizer, folder / "model")
    history = run.state.log_history
    return {
        "cpu_seconds": cpu_seconds(history),
        "before": before,
        "after": scores(model.eval(), tokenizer, settings),
        "curves": {name: points(history, name) for name in ("reward", "kl", "eval_rewards/exact", "eval_reward")},
    }


def cpu_seconds(history: Sequence[Mapping[str, float]]) -> float:
    """The processor time of a training, its questions included: of each process, one after the other, to its last entry
    that counts."""
    found, last = 0.0, 0.0
    for entry in history:
        now = entry["cpu_seconds"]
        found, last = found + (now - last if now >= last else now), now
    return found


def points(history: Sequence[Mapping[str, float]], name: str) -> list[tuple[int, float]]:
    """The optimizer steps and values of a name in the logs."""
    return [(entry["step"], entry[name]) for entry in history if name in entry]


def cells(before: Mapping[str, object], after: Mapping[str, object], seconds: float) -> list[str]:
    """A line of the table."""
    measured = [before["task"], str(before["tokens_per_step"]), before["remasking"]]
    for score in (before, after):
        low, high = score["interval_95"]
        measured += [f"{score['accuracy']:.1%}", f"{low:.1%} to {high:.1%}"]
    return [*measured, f"{seconds / 60:.0f}"]


def run(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Measure, print, and write the row."""
    settings = read_settings(options, Settings)
    row = report.new_row("grpo_lessons", "-m benchmarks.grpo_lessons", arguments, torch.device("cpu"))
    results = once(options.folder / "results.json", learn, options.folder, settings)
    row |= {"settings": asdict(settings), "results": results}
    pairs = zip(results["before"], results["after"], strict=True)
    lines = [cells(before, after, results["cpu_seconds"]) for before, after in pairs]
    report.print_table(f"exact answers of {settings.questions}, {settings.updates} updates", COLUMNS, lines)
    path = report.write_row(row, options.out, "modernbert-cpu")
    report.print_last_line({"row": str(path), "results": results})


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; unknown options end the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    add_arguments(parser, Settings)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (:mod:`dllm.exits`)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    return exit_code("grpo_lessons", lambda: run(options, arguments))


if __name__ == "__main__":
    sys.exit(main())
