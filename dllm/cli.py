"""The command line: `dllm generate`, `chat`, `serve`, `train`, `eval` and `doctor`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from dllm.exits import TRACEBACK, ends_at_once, exit_code

Command = Callable[[argparse.Namespace, Sequence[str]], int]  # of the options, and words that it parses itself


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (:mod:`dllm.exits`).

    Example:
        >>> main(["--version"])
        Traceback (most recent call last):
        ...
        SystemExit: 0
    """
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown and options.command not in ("train", "eval"):
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    program = f"dllm {options.command}"
    return exit_code(program, lambda: _loaded(program, options.load)(options, unknown))


def _loaded(program: str, load: Callable[[], Command]) -> Command:
    """A command, imported."""
    with ends_at_once(program):
        return load()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dllm",
        description="Masked-diffusion language models, fast and exact.",
        epilog=f"Errors are printed in one line, and with their traceback if {TRACEBACK}=1 is set in the environment. "
        "Exit codes: 0 done, 1 failed, 2 wrong command line, 130 Ctrl-C, 143 SIGTERM, 141 stdout closed by its reader.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    _add_generate(commands)
    _add_chat(commands)
    _add_serve(commands)
    # the command parses its settings itself, from the arguments that this parser does not know
    train = commands.add_parser(
        "train",
        add_help=False,
        allow_abbrev=False,
        help="fine-tune or pre-train, configured by a YAML file or by flags",
    )
    train.add_argument("--dry-run", action="store_true")
    train.add_argument("--help", "-h", action="store_true")
    train.set_defaults(load=_train)
    # so does this one
    evaluation = commands.add_parser(
        "eval",
        add_help=False,
        allow_abbrev=False,
        help="evaluate a model on tasks of lm-evaluation-harness",
    )
    evaluation.add_argument("--help", "-h", action="store_true")
    evaluation.set_defaults(load=_eval)
    doctor = commands.add_parser(
        "doctor",
        help="check the installation: devices, chosen implementations, self-tests",
        description="Print versions, devices, the implementation of each operation with the reason, and self-tests.",
    )
    doctor.add_argument("--json", action="store_true", help="print the report as JSON")
    doctor.set_defaults(load=_doctor)
    return parser


def _add_generate(commands: argparse._SubParsersAction) -> None:
    generate = commands.add_parser(
        "generate",
        help="answer a question, and show the denoising steps",
        description="Answer a question by masked diffusion. The answer goes to stdout, everything else to stderr.",
    )
    add = generate.add_argument
    add("prompt", nargs="?", default=None, help="the question; - reads it from stdin; none with --dry-run")
    add("--raw", action="store_true", help="continue the text, without a chat template, as base models do")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="dtype of the weights (default: %(default)s)",
    )
    _add_sampling(generate, remasking="low_confidence, random or, of BERT models, none")
    add(
        "--dry-run",
        action="store_true",
        help="load and generate nothing: print parameters, memory, FLOPs and bytes read, for which a config.json is "
        "enough, with each KV cache that the samplers offer",
    )
    add("--prompt-length", type=int, default=None, help="with --dry-run: tokens of the question (default: 128)")
    add("--batch-size", type=int, default=None, help="with --dry-run: rows sampled at once (default: 1)")
    generate.set_defaults(load=_generate)


def _add_chat(commands: argparse._SubParsersAction) -> None:
    chat = commands.add_parser(
        "chat",
        help="chat with a model in the terminal, and show the denoising steps",
        description="Chat with a model over several turns. Input can be piped; a piped stdout gets the answers only.",
    )
    add = chat.add_argument
    add("--system", default=None, help="a system message before the first question")
    add("--raw", action="store_true", help="continue each line independently, without a chat template")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="dtype of the weights (default: float32 on a CPU, else bfloat16)",
    )
    _add_sampling(chat, remasking="low_confidence or random")
    chat.set_defaults(load=_chat)


