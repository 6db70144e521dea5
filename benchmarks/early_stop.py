"""What it saves to end a row early: forwards and CPU seconds of the bundled model's word problems.

    OMP_NUM_THREADS=1 python -m benchmarks.early_stop --questions 48

Each problem is answered three times with the same seeds: in whole rows; up to the end of the answer (EOS); up to the
end of its first sentence, a stop string. Rows are denoised one token at a time, in blocks of several sizes. The texts
of whole rows, cut afterwards, must be the same. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence

if __package__ in (None, ""):
    sys.exit("run it as python -m benchmarks.early_stop, from the repository's root")

from benchmarks import report
from dllm.core.eval.generation import Generated, GenerationRequest, generate_requests
from dllm.core.samplers import MDLMSampler, MDLMSamplerConfig
from dllm.demo.shipped import load_shipped
from dllm.demo.training.gauge import GEN_LENGTH
from dllm.demo.training.questions import TASKS
from dllm.exits import exit_code
from dllm.tools.command import at_least_one

SENTENCE = (". ",)
CASES = {  # stop strings, settings of the requests
    "whole rows": ((), {"stop_at_eos": False}),
    "EOS": ((), {}),
    "EOS, first sentence": (SENTENCE, {}),
}


class WholeRows(MDLMSampler):
    """MDLMSampler that ends no row early."""

    def sample_many(self, *args: object, finished: object = None, **options: object) -> object:
        """As `MDLMSampler.sample_many`, which is not told when a row is finished."""
        return super().sample_many(*args, **options)


def measure(sampler: MDLMSampler, case: str, block_size: int, questions: int, batch_size: int) -> list[Generated]:
    """The answers of one case."""
    until, overrides = CASES[case]
    asked = TASKS["problems"](questions, 0)
    config = MDLMSamplerConfig(max_new_tokens=GEN_LENGTH, steps=GEN_LENGTH, block_size=block_size)
    requests = [
        GenerationRequest(_prompt(sampler.tokenizer, question.text), until, seed, overrides)
        for seed, question in enumerate(asked)
    ]
    return generate_requests(sampler, requests, config, batch_size=batch_size)


def _prompt(tokenizer: object, question: str) -> list[int]:
    messages = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def compare(block_sizes: Sequence[int], questions: int, batch_size: int) -> list[dict[str, object]]:
    """A row for each block size and case."""
    model, tokenizer = load_shipped()
    rows = []
    for size in block_sizes:
        texts = {}
        for case in CASES:
            sampler = (WholeRows if case == "whole rows" else MDLMSampler)(model, tokenizer)
            began, wall = time.process_time(), time.perf_counter()
            done = measure(sampler, case, size, questions, batch_size)
            cpu_seconds, seconds = time.process_time() - began, time.perf_counter() - wall
            texts[case] = [one.text for one in done]
            forwards = sum(one.forwards for one in done) / questions
            row = {"block_size": size, "case": case, "forwards": round(forwards, 2)}
            rows.append(row | {"cpu_seconds": round(cpu_seconds, 2), "seconds": round(seconds, 2)})
        first = [text.partition(SENTENCE[0])[0] for text in texts["whole rows"]]
        if texts["EOS"] != texts["whole rows"] or texts["EOS, first sentence"] != first:
            raise RuntimeError("texts must not depend on when a row ends, got others")
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (:mod:`dllm.exits`)."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--questions", type=at_least_one, default=48)
    parser.add_argument("--batch-size", type=at_least_one, default=16)
    parser.add_argument("--block-size", type=at_least_one, nargs="+", default=[64, 16, 8])
    options = parser.parse_args(arguments)
    return exit_code("benchmarks.early_stop", lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    rows = compare(options.block_size, options.questions, options.batch_size)
    columns = tuple(rows[0])
    report.print_table("Rows that end early", columns, [[str(row[name]) for name in columns] for row in rows])
    print(json.dumps({"questions": options.questions, "batch_size": options.batch_size, "rows": rows}))


if __name__ == "__main__":
    sys.exit(main())
