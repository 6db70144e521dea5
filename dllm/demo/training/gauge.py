"""Measure accuracy: exact answers to word problems whose numbers were never trained on.

    python -m dllm.demo.training.gauge
    python -m dllm.demo.training.gauge --tokens-per-step 8
    python -m dllm.demo.training.gauge --task new-phrasings --temperature 0.5 --seed 1
    python -m dllm.demo.training.gauge --sampler threshold --threshold 0.9

This is the quality gate for every change to sampling, in `dllm.fast.generate` and in the samplers of
`dllm.core.samplers`. It runs offline, on any machine. The result is printed to stdout, as JSON on the last line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from dllm.demo import samplers
from dllm.demo.answer import answer
from dllm.demo.training.questions import TASKS, Question
from dllm.demo.training.score import Score
from dllm.exits import exit_code, usage
from dllm.fast import Stats

QUESTIONS = 500
GEN_LENGTH = 64  # the longest solution has 53 tokens, its end token included
BATCH_SIZE = 50


def measure(
    model: nn.Module,
    tokenizer: object,
    *,
    task: str = "problems",
    questions: int = QUESTIONS,
    sampler: str = "generate",
    tokens_per_step: int | None = None,
    gen_length: int = GEN_LENGTH,
    block_length: int | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    on_batch: Callable[[Sequence[Question], Sequence[str]], object] | None = None,
    **options: object,
) -> Score:
    """Ask questions and count exact answers.

    Args:
        model: as `dllm.fast.generate` takes it.
        tokenizer: its tokenizer, with a chat template.
        task: "problems" (numbers never trained on), "new-phrasings" (neither numbers nor wording), "sums-in-words"
            (a kind of question never trained on) or "small-talk" (trained on).
        questions: number of questions; the same seed gives the same questions.
        sampler: "generate", or a name of :data:`dllm.demo.samplers.SAMPLERS`.
        tokens_per_step: tokens committed per forward pass ("llada2": at least); None: 1. Must divide `gen_length`
            ("llada2": `block_length`). Must be None for samplers whose rule decides how many tokens a step commits.
        gen_length: tokens to generate, the end-of-answer tokens included.
        block_length: tokens per block; None: `gen_length`.
        batch_size: questions per batch; changes the time only.
        seed: chooses the questions; question i samples with seed + i.
        on_batch: called with the questions and the replies of each batch.
        **options: further options of `dllm.fast.generate`, or of the sampler's config: temperature, remasking,
            cfg_scale, threshold, compile_body, impl, ...

    Raises:
        ValueError, TypeError: an argument breaks a rule above or one of the sampler; raised before the model runs.

    Example:
        >>> from dllm.demo.shipped import load_shipped
        >>> measure(*load_shipped(), questions=4, tokens_per_step=2).forwards
        32.0
    """
    block_length = gen_length if block_length is None else block_length
    _check(task, sampler, questions=questions, gen_length=gen_length, block_length=block_length, batch_size=batch_size)
    options |= _steps_option(sampler, tokens_per_step, gen_length, block_length)
    asked = TASKS[task](questions, seed)
    correct = forwards = tokens = 0
    compiling = 0.0
    started = time.perf_counter()
    for first in range(0, questions, batch_size):
        batch = asked[first : first + batch_size]
        texts, seeds = [question.text for question in batch], [seed + first + i for i in range(len(batch))]
        replies, stats = _answer_batch(
            sampler,
            model,
            tokenizer,
            texts,
            gen_length=gen_length,
            block_length=block_length,
            seed=seeds,
            **options,
        )
        correct += sum(q.read(reply) == q.answer for q, reply in zip(batch, replies, strict=True))
        forwards += sum(stats.row_forwards)
        tokens += stats.useful_tokens
        compiling += stats.compile_seconds
        if on_batch:
            on_batch(batch, replies)
    seconds = time.perf_counter() - started - compiling
    return Score(questions, correct, forwards / questions, tokens / questions, seconds, compiling)


def _answer_batch(
    sampler: str, model: nn.Module, tokenizer: object, texts: Sequence[str], *, block_length: int, **options: object
) -> tuple[list[str], Stats]:
    """Answer the questions of one batch; returns the replies and the call's statistics."""
    if sampler != "generate":
        return samplers.answer_with(sampler, model, tokenizer, texts, block_size=block_length, **options)
    fixed = {"block_length": block_length, "eos_token_id": tokenizer.eos_token_id}
    return answer(model, tokenizer, texts, **fixed, **{"remasking": "low_confidence", **options})


