"""A run: all tasks are checked first, then evaluated one after the other. One that fails does not lose the others."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import sys
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker

from dllm.core.eval.harness import DiffusionLM
from dllm.core.eval.plan import KeptTaskManager, Plan, plan_of, quiet_harness, reason
from dllm.core.eval.progress import Progress
from dllm.core.eval.record import data_record, merged, run_record
from dllm.core.samplers.config import at_least
from dllm.exits import TRACEBACK
from dllm.values import check_unicode

_log = logging.getLogger("dllm.eval")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What lm-evaluation-harness is told of a task; see `simple_evaluate` there.

    num_fewshot: shots; None: as the task says.
    limit: documents of a task: a number, or a share below 1.
    apply_chat_template: prompts are conversations.
    fewshot_as_multiturn: the shots are turns of the conversation; False: one user message has them all, as in the
        published runs. lm-evaluation-harness's own default is True since 0.4.10.
    system_instruction: a system message.
    gen_kwargs: settings of generation that replace those of the task.
    use_cache: a file for lm-evaluation-harness's own cache of answers. Its key holds neither model nor settings.
    log_samples: write every document with its prompt and answer.
    confirm_run_unsafe_code: tasks may run generated programs.
    seed: of Python, numpy, torch and the choice of shots.

    Raises:
        ValueError: a number of shots below 0; a limit that is neither a share nor a whole number; turns without a
            chat template.

    Example:
        >>> RunOptions(limit=1.5)
        Traceback (most recent call last):
        ...
        ValueError: limit must be a whole number of documents, or a share between 0 and 1, got 1.5
    """

    num_fewshot: int | None = None
    limit: float | None = None
    apply_chat_template: bool = False
    fewshot_as_multiturn: bool = False
    system_instruction: str | None = None
    gen_kwargs: Mapping[str, Any] | None = None
    use_cache: str | None = None
    log_samples: bool = False
    confirm_run_unsafe_code: bool = False
    seed: tuple[int | None, int | None, int | None, int | None] = (0, 1234, 1234, 1234)

    def __post_init__(self) -> None:
        """Check what lm-evaluation-harness takes without a word, or fails at only in each task."""
        if self.num_fewshot is not None:
            at_least(0, "num_fewshot", self.num_fewshot)
        limit = self.limit
        if limit is not None and not (0 < limit < 1 or (limit >= 1 and float(limit).is_integer())):
            raise ValueError(f"limit must be a whole number of documents, or a share between 0 and 1, got {limit:g}")
        check_unicode(self.system_instruction or "")
        if self.fewshot_as_multiturn and not self.apply_chat_template:
            raise ValueError("fewshot_as_multiturn needs apply_chat_template, got only the former")


class Item(NamedTuple):
    """A task of a run: its name, the model with the settings that it has for this task, and the options."""

    task: str
    lm: DiffusionLM
    options: RunOptions


class Outcome(NamedTuple):
    """What a run leaves.

    results: those of lm-evaluation-harness, with our record as "dllm"; None if no task was evaluated, and on all
        processes but the first.
    errors: of each task that failed, why.
    """

    results: dict[str, Any] | None
    errors: dict[str, str]


def planned(items: Sequence[Item], manager: KeptTaskManager) -> dict[str, Plan]:
    """The plan of each task. A task that cannot run on one process cannot on any."""
    plans = {}
    for item in items:
        # the same errors are then found by all processes, so that none waits for another in vain
        plan = plan_of(item.lm, functools.partial(_evaluate, item, manager))
        found = item.lm.ranks.gather_object(plan.error)
        plan.error = item.lm.ranks.broadcast(next((error for error in found or [] if error is not None), None))
        plans[item.task] = plan
        if plan.error is None and item.lm.rank == 0:
            _warn_of_shots(item, manager.loaded["tasks"])
    return plans


def _warn_of_shots(item: Item, tasks: Mapping[str, Any]) -> None:
    """Say which tasks keep to 0 shots: lm-evaluation-harness lets no other number replace a 0 of the task itself."""
    shots = item.options.num_fewshot
    kept = [name for name, task in tasks.items() if shots and task.config.num_fewshot == 0]
    if kept:
        others = f" and {len(kept) - 1} others" if len(kept) > 1 else ""
        _log.warning("num_fewshot=%d has no effect on %s%s, whose files say 0", shots, kept[0], others)


