"""The sections that call benchmark programs: sampling, cached decoding, training."""

from __future__ import annotations

import contextlib
import importlib
import io
import shlex
import tempfile
import traceback
from collections.abc import Callable, Iterator
from typing import NamedTuple

from benchmarks import report
from benchmarks.gpu_report.run import Run
from benchmarks.gpu_report.words import without


class Call(NamedTuple):
    """A program of benchmarks/ and its arguments."""

    program: str
    arguments: str


SAMPLE = "--dtype bfloat16 --providers card ours-eager ours-graph"
DREAM = "dream-origin dream-maskgit_plus dream-topk_margin dream-entropy"
SAMPLERS = f"mdlm llada {DREAM} threshold factor llada2 entropy-bound"
# random weights give low probabilities, so every program commits one token per forward pass
CACHED_SAMPLERS = "fast-dllm-dual fast-dllm-prefix"
FAST_DLLM = "--model llada-8b --prompt-length 128 --gen-length 64 --block-length 32 --repeats 2"
CACHED = "--model llada-8b --dtype bfloat16 --prompt 128 --new 256 --block 32 --steps 64 --repeats 2"
STEP = "--model modernbert-large --batch 16 --length 1024 --dtype bfloat16"
# the most important first; a quick report makes only the first call of each section
CALLS: dict[str, tuple[Call, ...]] = {
    "sampling-modernbert": (
        Call("sampler_throughput", f"--model modernbert-large --temperature 0 1 --check-noise --repeats 3 {SAMPLE}"),
        Call("sampler_throughput", f"--model modernbert-large --batch 8 64 --temperature 0 1 --steps 16 {SAMPLE}"),
        Call("sampler_throughput", f"--model modernbert-base --temperature 0 1 --check-noise --repeats 3 {SAMPLE}"),
        Call("sampler_throughput", f"--model modernbert-base --batch 8 64 --temperature 0 1 --steps 16 {SAMPLE}"),
    ),
    "sampling-8b": (
        Call("sampler_throughput", f"--model llada-8b --temperature 0 1 --check-noise --steps 32 {SAMPLE}"),
        Call("sampler_throughput", f"--model llada-8b --batch 8 --temperature 0 1 --steps 8 {SAMPLE}"),
        Call("sampler_throughput", f"--model dream-7b --temperature 0 1 --check-noise --steps 32 {SAMPLE}"),
        Call("sampler_throughput", f"--model dream-7b --batch 8 --temperature 0 1 --steps 8 {SAMPLE}"),
    ),
    "sampling-compiled": (
        Call(
            "sampler_throughput",
            "--model modernbert-large --dtype bfloat16 --repeats 3 --providers card card-reduce-overhead ours-graph",
        ),
    ),
    "sampling-samplers": (
        Call(
            "sampler_throughput",
            f"--model modernbert-base --sampler {SAMPLERS} --gen-length 32 --block-length 32 --steps 16 --repeats 2 "
            "--dtype bfloat16 --providers card ours-graph",
        ),
    ),
    "sampling-cached": (
        Call("sampler_throughput", f"--sampler {CACHED_SAMPLERS} {FAST_DLLM} {SAMPLE}"),
        Call("cached_decoding", CACHED),
    ),
    "training": (
        Call("training_step", f"{STEP} --providers full ours --repeats 5"),
        Call("training_step", f"{STEP} --providers indexed patched --repeats 5"),
    ),
}
# options that replace the sizes in a dry run
TINY = {
    "sampler_throughput": "--batch 2 --prompt-length 6 --gen-length 4 --block-length 4 --repeats 1 --dtype float32",
    "cached_decoding": "--layers 2 --hidden 32 --heads 2 --vocab 97 --prompt 5 --new 8 --block 4 --steps 4 --repeats 1 "
    "--dtype float32",
    "training_step": "--batch 2 --length 16 --repeats 1 --dtype float32 --attention eager "
    "--providers full indexed patched ours",
}
QUICKLY = {"sampler_throughput": "--repeats 1", "cached_decoding": "--repeats 1", "training_step": "--repeats 2"}
NOT_STARTED = "TimeoutError"  # the error of a case that a program had no time for


