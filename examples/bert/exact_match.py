"""Ask a fine-tuned BERT the questions it was taught, and count the answers that are right token for token.

    python examples/bert/exact_match.py --model_name_or_path models/minilm-chat/checkpoint-final \
        --dataset_args data/dialogues --max_length 48

What is asked: `questions` conversations of one split, drawn by `seed` among those of at most `max_length` tokens. An
answer is generated at temperature 0, one token per step, up to the end of sequence; it counts if it is the data's, the
end of the turn included. The first few go to stdout, then the count, and a JSON object on the last line.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from typing import Any

import torch

import dllm
from dllm.demo.training.gauge import Score
from dllm.exits import exit_code
from dllm.fast import Stats, generate

BATCH_SIZE = 25
SHOWN = 8
Tokens = list[int]


def parse() -> argparse.Namespace:
    """The command line; unknown options end the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--dataset_args", required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--max_length", type=int, default=48, help="most tokens of a conversation that is asked")
    parser.add_argument("--gen_length", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0, help="chooses the questions")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def choose(options: argparse.Namespace, tokenizer: Any) -> list[tuple[Tokens, Tokens]]:
    """Prompt and answer of the conversations that are asked."""
    rows = dllm.data.load_sft_dataset(options.dataset_args)[options.split]
    samples = [dllm.utils.default_sft_map_fn(row, tokenizer=tokenizer) for row in rows]
    short = [sample for sample in samples if len(sample["input_ids"]) <= options.max_length]
    cut = [
        (sample["input_ids"][: sample["prompt_len"]], sample["input_ids"][sample["prompt_len"] :]) for sample in short
    ]
    fitting = [(prompt, answer) for prompt, answer in cut if len(answer) <= options.gen_length]
    if len(fitting) < options.questions:
        raise SystemExit(
            f"--questions must be at most the {len(fitting)} that are short enough, got {options.questions}"
        )
    return random.Random(options.seed).sample(fitting, options.questions)


def ask(model: Any, tokenizer: Any, prompts: list[Tokens], gen_length: int) -> tuple[list[Tokens], Stats]:
    """The answers to prompts, each up to its end of sequence, and what they cost."""
    padded = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
    canvas, stats = generate(
        model,
        padded["input_ids"],
        attention_mask=padded["attention_mask"],
        steps=gen_length,
        gen_length=gen_length,
        block_length=gen_length,
        remasking="low_confidence",
        eos_token_id=tokenizer.eos_token_id,
        tokenizer=tokenizer,
        return_stats=True,
    )
    rows = canvas[:, padded["input_ids"].shape[1] :].tolist()
    return [row[: [*row, tokenizer.eos_token_id].index(tokenizer.eos_token_id)] for row in rows], stats


def main() -> None:
    """Ask, compare, print."""
    options = parse()
    source = options.model_name_or_path
    model = dllm.utils.get_model(model_name_or_path=source, dtype="float32").eval().to(options.device)
    tokenizer = dllm.utils.get_tokenizer(model_name_or_path=source)
    questions = choose(options, tokenizer)
    right, forwards, tokens, started = [], 0, 0, time.perf_counter()
    for first in range(0, len(questions), BATCH_SIZE):
        prompts, answers = zip(*questions[first : first + BATCH_SIZE], strict=True)
        replies, stats = ask(model, tokenizer, list(prompts), options.gen_length)
        forwards, tokens = forwards + stats.forwards * len(prompts), tokens + stats.useful_tokens
        right += [reply == answer for reply, answer in zip(replies, answers, strict=True)]
        for prompt, reply, good in list(zip(prompts, replies, right[first:], strict=True))[: max(SHOWN - first, 0)]:
            print("right" if good else "wrong", "|", tokenizer.decode(prompt), tokenizer.decode(reply))
    count = len(questions)
    score = Score(count, sum(right), forwards / count, tokens / count, time.perf_counter() - started)
    low, high = score.interval
    print(f"{score.correct} of {count} exact: {score.accuracy:.1%} (95 % interval {low:.1%} to {high:.1%})")
    print(json.dumps(vars(options) | score.row()))


if __name__ == "__main__":
    sys.exit(exit_code("exact_match.py", main))
