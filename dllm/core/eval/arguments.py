"""The command line of an evaluation: that of `dllm eval`, and that of dLLM 0.1 and `lm_eval run`, by one parser."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_USAGE = "dllm eval MODEL (--tasks TASK[,TASK...] | --published) [options] [--SETTING VALUE ...]"
_EPILOG = """
settings: any field of the configs of evaluation, model, sampler and likelihood, such as --max-new-tokens 256
--steps 256 --block-size 32 --temperature 0.2 --cfg-scale 0.5 --mc-num 128 --likelihood as-published --dtype bfloat16.
They can be given as --model-args max_new_tokens=256,steps=256 as well. docs/evaluation.md explains them.

several processes: torchrun --nproc-per-node 8 --module dllm.core.eval ...
or accelerate launch --module dllm.core.eval ...

exit code: 0, or 1 if a task failed (the others are evaluated), 2 if the command line is wrong.
"""


def parser() -> argparse.ArgumentParser:
    """The parser. Options can be written with dashes or with underscores."""
    made = argparse.ArgumentParser(
        prog="dllm eval",
        usage=_USAGE,
        description="Evaluate a masked diffusion model on tasks of lm-evaluation-harness.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    def add(*names: str, **options: Any) -> None:
        underscored = [name.replace("-", "_").replace("__", "--", 1) for name in names if "-" in name[2:]]
        made.add_argument(*names, *underscored, **options)

    add("checkpoint", nargs="?", metavar="MODEL", help="a folder, or a name on the Hugging Face Hub")
    add("--tasks", "-t", nargs="+", default=[], metavar="TASK", help="names, also mmlu_*, or YAML files")
    add("--model", "-M", metavar="NAME", help="llada, dream, bert, ... (default: by the checkpoint's family)")
    add("--model-args", "-a", nargs="+", default=[], metavar="NAME=VALUE", help="settings, and pretrained=MODEL")
    add("--published", nargs="?", const="slurm", metavar="ERA",
        help="the settings of the published runs of that era; all of its tasks, unless --tasks names some")  # fmt: skip
    add("--instruct", action="store_true", help="with --published: those of instruct models")
    add("--num-fewshot", "-f", type=int, metavar="N", help="examples in the prompt (default: as the task says)")
    add("--batch-size", "-b", metavar="N", help="rows that run together (default: the model's)")
    add("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    add("--limit", "-L", type=float, metavar="N", help="documents of each task, or a share of them below 1")
    add("--apply-chat-template", nargs="?", const="true", metavar="BOOL", help="prompts are chats")
    add("--fewshot-as-multiturn", nargs="?", const="true", metavar="BOOL", help="examples are turns")
    add("--system-instruction", metavar="TEXT", help="a system message")
    add("--gen-kwargs", nargs="+", default=[], metavar="NAME=VALUE", help="replace the task's settings of generation")
    add("--output-path", "--output", "-o", metavar="DIR", help="for results, plot and journal: a killed run continues")
    add(
        "--log-samples", "-s", nargs="?", const="true", default="false", metavar="BOOL", help="keep prompts and answers"
    )
    add("--use-cache", "-c", metavar="FILE", help="lm-evaluation-harness's cache of answers")
    add("--include-path", nargs="+", default=[], metavar="DIR", help="more tasks")
    add(
        "--seed",
        metavar="N",
        help="of Python, numpy, torch, examples (default: 0,1234,1234,1234; with --published theirs)",
    )
    add("--trust-remote-code", action="store_true", help="run code that comes with the model")
    add("--confirm-run-unsafe-code", nargs="?", const="true", default="false", metavar="BOOL",
        help="tasks may run generated programs")  # fmt: skip
    add("--dry-run", action="store_true", help="check the tasks, and estimate time and memory from 20 requests")
    return made


def read(words: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The options, and the settings that the command line gives by their own names.

    Raises:
        ValueError: a word that is neither an option nor its value.
        SystemExit: the parser's own errors, and `--help`.

    Example:
        >>> options, settings = read("some/model --tasks arc_easy,piqa --num_fewshot 5 --steps 64".split())
        >>> options.tasks, options.num_fewshot, settings
        (['arc_easy', 'piqa'], 5, {'steps': '64', 'pretrained': 'some/model'})
    """
    options, others = parser().parse_known_args(list(words))
    options.tasks = [name for word in options.tasks for name in _split(word) if name]
    for name in ("apply_chat_template", "fewshot_as_multiturn", "log_samples", "confirm_run_unsafe_code"):
        if (word := getattr(options, name)) is not None:
            setattr(options, name, _bool(name, word))
    options.seed = None if options.seed is None else _seeds(options.seed)
    settings = pairs("model_args", options.model_args)
    for name, value in _flags(others).items():
        if name in settings:
            raise ValueError(f"{name} must be given once, got it in model_args and as --{name}")
        settings[name] = value
    given = {"pretrained": options.checkpoint, "batch_size": options.batch_size, "device": options.device}
    for name, value in given.items():
        if value is not None:
            if name in settings:
                raise ValueError(f"{name} must be given once, got {value} and {settings[name]}")
            settings[name] = value
    if options.trust_remote_code:
        settings["trust_remote_code"] = True
    return options, settings


