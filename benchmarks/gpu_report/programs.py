"""The sections that call benchmark programs: sampling, cached decoding, training. A call is one case, with one row."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import io
import shlex
import tempfile
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import torch

from benchmarks import models, report, sampler_throughput
from benchmarks.gpu_report import state
from benchmarks.gpu_report.items import Item, Session

AT_ONCE = 1


class Call(NamedTuple):
    """A program of benchmarks/ and its arguments. seconds: reckoned."""

    name: str
    program: str
    arguments: str
    seconds: float


SAMPLE = "--dtype bfloat16 --repeats 3 --providers card ours-eager ours-graph"
DREAM = ("dream-origin", "dream-maskgit_plus", "dream-topk_margin", "dream-entropy")
SAMPLERS = ("mdlm", "llada", *DREAM, "threshold", "factor", "llada2", "entropy-bound")
SHORT = "--model modernbert-base --gen-length 32 --block-length 32 --repeats 2 --dtype bfloat16"
# random weights give low probabilities, so every program commits one token per forward pass
CACHED_SAMPLERS = ("fast-dllm-dual", "fast-dllm-prefix")
FAST_DLLM = "--model llada-8b --prompt-length 128 --gen-length 64 --block-length 32"


def _sampling(model: str, batch: int, temperature: int, seconds: float, more: str = "") -> Call:
    arguments = f"--model {model} --batch {batch} --temperature {temperature} {SAMPLE}"
    name = f"{model}, batch {batch}, T {temperature}"
    return Call(name, "sampler_throughput", f"{arguments} {more}".strip(), seconds)


def _sampler(name: str) -> Call:
    steps = " --steps 16" if sampler_throughput.takes(name, "steps") else ""
    return Call(name, "sampler_throughput", f"--sampler {name} {SHORT}{steps} --providers card ours-graph", 5)


CHECKED = "--check-noise"
# the most important first; calls of one model in a row share it
CALLS: dict[str, tuple[Call, ...]] = {
    "sampling": (
        _sampling("modernbert-large", 1, 0, 18),
        _sampling("modernbert-large", 1, 1, 20, CHECKED),
        _sampling("llada-8b", 1, 0, 25, "--steps 32"),
        _sampling("llada-8b", 1, 1, 40, f"--steps 32 {CHECKED}"),
        _sampling("modernbert-large", 8, 0, 10, "--steps 16"),
        _sampling("modernbert-large", 64, 0, 15, "--steps 16"),
    ),
    "training": (
        Call(
            "modernbert-large, 16 x 1024",
            "training_step",
            "--model modernbert-large --batch 16 --length 1024 --dtype bfloat16 --repeats 5 "
            "--providers full ours indexed patched",
            30,
        ),
    ),
    "sampling-more": (
        _sampling("llada-8b", 8, 0, 20, "--steps 8"),
        _sampling("llada-8b", 8, 1, 30, "--steps 8"),
        _sampling("dream-7b", 1, 0, 25, "--steps 32"),
        _sampling("dream-7b", 1, 1, 40, f"--steps 32 {CHECKED}"),
        _sampling("dream-7b", 8, 0, 15, "--steps 8"),
        _sampling("dream-7b", 8, 1, 25, "--steps 8"),
        _sampling("modernbert-large", 8, 1, 12, "--steps 16"),
        _sampling("modernbert-large", 64, 1, 18, "--steps 16"),
        _sampling("modernbert-base", 1, 0, 12),
        _sampling("modernbert-base", 1, 1, 16, CHECKED),
        _sampling("modernbert-base", 8, 0, 7, "--steps 16"),
        _sampling("modernbert-base", 64, 0, 10, "--steps 16"),
    ),
    "samplers": tuple(map(_sampler, SAMPLERS)),
    "cached": (
        *(Call(name, "sampler_throughput", f"--sampler {name} {FAST_DLLM} {SAMPLE}", 20) for name in CACHED_SAMPLERS),
        Call(
            "cached_decoding, llada-8b",
            "cached_decoding",
            "--model llada-8b --dtype bfloat16 --prompt 128 --new 256 --block 32 --steps 64 --repeats 2",
            30,
        ),
    ),
    "sampling-compiled": (
        Call(
            "modernbert-large, compiled",
            "sampler_throughput",
            "--model modernbert-large --dtype bfloat16 --repeats 3 "
            "--providers card card-reduce-overhead ours-graph ours-compiled ours-graph-compiled",
            150,  # each compiles the body cold, by the reckoning of dllm.fast.compiled.decision in 60 s at most
        ),
    ),
}
# options that replace the sizes in a dry run: of two that are given the last one holds
TINY = {
    "sampler_throughput": "--batch 2 --prompt-length 6 --gen-length 4 --block-length 4 --repeats 1 --dtype float32 "
    "--providers card ours-eager",
    "cached_decoding": "--layers 2 --hidden 32 --heads 2 --vocab 97 --prompt 5 --new 8 --block 4 --steps 4 --repeats 1 "
    "--dtype float32",
    "training_step": "--batch 2 --length 16 --repeats 1 --dtype float32 --attention eager",
}


class LastModel:
    """Loads models as :func:`benchmarks.models.load` does, and keeps the last one for the next call that wants it."""

    def __init__(self):
        self.key: object = None
        self.loaded: models.Loaded | None = None

    def load(self, name: str, dtype: torch.dtype, device: torch.device, **how: object) -> models.Loaded:
        """The model, the kept one where name and arguments are the same."""
        key = (name, dtype, str(device), sorted(how.items()))
        if key != self.key:
            self.free()
            self.loaded = models.load(name, dtype, device, **how)
            self.key = key
        return self.loaded

    def free(self) -> None:
        """Let the model go: two may not fit into memory."""
        self.key = self.loaded = None
        gc.collect()


def prepare() -> None:
    """Nothing: programs begin by themselves."""


def items(section: str, *, dry: bool) -> list[Item]:
    """The section's calls; they share their models."""
    last = LastModel()
    return [Item(call.name, call.seconds, functools.partial(run, call, last)) for call in CALLS[section]]