def run(run: Run) -> None:
    """Make the section's calls one after the other, each with its share of the remaining time."""
    calls, before = CALLS[run.section.name], []
    calls = calls[:1] if run.quick else calls
    for number, call in enumerate(calls):
        if not run.may_measure(f"{call.program} {call.arguments}"):
            continue
        if run.dry:
            words = rehearsed(call)
            if words not in before:
                rehearse(call.program, words)
            before.append(words)
            print(f"{call.program} {call.arguments}: ran on a tiny model, not timed", flush=True)
            continue
        words = shlex.split(f"{call.arguments} {QUICKLY[call.program]}" if run.quick else call.arguments)
        words += ["--budget", f"{max(run.seconds_left / (len(calls) - number), 1):.0f}"]
        why_not = attempt(call.program, [*words, "--out", str(run.folder)])
        wrong = settle(run)
        if why_not and not wrong and not run.left_out:
            run.failures.append(f"{call.program} {call.arguments}: {why_not}")


def attempt(program: str, words: list[str]) -> str:
    """Run a program; the reason of a failure, empty for a success. Nothing is raised, so that later calls are made."""
    try:
        status = main_of(program)(words)
    except SystemExit as error:
        status = error.code
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return f"exit status {status}" if status else ""


def main_of(program: str) -> Callable[[list[str]], int]:
    """The `main` of a program."""
    return importlib.import_module(f"benchmarks.{program}").main


def rehearsed(call: Call) -> list[str]:
    """The arguments of a call in a dry run: the same options, but tiny sizes, a tiny model and the CPU."""
    words, tiny = without(shlex.split(call.arguments), "--model"), shlex.split(TINY[call.program])
    for option in tiny:
        words = without(words, option) if option.startswith("--") else words
    words += tiny
    if call.program == "sampler_throughput":
        words = without(without(words, "--check-noise", values=False), "--providers")
        words = [*without(words, "--steps"), "--providers", "card", "ours-eager"]
        words += [] if CACHED_SAMPLERS in call.arguments else ["--steps", "4"]
    return [*words, "--device", "cpu"]


def rehearse(program: str, words: list[str]) -> None:
    """Run a program on a tiny model and drop its rows and output.

    Raises:
        RuntimeError: the program failed; the message has the end of its output.
    """
    with tempfile.TemporaryDirectory() as folder, tiny_model(causal=CACHED_SAMPLERS in " ".join(words)) as model:
        words = [*words, "--out", folder, *([] if program == "cached_decoding" else ["--model", model])]
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = main_of(program)(words)
        if status:
            raise RuntimeError(f"{program} ended with status {status}: {said.getvalue().strip()[-500:]}")


@contextlib.contextmanager
def tiny_model(*, causal: bool) -> Iterator[str]:
    """A folder with a BERT, or a causal Llama, of two tiny layers; its config names the mask token."""
    import transformers

    size = dict(vocab_size=97, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    size |= dict(max_position_embeddings=64, pad_token_id=0)
    kind = "Llama" if causal else "Bert"
    config = getattr(transformers, f"{kind}Config")(**size, mask_token_id=3)
    model = getattr(transformers, f"{kind}For{'CausalLM' if causal else 'MaskedLM'}")(config)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        yield folder


def settle(run: Run) -> list[str]:
    """Delete the rows of cases that were not started, note them as left out, and return the failures of the others."""
    wrong = []
    for path in sorted(run.folder.glob("*-*-*.json")):
        row = report.read_row(path)
        if str(row.get("error", "")).startswith(NOT_STARTED):
            run.left_out.append(path.stem.partition("-")[2])
            path.unlink()
            continue
        errors = {name: result["error"] for name, result in row.get("providers", {}).items() if "error" in result}
        if "error" in row:
            errors["all"] = row["error"]
        wrong += [f"{path.stem.partition('-')[2]}: {name}: {error}" for name, error in errors.items()]
    run.failures += [each for each in wrong if each not in run.failures]
    return wrong