def pairs(what: str, words: Sequence[str]) -> dict[str, Any]:
    """Settings written as `name=value,name=value`, in one word or several, or as a JSON object.

    Raises:
        ValueError: a word is neither, or a name is given twice.

    Example:
        >>> pairs("model_args", ["pretrained=some/model,steps=64", "suppress_tokens=[1;2]"])
        {'pretrained': 'some/model', 'steps': '64', 'suppress_tokens': '[1;2]'}
    """
    if len(words) == 1 and words[0].lstrip().startswith("{"):
        try:
            return json.loads(words[0])
        except json.JSONDecodeError as error:
            raise ValueError(f"{what} must be name=value,name=value or a JSON object, got {words[0]!r}") from error
    found = {}
    for pair in (pair for word in words for pair in _split(word) if pair):
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise ValueError(f"{what} must be name=value,name=value, got {pair!r}")
        if name in found:
            raise ValueError(f"{what} must give {name} once, got it twice")
        found[name] = value
    return found


def _split(word: str) -> list[str]:
    """The parts between commas that stand outside brackets."""
    parts, depth = [""], 0
    for character in word:
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _flags(words: Sequence[str]) -> dict[str, str]:
    """Settings written as `--name value` or `--name=value`; a name alone means true."""
    found: dict[str, str] = {}
    name = None
    for word in words:
        if word.startswith("--") and len(word) > 2:
            flag, sign, value = word[2:].partition("=")
            flag = flag.replace("-", "_")
            if flag in found:
                raise ValueError(f"--{flag} must be given once, got it twice")
            found[flag], name = (value, None) if sign else ("true", flag)
        elif name is not None:
            found[name], name = word, None
        else:
            raise ValueError(f"expected --name value, got {word!r}")
    return found


def _bool(name: str, word: str) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if word.lower() not in words:
        raise ValueError(f"{name} must be True or False, got {word!r}")
    return words[word.lower()]


def _seeds(text: str) -> tuple[int | None, ...]:
    """One seed for all, or four."""
    try:
        seeds = [None if word.strip().lower() == "none" else int(word) for word in text.split(",")]
    except ValueError as error:
        raise ValueError(f"seed must be a number, or four (None: unset), got {text!r}") from error
    if len(seeds) == 1:
        return tuple(seeds * 4)
    if len(seeds) != 4:
        raise ValueError(f"seed must be a number, or four (None: unset), got {text!r}")
    return tuple(seeds)


def output_folder(output_path: str) -> Path:
    """The folder for journal and plot: the output folder, or STEM beside an output file STEM.json."""
    path = Path(output_path)
    return path.with_suffix("") if path.suffix == ".json" else path