def run(call: Call, last: LastModel, session: Session) -> list[str]:
    """Make a call; the errors in its row, or its exit status where it wrote none."""
    if session.dry:
        words = rehearsed(call)
        same = (call.program, str(vars(_program(call.program).parse(words)) | {"model": None}))
        if same not in session.rehearsed:
            rehearse(call.program, words)
        session.rehearsed.add(same)
        return []
    before = set(state.row_files(session.folder))
    budget = max(
        session.seconds_left / 2, 1
    )  # for its rounds; runs by part and the check of the tokens come after them
    words = [*shlex.split(call.arguments), "--budget", f"{budget:.0f}"]
    status = made(call.program, [*words, "--out", str(session.folder)], last)
    rows = [report.read_row(path) for path in state.row_files(session.folder) if path not in before]
    wrong = [f"{name}: {error}" for row in rows for name, error in errors_of(row)]
    return wrong or ([f"exit status {status}"] if status or not rows else [])


def _program(name: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.{name}")


def made(program: str, words: list[str], last: LastModel) -> object:
    """Call a program; its exit status."""
    main = _program(program).main
    if program == "sampler_throughput":
        main = functools.partial(main, load=last.load)
    else:
        last.free()
    try:
        return main(words)
    except SystemExit as error:
        return error.code


def errors_of(row: dict) -> list[tuple[str, str]]:
    """What failed in a row: the programs, or the whole case, with the reasons."""
    wrong = [(name, result["error"]) for name, result in row.get("providers", {}).items() if "error" in result]
    return wrong + ([("all", row["error"])] if "error" in row else [])


def rehearsed(call: Call) -> list[str]:
    """The arguments of a call in a dry run: the same options, but tiny sizes and the CPU."""
    words = shlex.split(call.arguments)
    if call.program == "cached_decoding":  # its model is either a preset or has the sizes that are given
        preset = words.index("--model")
        del words[preset : preset + 2]
    words += [*shlex.split(TINY[call.program]), "--device", "cpu"]
    if call.program == "sampler_throughput":
        words = [word for word in words if word != CHECKED]
        named = sampler_throughput.parse(words).sampler
        words += ["--steps", "4"] if any(sampler_throughput.takes(name, "steps") for name in named) else []
    return words


def rehearse(program: str, words: list[str]) -> None:
    """Run a program on a tiny model and drop its rows and output.

    Raises:
        RuntimeError: the program failed; the message has the end of its output.
    """
    causal = any(name in words for name in CACHED_SAMPLERS)
    with tempfile.TemporaryDirectory() as folder, tiny_model(causal=causal) as model:
        words = [*words, "--out", folder, *([] if program == "cached_decoding" else ["--model", model])]
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = made(program, words, LastModel())
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