def run(items: Sequence[Item], manager: KeptTaskManager, plans: Mapping[str, Plan]) -> Outcome:
    """Evaluate the tasks whose plan has no error.

    Raises:
        Exception: of several processes, as soon as a task fails on one: the others would wait for it. The journal keeps
            what is answered.
    """
    errors = {task: plan.error for task, plan in plans.items() if plan.error is not None}
    possible = [item for item in items if item.task not in errors]
    parts, data, progress = [], {}, _progress(possible, plans)
    with contextlib.closing(progress):  # also when interrupted: the message then has a line of its own
        for item in possible:
            item.lm.progress = progress
            try:
                with quiet_harness():
                    results = _evaluate(item, manager, item.lm)
            except Exception as error:  # a task may hold any code, and the others are to go on
                if item.lm.world_size > 1:
                    raise
                if os.environ.get(TRACEBACK):
                    traceback.print_exception(error)
                errors[item.task] = reason(error)
                _log.warning("%s failed: %s", item.task, errors[item.task])
                continue
            data |= data_record(manager.loaded["tasks"])
            if results is not None:
                results["config"]["model"] = item.lm.table.name
                parts.append(results)
    if not parts:
        return Outcome(None, errors)
    whole = merged(parts)
    del whole["config"]["dllm"]  # as it was after the first task
    lms, options = ({item.task: getattr(item, name) for item in possible} for name in ("lm", "options"))
    whole["dllm"] = run_record(lms, options, data) | {"errors": errors}
    return Outcome(whole, errors)


def save(results: dict[str, Any], items: Sequence[Item], output_path: str) -> Path:
    """Write the results, as lm-evaluation-harness does: OUTPUT/MODEL/results_TIME.json, or STEM_TIME.json if the output
    is a file of JSON; and a file of samples for each task if they are logged.

    Returns:
        The file of the results.

    Raises:
        OSError: it could not be written.
    """
    tracker = EvaluationTracker(output_path=output_path)
    first = items[0]
    tracker.general_config_tracker.log_experiment_args(
        model_source=first.lm.table.name,
        model_args={"pretrained": first.lm.name},
        system_instruction=first.options.system_instruction,
        chat_template=first.lm.chat_template(True) if first.options.apply_chat_template else None,
        fewshot_as_multiturn=first.options.fewshot_as_multiturn,
    )
    samples = results.pop("samples", None)
    logged = samples if samples and first.options.log_samples else None
    tracker.save_results_aggregated(results=results, samples=logged)
    for task in logged or {}:
        tracker.save_results_samples(task_name=task, samples=logged[task])
    given = Path(output_path)
    if given.suffix == ".json":
        written = given.with_name(f"{given.stem}_{tracker.date_id}.json")
    else:
        folder = given / tracker.general_config_tracker.model_name_sanitized
        written = folder / f"results_{tracker.date_id}.json"
    if not written.is_file():  # the library only logs why
        print(json.dumps(results, default=str), file=sys.stderr)
        raise OSError(f"the results could not be written to {written}; they are above")
    return written


def _evaluate(item: Item, manager: KeptTaskManager, model: Any, **others: Any) -> dict[str, Any] | None:
    """lm-evaluation-harness's own evaluation of a task."""
    options, (python, numpy, torch, shots) = item.options, item.options.seed
    chosen = dict(log_samples=options.log_samples, use_cache=options.use_cache) | others
    if others.get("predict_only"):
        chosen["use_cache"] = None
    return simple_evaluate(
        model=model,
        model_args={"pretrained": item.lm.name},
        tasks=[item.task],
        task_manager=manager,
        num_fewshot=options.num_fewshot,
        batch_size=item.lm.batch_size,
        device=str(item.lm.device),
        limit=options.limit,
        apply_chat_template=options.apply_chat_template,
        fewshot_as_multiturn=options.fewshot_as_multiturn,
        system_instruction=options.system_instruction,
        gen_kwargs=dict(options.gen_kwargs) if options.gen_kwargs else None,
        confirm_run_unsafe_code=options.confirm_run_unsafe_code,
        random_seed=python,
        numpy_random_seed=numpy,
        torch_random_seed=torch,
        fewshot_random_seed=shots,
        **chosen,
    )


def unanswered(item: Item, plan: Plan) -> dict[str, list[Any]]:
    """The jobs of a task that the journal has no answer to, by type of request."""
    left = {}
    for kind, jobs in plan.jobs.items():
        done = item.lm.is_answered(kind, jobs)
        left[kind] = [job for job, known in zip(jobs, done, strict=True) if not known]
    return left


def _progress(items: Sequence[Item], plans: Mapping[str, Plan]) -> Progress:
    work: Counter[str] = Counter()
    for item in items:
        for kind, jobs in unanswered(item, plans[item.task]).items():
            work[kind] += sum(job.work.positions for job in jobs)
    return Progress(work, shown=bool(items) and items[0].lm.rank == 0)