def _add_serve(commands: argparse._SubParsersAction) -> None:
    serve = commands.add_parser(
        "serve",
        help="serve a model over HTTP, with OpenAI's API",
        description="Serve a model over HTTP, with OpenAI's API and steps to watch. TERM or Ctrl-C ends it.",
    )
    add = serve.add_argument
    add("model", nargs="?", default=None, help="a folder, or a name on the Hugging Face Hub (default: the bundled one)")
    add("--name", default=None, help="the name under which it is served (default: the last part of MODEL)")
    add("--host", default="127.0.0.1", help="the address to listen at (default: %(default)s)")
    add("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    add("--api-key", action="append", default=[], help="a key that requests must bring; can be given several times")
    add("--api-key-file", default=None, metavar="FILE", help="keys, one a line; others come from DLLM_API_KEY")
    add("--insecure", action="store_true", help="listen at an address other than loopback without a key")
    add("--allowed-host", action="append", default=[], metavar="NAME", help="a host name that requests may call it by")
    add("--no-page", dest="page", action="store_false", help="do not serve the chat page at /")
    add(
        "--rows",
        type=int,
        default=None,
        help="rows that run together, at most; beside a KV cache always 1 (default: 16 on a CPU, else 64)",
    )
    add("--max-queue", type=int, default=64, help="rows that wait; more get 503 (default: %(default)s)")
    add("--max-in-flight", type=int, default=None, help="requests of one key at a time, at most (default: no limit)")
    add("--timeout", type=float, default=120.0, help="seconds of a request, queue included (default: %(default)s)")
    add("--grace", type=float, default=20.0, help="seconds to finish requests after TERM (default: %(default)s)")
    add(
        "--width",
        choices=("grid", "tight"),
        default="grid",
        help="of rows that do not run packed, as they do on a CPU with AVX-512. grid: a request's tokens depend on its "
        "body alone; tight: faster, up to rounding (default: %(default)s)",
    )
    add(
        "--max-length",
        type=int,
        default=None,
        help="tokens of a prompt and its answer (default: the model's positions)",
    )
    add("--setting", action="append", default=[], metavar="NAME=VALUE", help="another setting of the sampler")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="dtype of the weights (default: float32 on a CPU, else bfloat16)",
    )
    _add_sampler(serve, remasking="low_confidence or random", length=128)
    serve.set_defaults(load=_serve, gen_length=128)


def _add_sampling(command: argparse.ArgumentParser, *, remasking: str) -> None:
    """Add the options of the model, its sampler and the view."""
    add = command.add_argument
    add("--model", default=None, help="a folder, or a name on the Hugging Face Hub (default: the bundled model)")
    _add_sampler(command, remasking=remasking, length=64)
    add("--seed", type=int, default=None, help="seed of the noise (default: a new one each time)")
    add("--live", action=argparse.BooleanOptionalAction, default=None, help="show the steps (default: on a terminal)")


def _add_sampler(command: argparse.ArgumentParser, *, remasking: str, length: int) -> None:
    """Add the options of the sampler and of how the model runs. Those that are not given are the family's."""
    add = command.add_argument
    add(
        "--sampler",
        default=None,
        help="mdlm, llada, llada2, llada2.1, dream, ... (default: that of the model's family)",
    )
    add("--quantize", choices=("int8",), default=None, help="weights of 8 bits: faster on a CPU, approximate")
    add(
        "--steps",
        type=int,
        default=None,
        help="denoising steps, of a block for LLaDA 2, of a canvas for DiffusionGemma (default: one per token, or the "
        "model's own)",
    )
    add(
        "--gen-length",
        type=int,
        default=None,
        help=f"maximum number of tokens of an answer (default: {length}, or the model's own for DiffusionGemma)",
    )
    add("--block-length", type=int, default=None, help="tokens per block (default: the family's, else all)")
    add("--temperature", type=float, default=None, help="0 takes the most likely token (default: the family's, else 0)")
    add("--cfg-scale", type=float, default=None, help="scale of classifier-free guidance; 0: off (default: 0)")
    add("--t-max", type=float, default=None, help="temperature of a canvas's first step, for DiffusionGemma")
    add("--t-min", type=float, default=None, help="temperature that its steps fall to (default: the model's own, both)")
    add("--entropy-bound", type=float, default=None, help="how unsure its accepted tokens may be together, in nats")
    add("--remasking", default=None, help=f"{remasking} (default: low_confidence where the sampler has a choice)")
    add("--device", default=None, help="cpu, cuda, ... (default: a GPU where there is one)")
    add(
        "--compile-body",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="the model's body through torch.compile (default: where it pays for the number of forward passes)",
    )


class _Version(argparse.Action):
    """The option --version; imports the package only when it is used."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import dllm

        print(f"dllm {dllm.__version__}")
        parser.exit()


def _generate() -> Command:
    from dllm.demo import generate

    return lambda options, _: generate.main(options)


def _chat() -> Command:
    from dllm.chat import program
    from dllm.demo.shipped import load_shipped

    return lambda options, _: program.main(options, load_shipped)


def _serve() -> Command:
    from dllm.demo.shipped import load_shipped
    from dllm.serve import command

    def serve(options: argparse.Namespace, _: Sequence[str]) -> int:
        # uvicorn has handlers of its own while it serves, and raises signals after that
        with ends_at_once("dllm serve"):
            return command.main(options, load_shipped)

    return serve


def _train() -> Command:
    from dllm import training_command

    return training_command.main


def _eval() -> Command:
    from dllm.core.eval import command

    return lambda options, words: command.main(["--help"] if options.help else words)


def _doctor() -> Command:
    from dllm import doctor

    return lambda options, _: doctor.main(as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
