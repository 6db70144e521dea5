"""The gauge of quality: exact answers to problems whose numbers the model never saw, offline, on any machine.

    python -m dllm.demo.gauge
    python -m dllm.demo.gauge --tokens-per-step 8
    python -m dllm.demo.gauge --task new-phrasings --temperature 0.5 --seed 1

Speed means nothing if quality cannot be watched: whatever changes how `dllm.fast.generate` samples is held against it.
A table goes to stdout, and a JSON object on its last line.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from dllm.demo.answer import answer
from dllm.demo.problems import HELD_OUT_PHRASINGS, PHRASINGS, final_answer, held_out

QUESTIONS = 500
GEN_LENGTH = 64  # the longest solution has 53 tokens, with the one that ends it
BATCH_SIZE = 50
NORMAL_975 = statistics.NormalDist().inv_cdf(0.975)


class Question(NamedTuple):
    """What is asked, the right answer, and how to find the answer in a reply."""

    text: str
    answer: object
    read: Callable[[str], object]


def word_problems(count: int, seed: int, phrasings: tuple[str, ...]) -> list[Question]:
    """Problems whose numbers are in no training problem; what counts is the number that the reply ends with."""
    return [Question(problem.question, problem.answer, final_answer) for problem in held_out(count, seed, phrasings)]


def small_talk(count: int, seed: int) -> list[Question]:
    """Lines of the training dialogues; the reply must be the dialogue's next line, letter for letter.

    Raises:
        ValueError: there are fewer.
    """
    from dllm.demo import dialogues

    pairs = dialogues.small_talk()
    if count > len(pairs):
        raise ValueError(f"count must be at most the {len(pairs)} lines of small talk, got {count}")
    return [Question(line, reply, str) for line, reply in random.Random(seed).sample(pairs, count)]


TASKS: dict[str, Callable[[int, int], list[Question]]] = {
    "problems": functools.partial(word_problems, phrasings=PHRASINGS),
    "new-phrasings": functools.partial(word_problems, phrasings=HELD_OUT_PHRASINGS),
    "small-talk": small_talk,
}


@dataclass(frozen=True, slots=True)
class Score:
    """What a measurement found.

    Attributes:
        questions: how many were asked.
        correct: of those, answered exactly.
        forwards: forward passes per question, on average; questions answered in one batch share its passes.
        tokens: generated tokens per question up to the end of its answer, on average.
        seconds: wall time of all questions together, s.
    """

    questions: int
    correct: int
    forwards: float
    tokens: float
    seconds: float

    @property
    def accuracy(self) -> float:
        """Share of exact answers."""
        return self.correct / self.questions

    @property
    def tokens_per_forward(self) -> float:
        """Tokens of an answer, its end included, over forward passes."""
        return self.tokens / self.forwards

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % confidence interval of the accuracy p, for questions drawn like these n (E. B. Wilson 1927).

        (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

        Example:
            >>> low, high = Score(questions=100, correct=90, forwards=64.0, tokens=50.0, seconds=1.0).interval
            >>> round(low, 3), round(high, 3)
            (0.826, 0.945)
        """
        n, p, z = self.questions, self.accuracy, NORMAL_975
        centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)

    def row(self) -> dict[str, float]:
        """Everything as plain numbers."""
        low, high = self.interval
        return {
            "questions": self.questions,
            "correct": self.correct,
            "accuracy": round(self.accuracy, 4),
            "interval_95": [round(low, 4), round(high, 4)],
            "forwards": round(self.forwards, 2),
            "tokens_per_forward": round(self.tokens_per_forward, 3),
            "seconds": round(self.seconds, 2),
        }


