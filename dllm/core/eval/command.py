"""`dllm eval` and `python -m dllm.core.eval`: from the command line to a table, a plot and a file of results."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dllm.core.eval.arguments import output_folder, pairs, parser, read
from dllm.core.eval.models import model_named, name_for
from dllm.exits import Interrupted, ends_at_once, usage
from dllm.models.sources import need
from dllm.startup import is_main, print_main

if TYPE_CHECKING:
    from dllm.core.eval.settings import Settings


def main(words: Sequence[str]) -> int:
    """Evaluate, and return the exit code: 1 if a task failed.

    Args:
        words: the command line, see :func:`dllm.core.eval.arguments.parser`.

    Raises:
        ImportError: lm-evaluation-harness is not installed.
        OSError: the model does not exist, or the output cannot be written.
        UsageError: the command line is wrong: an unknown option, setting or task.
    """
    if {"-h", "--help"} & set(words):
        parser().print_help()
        return 0
    need("lm_eval", "eval")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    with usage():
        options, settings = read(words)
        if not options.tasks and options.published is None:
            raise ValueError("--tasks must name at least one task, got none")
        if options.instruct and options.published is None:
            raise ValueError("--instruct chooses among published settings: it needs --published")
        if "pretrained" not in settings and "model_name_or_path" not in settings:
            raise ValueError("expected a model: dllm eval MODEL, or --model_args pretrained=MODEL; got none")
        source = settings.get("pretrained", settings.get("model_name_or_path"))
        model = model_named(options.model or name_for(source))
        with ends_at_once("dllm eval"):
            items, manager = _items(options, settings, model.name)
    from dllm.core.eval import dry_run, run

    with contextlib.redirect_stdout(sys.stderr):  # lm-evaluation-harness prints what it is doing
        plans = run.planned(items, manager)
    _say_errors({task: plan.error for task, plan in plans.items() if plan.error is not None})
    if options.dry_run:
        print_main(dry_run.report(dry_run.dry_run(items, plans), items[0].lm.world_size))
        return int(any(plan.error is not None for plan in plans.values()))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            outcome = run.run(items, manager, plans)
    except KeyboardInterrupt as error:
        kept = items[0].lm.settings.eval.journal
        if kept is None:
            raise
        message = f"interrupted; what is answered is in {kept}, and the same command continues from there"
        raise Interrupted(message, getattr(error, "signum", signal.SIGINT)) from error
    _say_errors({task: why for task, why in outcome.errors.items() if plans[task].error is None})
    if outcome.results is not None:
        _show(outcome.results, items, options)
    items[0].lm.ranks.barrier()  # a launcher ends all processes when one exits with 1: the results must be written
    return int(bool(outcome.errors))


def _items(options: Namespace, settings: dict[str, Any], model: str) -> tuple[list[Any], Any]:
    """The tasks of the run, each with its model and its options, and the manager that loads them. Only then is the
    model loaded."""
    from dllm.core.eval.config import read_settings
    from dllm.core.eval.plan import task_manager, task_names
    from dllm.core.eval.run import Item, RunOptions

    output = {"journal": str(output_folder(options.output_path) / "journal")} if options.output_path else {}
    settings = output | settings
    run_options = dict(
        limit=options.limit,
        system_instruction=options.system_instruction,
        gen_kwargs=_numbers(pairs("gen_kwargs", options.gen_kwargs)) or None,
        use_cache=options.use_cache,
        log_samples=options.log_samples,
        confirm_run_unsafe_code=options.confirm_run_unsafe_code,
    )
    for name in ("num_fewshot", "apply_chat_template", "fewshot_as_multiturn", "seed"):
        if (value := getattr(options, name)) is not None:
            run_options[name] = value
    if options.log_samples and not options.output_path:
        raise ValueError("log_samples needs output_path, got only the former")
    if options.published is None:
        chosen = dict.fromkeys(options.tasks, (settings, RunOptions(**run_options)))
    else:
        chosen = {
            found.runs: (dict(found.model_args) | settings, RunOptions(**_options_of(found) | run_options))
            for found in _published(model, options)
        }
    for own, _ in chosen.values():
        read_settings(model_named(model), own)
    manager = task_manager(list(chosen), options.include_path)
    names = {task: task_names(manager, [task]) for task in chosen}
    lms: dict[str, Any] = {}
    items = []
    for task, (own, run_options) in chosen.items():
        key = repr(sorted(own.items()))
        if key not in lms:
            lms[key] = _loaded(model, own, next(iter(lms.values()), None))
        items += [Item(name, lms[key], run_options) for name in names[task]]
    return list({item.task: item for item in items}.values()), manager


def _loaded(model: str, settings: dict[str, Any], other: Any) -> Any:
    """The model with these settings; it shares the weights of another one."""
    from dllm.core.eval import MODEL_CLASSES, model_classes

    kind = getattr(model_classes, MODEL_CLASSES[model])
    return kind(**settings) if other is None else kind(other.model, other.tokenizer, **settings)


def _published(model: str, options: Namespace) -> list[Settings]:
    """The published settings of the tasks, or of all that have some."""
    from dllm.core.eval import settings

    era, instruct = options.published, options.instruct
    tasks = options.tasks or settings.settings_table(model, era).lines(instruct)
    return [settings.task_settings(model, task, instruct=instruct, era=era) for task in tasks]


def _options_of(published: Settings) -> dict[str, Any]:
    """What lm-evaluation-harness is told of a task as it was published; what the user gives goes over it."""
    names = ("num_fewshot", "apply_chat_template", "fewshot_as_multiturn")
    return {name: getattr(published, name) for name in names} | {"seed": (published.seed,) * 4}


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    """The values of generation settings, which are written as text, as numbers and truth values."""
    from lm_eval.utils import handle_arg_string

    return {name: handle_arg_string(value) if isinstance(value, str) else value for name, value in values.items()}


def _say_errors(errors: dict[str, str]) -> None:
    if is_main():
        for task, why in errors.items():
            print(f"dllm eval: {task} is left out: {why}", file=sys.stderr)


def _show(results: dict[str, Any], items: Sequence[Any], options: Namespace) -> None:
    """Print the table; write the results and the plot."""
    from dllm.core.eval import plot, run, scores

    found = scores.scores_of(results)
    costs = {task: cost for model in results["dllm"]["models"] for task, cost in model["cost"].items()}
    print(scores.table(found, costs))
    if options.output_path is None:
        print("nothing is saved: --output DIR keeps the results, and lets a killed run continue", file=sys.stderr)
        return
    results["dllm"]["intervals"] = [score._asdict() for score in found]
    path = run.save(results, items, options.output_path)
    picture = path.with_suffix(".png")
    if found:
        plot.plot(found, picture, items[0].lm.name)
    print(f"results: {path}\nplot: {picture}", file=sys.stderr)
