"""Tasks, looked up, loaded, and their requests checked before the model runs."""

from __future__ import annotations

import difflib
import functools
import logging
import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import datasets
import jinja2
import torch
import tqdm
from lm_eval.api import task as task_module
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.utils import env as template_environment
from torch.utils import collect_env

from dllm.core.eval.jobs import GENERATION, LIKELIHOOD, ROLLING, Job
from dllm.core.eval.tasks import tasks_folder
from dllm.exits import TRACEBACK, explanation, is_expected

if TYPE_CHECKING:
    from dllm.core.eval.harness import DiffusionLM

_log = logging.getLogger("dllm.eval")


class KeptTaskManager(TaskManager):
    """A task manager that keeps the tasks that it has loaded last, for what is recorded of their data."""

    loaded: Mapping[str, Any]

    def load(self, task_list: Any) -> Any:
        """See :meth:`lm_eval.tasks.TaskManager.load`."""
        self.loaded = super().load(task_list)
        return self.loaded


def task_manager(names: Sequence[str], include_path: Sequence[str] = ()) -> KeptTaskManager:
    """The tasks that names are looked up in: those of the package, of `include_path`, and of lm-evaluation-harness.

    The last are 14,683 files, which take half a minute to list. They are left out if the others have all the names.

    Raises:
        FileNotFoundError: a folder of `include_path` is not there.
    """
    for folder in include_path:
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"include_path must name folders with tasks, got {folder}")
    folders = [*include_path, str(tasks_folder())]
    own = KeptTaskManager(include_path=folders, include_defaults=False)
    return own if all(name in own.task_index for name in names) else KeptTaskManager(include_path=folders)


def task_names(manager: TaskManager, patterns: Sequence[str]) -> list[str]:
    """The names that patterns such as `mmlu_*` stand for, each once.

    Raises:
        ValueError: a name is unknown (the message has the nearest), or there is none.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        matches = manager.match_tasks([pattern])
        if not matches:
            known = list(manager.task_index)
            near = difflib.get_close_matches(pattern, known, n=1, cutoff=0.5)
            raise ValueError(f"there is no task {pattern!r}" + (f": did you mean {near[0]!r}?" if near else ""))
        found |= dict.fromkeys(matches)
    if not found:
        raise ValueError("tasks must name at least one task, got none")
    return list(found)


@dataclass
class Plan:
    """What a task will ask the model for.

    jobs: of this process, by type of request.
    error: why the task cannot run; None if it can.
    """

    jobs: dict[str, list[Job]] = field(default_factory=dict)
    error: str | None = None


def plan_of(lm: DiffusionLM, evaluate: Any) -> Plan:
    """Load a task and check its requests, without running the model.

    Args:
        lm: the model.
        evaluate: called with a stand-in for the model and `predict_only=True`; evaluates the task.
    """
    planner = Planner(lm)
    try:
        with quiet_harness():
            evaluate(planner, predict_only=True, bootstrap_iters=0)
    except Exception as error:  # a task may hold any code, and the others are to go on
        if not planner.plan.jobs and planner.plan.error is None:
            if os.environ.get(TRACEBACK):
                traceback.print_exception(error)
            planner.plan.error = reason(error)
        # else requests were there, and it is the made-up answers that the task's metrics cannot read
    return planner.plan


def reason(error: Exception) -> str:
    """Why a task failed, in one line. An error that no check has raised says its type, and how to see where it comes
    from: its message alone, such as "string index out of range", says nothing about a task.

    Example:
        >>> reason(ValueError("a target must have at least one token")), reason(StopIteration())
        ('a target must have at least one token', 'StopIteration; with DLLM_TRACEBACK=1 the traceback is shown')
    """
    if isinstance(error, jinja2.TemplateError):  # one of the chat template has become another error by now
        return f"a template of the task failed: {error}"
    if is_expected(error):
        return explanation(error)
    name, text = type(error).__name__, explanation(error)
    return f"{name if text == name else f'{name}: {text}'}; with {TRACEBACK}=1 the traceback is shown"


class Planner(LM):
    """A stand-in for a model: it checks requests and answers nothing. It asks no other process for anything."""

    def __init__(self, lm: DiffusionLM):
        super().__init__()
        self.lm, self.plan = lm, Plan()
        self._rank, self._world_size, self._device = lm.rank, lm.world_size, torch.device("cpu")

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Keep the jobs of requests for log-likelihoods."""
        return [(0.0, False)] * self._kept(LIKELIHOOD, requests)

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Keep the jobs of requests for perplexities."""
        return [0.0] * self._kept(ROLLING, requests)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Keep the jobs of requests for texts."""
        return [""] * self._kept(GENERATION, requests)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """As the model does."""
        return self.lm.apply_chat_template(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """As the model does."""
        return self.lm.chat_template(chat_template)

    @property
    def tokenizer_name(self) -> str:
        """As the model has it."""
        return self.lm.tokenizer_name

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """As if all processes had the same."""
        return tensor.reshape(1).repeat(self.world_size)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any]:
        """As if all processes had the same."""
        return [obj] * self.world_size

    def _kept(self, kind: str, requests: Sequence[Any]) -> int:
        try:
            self.plan.jobs[kind] = self.lm.jobs(kind, requests)
        except (TypeError, ValueError) as error:
            self.plan.error = explanation(error)
        return len(requests)


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Context manager: lm-evaluation-harness and datasets show no bars of their own beside the run's. The former asks
    pip for all packages once and not for each task, which takes seconds, and compiles the template of a prompt once and
    not for each document, which takes 19 parts of 20 of the time in which MMLU's prompts are made."""
    places = (task_module, tqdm)  # its metrics look it up in the latter
    before = [place.tqdm for place in places]
    environment, collect_env.get_pretty_env_info = collect_env.get_pretty_env_info, _environment
    template_environment.from_string = _template
    shown = datasets.are_progress_bars_disabled()
    for place in places:
        place.tqdm = _NoBar
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        for place, bar in zip(places, before, strict=True):
            place.tqdm = bar
        collect_env.get_pretty_env_info = environment
        del template_environment.from_string  # the instance's; that of its class is back
        if not shown:
            datasets.enable_progress_bars()


_environment = functools.cache(collect_env.get_pretty_env_info)
_template = functools.lru_cache(maxsize=1024)(template_environment.from_string)


class _NoBar(tqdm.std.tqdm):
    """A progress bar that is never shown."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options | {"disable": True})
