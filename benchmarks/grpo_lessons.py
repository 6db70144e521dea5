"""What reinforcement learning adds to the bundled model: exact answers to a kind of question that it never learnt.

    OMP_NUM_THREADS=1 python -m benchmarks.grpo_lessons runs/grpo

The bundled model learnt sums with a sign, "What is 14 + 4?", and none in words, "How many are 14 and 4 together?".
:class:`~dllm.core.rl.DiffuGRPOTrainer` trains it on sums in words (:mod:`dllm.demo.training.sums`) without their
answers: it writes its own, and two rewards judge them, 1 where the last number is right, and 1 for an equation with the
question's numbers. Exact answers are counted before and after, on sums in words of other numbers, and on the problems
that it had learnt.

The same command resumes an interrupted run. The last line is JSON; a row goes to the results, from which `python -m
benchmarks.plot` draws docs/grpo.svg. The trainer draws the curves of the reward and of the divergence from the bundled
model as a PNG, in the folder of the run.
"""

from __future__ import annotations

import math
import random
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from benchmarks import report, resumable
from benchmarks.resumable import has_checkpoint, once
from dllm.core.rl import DiffuGRPOConfig, DiffuGRPOTrainer
from dllm.demo.shipped import load_shipped
from dllm.demo.training import gauge
from dllm.demo.training.problems import final_answer
from dllm.demo.training.sums import draw
from dllm.demo.training.train import save_tokenizer

LENGTH = 16  # tokens of an answer to a sum
# tasks, tokens of an answer, and tokens a step that are counted at temperature 0
COUNTED = (("sums-in-words", LENGTH, 1), ("sums-in-words", LENGTH, 2), ("problems", gauge.GEN_LENGTH, 1))
HELD_OUT_SEED, WATCHED_SEED = 1, 2  # of the questions that are counted, and of those that are asked during training
LOG_EVERY, SAVE_EVERY = 5, 20
CURVES = ("rewards/exact", "eval_rewards/exact", "rewards/equation", "eval_rewards/equation", "kl")
COLUMNS = ("questions", "tokens a step", "exact before", "95 %", "exact after", "95 %", "minutes of a core")


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a run; a resumed run must have the same.

    Raises:
        ValueError: a setting out of range.
    """

    updates: int = 200
    prompts: int = 8
    completions: int = 8
    steps: int = 8
    learning_rate: float = 1e-4
    beta: float = 1e-4
    sums: int = 1600
    questions: int = 200
    watched: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("updates", "prompts", "steps", "sums", "questions", "watched"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")
        if self.completions < 2:
            raise ValueError(f"expected completions of at least 2, a group, got {self.completions}")
        if LENGTH % self.steps:
            raise ValueError(f"steps must divide {LENGTH}, got {self.steps}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"expected a finite learning_rate above 0, got {self.learning_rate}")
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise ValueError(f"expected a finite beta of at least 0, got {self.beta}")


def exact(completions: Sequence[Sequence[Mapping[str, str]]], answer: Sequence[int], **_: object) -> list[float]:
    """A reward: 1 for a completion whose last number is the answer."""
    return [float(final_answer(reply["content"]) == right) for (reply,), right in zip(completions, answer, strict=True)]


def equation(
    completions: Sequence[Sequence[Mapping[str, str]]], terms: Sequence[tuple[int, int]], **_: object
) -> list[float]:
    """A reward: 1 for a completion that is an equation, the sum of the question's numbers in their order."""
    return [
        float(re.fullmatch(rf"{one} \+ {other} = \d+\.", reply["content"].strip()) is not None)
        for (reply,), (one, other) in zip(completions, terms, strict=True)
    ]


def rows(count: int, seed: int, *, held_out: bool) -> list[dict[str, object]]:
    """Sums as the trainer takes them: the question as messages, and the columns of the rewards."""
    rng = random.Random(seed)
    drawn = [draw(rng, held_out=held_out) for _ in range(count)]
    return [
        {"prompt": [{"role": "user", "content": each.question}], "terms": each.terms, "answer": each.answer}
        for each in drawn
    ]


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
    config = DiffuGRPOConfig(
        output_dir=str(folder),
        seed=settings.seed,
        use_cpu=True,
        bf16=False,
        max_steps=settings.updates,
        per_device_train_batch_size=settings.prompts * settings.completions,
        gradient_accumulation_steps=1,
        per_device_eval_batch_size=gauge.BATCH_SIZE,
        num_generations=settings.completions,
        max_completion_length=LENGTH,
        block_size=LENGTH,
        steps=settings.steps,
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
    data = dict(
        train_dataset=rows(settings.sums, settings.seed, held_out=False),
        eval_dataset=rows(settings.watched, WATCHED_SEED, held_out=True),
    )
    return LessonsTrainer(config, model, [exact, equation], tokenizer=tokenizer, **data)


def scores(model: nn.Module, tokenizer: object, settings: Settings) -> list[dict[str, object]]:
    """Exact answers of the tasks in `COUNTED`."""
    found = []
    for task, length, tokens in COUNTED:
        asked = dict(task=task, gen_length=length, tokens_per_step=tokens)
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
        "curves": {name: points(history, name) for name in CURVES},
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
    measured = [before["task"], str(before["tokens_per_step"])]
    for score in (before, after):
        low, high = score["interval_95"]
        measured += [f"{score['accuracy']:.1%}", f"{low:.1%} to {high:.1%}"]
    return [*measured, f"{seconds / 60:.0f}"]


def measure(folder: Path, settings: Settings) -> dict[str, object]:
    """The results of the run in this folder, trained if they are not there."""
    return once(folder / "results.json", learn, folder, settings)


def show(settings: Settings, results: dict[str, object]) -> None:
    """Print the table."""
    pairs = zip(results["before"], results["after"], strict=True)
    lines = [cells(before, after, results["cpu_seconds"]) for before, after in pairs]
    report.print_table(f"exact answers of {settings.questions}, {settings.updates} updates", COLUMNS, lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (:mod:`dllm.exits`)."""
    how = dict(measure=measure, show=show, slug="modernbert-cpu")
    return resumable.main("grpo_lessons", __doc__, Settings, arguments, **how)


if __name__ == "__main__":
    sys.exit(main())