def measure(
    model: nn.Module,
    tokenizer: object,
    *,
    task: str = "problems",
    questions: int = QUESTIONS,
    tokens_per_step: int = 1,
    gen_length: int = GEN_LENGTH,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    on_batch: Callable[[Sequence[Question], Sequence[str]], object] | None = None,
    **sampler: object,
) -> Score:
    """Ask, and count exact answers.

    Args:
        model: as `dllm.fast.generate` takes it.
        tokenizer: its tokenizer, with a chat template.
        task: "problems" (numbers never trained on), "new-phrasings" (nor their wording) or "small-talk" (trained on).
        questions: how many; the same ones for the same seed.
        tokens_per_step: tokens committed per forward pass; divides `gen_length`.
        gen_length: tokens of an answer with the end-of-answer tokens after it.
        batch_size: questions answered together; changes the time only.
        seed: chooses the questions; question i draws its noise, where a temperature asks for some, from seed + i.
        on_batch: called with the questions of each batch and the replies to them.
        **sampler: further options of `dllm.fast.generate`: temperature, block_length (default: gen_length),
            remasking (default: "low_confidence"), cfg_scale, impl, ...

    Raises:
        ValueError, TypeError: an argument breaks a rule above or one of `generate`; the model has not run.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> measure(*load_shipped(), questions=4, tokens_per_step=2).forwards
        32.0
    """
    _check(task, gen_length, questions=questions, tokens_per_step=tokens_per_step, batch_size=batch_size)
    options = {"block_length": gen_length, "remasking": "low_confidence", "eos_token_id": tokenizer.eos_token_id}
    options |= sampler
    asked = TASKS[task](questions, seed)
    correct = forwards = tokens = 0
    started = time.perf_counter()
    for first in range(0, questions, batch_size):
        batch = asked[first : first + batch_size]
        replies, stats = answer(
            model,
            tokenizer,
            [question.text for question in batch],
            gen_length=gen_length,
            steps=gen_length // tokens_per_step,
            seed=[seed + first + i for i in range(len(batch))],
            **options,
        )
        correct += sum(q.read(reply) == q.answer for q, reply in zip(batch, replies, strict=True))
        forwards += stats.forwards * len(batch)
        tokens += stats.useful_tokens
        if on_batch:
            on_batch(batch, replies)
    return Score(questions, correct, forwards / questions, tokens / questions, time.perf_counter() - started)


def _check(task: str, gen_length: int, **counts: int) -> None:
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    for name, value in {"gen_length": gen_length, **counts}.items():
        if type(value) is not int:
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if gen_length % counts["tokens_per_step"]:
        raise ValueError(f"tokens_per_step must divide gen_length {gen_length}, got {counts['tokens_per_step']}")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; unknown options end the program."""
    parser = argparse.ArgumentParser(
        prog="python -m dllm.demo.gauge", description=__doc__.partition("\n")[0], allow_abbrev=False
    )
    add = parser.add_argument
    add("--task", choices=list(TASKS), default="problems", help="what to ask (default: %(default)s)")
    add("--questions", type=int, default=QUESTIONS, help="how many (default: %(default)s)")
    add("--model", default=None, help="a folder or a name on the Hub; default: the shipped model")
    add("--tokens-per-step", type=int, default=1, help="committed per forward pass (default: %(default)s)")
    add("--gen-length", type=int, default=GEN_LENGTH, help="tokens to generate (default: %(default)s)")
    add("--block-length", type=int, default=None, help="default: all of gen-length")
    add("--temperature", type=float, default=0.0)
    add("--cfg-scale", type=float, default=0.0)
    add("--remasking", default="low_confidence")
    add("--seed", type=int, default=0, help="of the choice of questions and of the noise")
    add("--batch-size", type=int, default=BATCH_SIZE, help="questions answered together (default: %(default)s)")
    add("--impl", default="auto", help="of the kernels: auto, reference, triton or cpu")
    add("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure by the command line's options and print the result; 2 for options that make no sense."""
    from dllm.demo.shipped import SHIPPED, load

    settings = vars(parse(arguments))
    if settings["block_length"] is None:
        settings["block_length"] = settings["gen_length"]
    source, device, dtype = settings.pop("model"), settings.pop("device"), settings.pop("dtype")
    try:
        score = measure(*load(source or SHIPPED, device, getattr(torch, dtype)), **settings)
    except (OSError, ValueError) as error:
        print(f"dllm.demo.gauge: {error}", file=sys.stderr)
        return 2
    low, high = score.interval
    print(
        f"{score.questions} questions ({settings['task']}), {settings['tokens_per_step']} tokens per step, "
        f"temperature {settings['temperature']:g}\n"
        f"  exact answers       {score.accuracy:.1%}   (95 % interval {low:.1%} to {high:.1%})\n"
        f"  forward passes      {score.forwards:.1f} per question\n"
        f"  tokens per forward  {score.tokens_per_forward:.2f}\n"
        f"  seconds             {score.seconds:.1f}   ({score.questions / score.seconds:.1f} questions a second)"
    )
    print(json.dumps({**settings, "model": source or "shipped", "device": str(device), "dtype": dtype} | score.row()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