def _steps_option(sampler: str, tokens_per_step: int | None, gen_length: int, block_length: int) -> dict[str, int]:
    """The sampler's option `steps`, where it has one."""
    counted = samplers.steps_of(sampler)
    if counted is None:
        if tokens_per_step is not None:
            raise ValueError(f"{sampler} commits what its rule allows: tokens_per_step must be None")
        return {}
    tokens_per_step = 1 if tokens_per_step is None else tokens_per_step
    _at_least_one(tokens_per_step=tokens_per_step)
    name, length = ("gen_length", gen_length) if counted == "all" else ("block_length", block_length)
    if length % tokens_per_step:
        raise ValueError(f"tokens_per_step must divide {name} {length}, got {tokens_per_step}")
    return {"steps": length // tokens_per_step}


def _check(task: str, sampler: str, **counts: int) -> None:
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    if sampler not in samplers.NAMES:
        raise ValueError(f"sampler must be one of {', '.join(samplers.NAMES)}, got {sampler!r}")
    _at_least_one(**counts)


def _at_least_one(**counts: int) -> None:
    for name, value in counts.items():
        if type(value) is not int:
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; unknown options end the program."""
    parser = argparse.ArgumentParser(
        prog="python -m dllm.demo.training.gauge", description=__doc__.partition("\n")[0], allow_abbrev=False
    )
    add = parser.add_argument
    add("--task", choices=list(TASKS), default="problems", help="the questions (default: %(default)s)")
    add("--questions", type=int, default=QUESTIONS, help="number of questions (default: %(default)s)")
    add("--model", default=None, help="a folder or a name on the Hub; default: the bundled model")
    add("--sampler", choices=samplers.NAMES, default="generate", help="default: %(default)s")
    add("--tokens-per-step", type=int, default=None, help="tokens committed per forward pass (default: 1)")
    add("--gen-length", type=int, default=GEN_LENGTH, help="tokens to generate (default: %(default)s)")
    add("--block-length", type=int, default=None, help="default: all of gen-length")
    add("--temperature", type=float, default=0.0)
    add("--cfg-scale", type=float, default=0.0)
    add("--remasking", default=None, help="of generate, mdlm, bd3lm and llada: low_confidence (default) or random")
    add("--threshold", type=float, default=None, help="of threshold (0.9) and llada2 (0.95): least probability")
    add(
        "--factor",
        type=float,
        default=None,
        help="of factor (1): the r surest with c_r >= 1 - f / (r + 1)",
    )
    add("--gamma", type=float, default=None, help="of entropy-bound (0.1): entropy bound of a step, nats")
    add(
        "--alg-temp",
        type=float,
        default=None,
        help="of dream-* except origin (0): temperature of drawing positions; 0 ranks them",
    )
    add("--top-p", type=float, default=None, help="of dream-*: nucleus sampling, probability mass")
    add("--top-k", type=int, default=None, help="of dream-*: number of most likely tokens to sample from")
    add("--seed", type=int, default=0, help="seed of the questions and the noise")
    add("--batch-size", type=int, default=BATCH_SIZE, help="questions per batch (default: %(default)s)")
    add("--impl", default="auto", help="implementation of the kernels: auto, reference, triton or cpu")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    add("--quantize", choices=["int8"], default=None, help="weights of 8 bits, approximate")
    add(
        "--compile-body",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="the model's body through torch.compile; its time is left out (default: no)",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (:mod:`dllm.exits`)."""
    options = parse(arguments)
    return exit_code("dllm.demo.training.gauge", lambda: _measure_and_print(options))


def _measure_and_print(options: argparse.Namespace) -> None:
    from dllm.demo.shipped import SHIPPED, load
    from dllm.models.sources import device_named

    settings = {name: value for name, value in vars(options).items() if value is not None}
    settings = {"block_length": settings["gen_length"]} | settings
    source, device, dtype = settings.pop("model", None), settings.pop("device"), settings.pop("dtype")
    quantized = settings.pop("quantize", None)
    sampler = settings["sampler"]
    if samplers.steps_of(sampler):
        settings.setdefault("tokens_per_step", 1)
    with usage():
        settings |= samplers.options_of(sampler, **{n: settings.pop(n) for n in samplers.OPTIONS if n in settings})
        loaded = load(SHIPPED if source is None else source, device_named(device), getattr(torch, dtype), quantized)
        score = measure(*loaded, **settings)
    _print(score, settings)
    approximate = samplers.is_approximate(sampler) or quantized is not None
    row = {"approximate": approximate, "model": source or "shipped", "device": str(device), "quantize": quantized}
    print(json.dumps({**settings, **row, "dtype": dtype} | score.row()))


def _print(score: Score, settings: dict[str, object]) -> None:
    """Print the score as text."""
    sampler, (low, high) = settings["sampler"], score.interval
    setting = [samplers.title(sampler)] if sampler != "generate" else []
    if "tokens_per_step" in settings:
        setting.append(f"{settings['tokens_per_step']} tokens per step")
    setting += [f"{name.replace('_', ' ')} {settings[name]:g}" for name in samplers.RULES if name in settings]
    print(
        f"{score.questions} questions ({settings['task']}), {', '.join(setting)}, "
        f"temperature {settings['temperature']:g}\n"
        f"  exact answers       {score.accuracy:.1%}   (95 % interval {low:.1%} to {high:.1%})\n"
        f"  forward passes      {score.forwards:.1f} per question\n"
        f"  tokens per forward  {score.tokens_per_forward:.2f}\n"
        f"  seconds             {score.seconds:.1f}   ({score.questions / score.seconds:.1f} questions a second)"
    )


if __name__ == "__main__":
    sys.exit(main())
