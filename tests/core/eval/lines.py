"""Runs a line of the published evaluations, with rows of the tests in place of the Hub."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import lm_eval.tasks
import pytest
from lm_eval.api.model import LM

from dllm.core.eval import answering, command, harness
from dllm.core.eval.generation import Generated
from dllm.core.eval.plan import KeptTaskManager, quiet_harness
from dllm.core.eval.tasks import tasks_folder
from dllm.core.likelihood import Estimate
from tests.core.eval import published_rows

# Folders of lm-eval's tasks that the lines need. Reading all of them takes 20 seconds.
FOLDERS = (
    "arc bbh benchmarks ceval cmmlu gpqa gsm8k hellaswag humaneval ifeval lambada mbpp minerva_math mmlu mmlu_pro piqa "
    "race truthfulqa winogrande"
)


class Recorder(LM):
    """A model that notes what it is asked, and answers with `answer`."""

    asked: ClassVar[list[Any]] = []  # the instances of lm-eval
    made_with: ClassVar[dict[str, Any]] = {}
    answer = "The answer is 3."

    def __init__(self, **arguments: Any):
        super().__init__()
        Recorder.asked, Recorder.made_with = [], arguments

    @property
    def tokenizer_name(self) -> str:
        return "recorder"

    def chat_template(self, chat_template: bool | str = False) -> str:
        return "recorder"

    def apply_chat_template(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        text = "".join(f"<{message['role']}>{message['content']}" for message in messages)
        return text + ("<assistant>" if add_generation_prompt else "")

    def generate_until(self, requests: list[Any], **_: Any) -> list[str]:
        Recorder.asked += requests
        return [self.answer for _ in requests]

    def loglikelihood(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        Recorder.asked += requests
        return [(-float(len(request.args[1])), True) for request in requests]

    def loglikelihood_rolling(self, requests: list[Any], **_: Any) -> list[float]:
        Recorder.asked += requests
        return [-float(len(request.args[0])) for request in requests]


class CodeEval:
    """Stands for the metric that lm-eval's own code tasks load from the Hub as they are read."""

    def compute(self, references: list[str], predictions: list[list[str]], k: list[int]) -> tuple[dict, dict]:
        return {f"pass@{number}": 0.0 for number in k}, {}


@functools.cache
def task_manager() -> KeptTaskManager:
    """The tasks of the lines, and ours."""
    root = Path(lm_eval.tasks.__file__).parent
    folders = [root / name for name in FOLDERS.split()]
    return KeptTaskManager(include_defaults=False, include_path=[*folders, tasks_folder()])


load_dataset = functools.cache(published_rows.load_dataset)


def without_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, metrics and word lists come from here, and reading lm-eval's tasks is quick."""
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("evaluate.load", lambda name: CodeEval())
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **_: task_manager())
    monkeypatch.setattr("dllm.core.eval.plan.task_manager", lambda *_: task_manager())
    if _is_installed("nltk"):
        monkeypatch.setattr("nltk.download", lambda *_, **__: True)


def _is_installed(package: str) -> bool:
    try:
        __import__(package)
    except ImportError:
        return False
    return True


def record(words: list[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, Any]:
    """Run lm-eval's command line with `words` and the recorder for a model; the results that it writes."""
    from lm_eval.__main__ import cli_evaluate

    without_the_hub(monkeypatch)
    monkeypatch.setattr("lm_eval.api.registry.get_model", lambda name: Recorder)
    output = folder / "results.json"
    words = ["lm-eval", "run", *words, "--limit", "2", "--output_path", str(output), "--log_samples"]
    monkeypatch.setattr("sys.argv", words)
    with quiet_harness():
        cli_evaluate()
    (written,) = [path for path in folder.glob("results*.json") if re.search(r"_\d{4}-", path.name)]
    return json.loads(written.read_text())


class Asked(NamedTuple):
    """What a line asks of a model.

    requests: the requests of lm-eval.
    contents: what the sampler or the likelihood was called with, a request each.
    lm: the model of lm-eval.
    """

    requests: list[Any]
    contents: list[Any]
    lm: harness.DiffusionLM


def up_to_the_model(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Run `python -m dllm.core.eval` with `words`, with stand-ins for sampling and likelihood."""
    without_the_hub(monkeypatch)
    seen: dict[str, Any] = {}

    def jobs(lm: harness.DiffusionLM, kind: str, requests: list[Any], before=harness.DiffusionLM.jobs) -> list[Any]:
        seen.update(lm=lm, requests=list(requests))
        return before(lm, kind, requests)

    def generate(sampler: Any, contents: list[Any], config: Any, *, on_generated: Any, **_: Any) -> None:
        seen.update(contents=list(contents))
        for number in range(len(contents)):
            on_generated(number, Generated("The answer is 3.", 5, 1, 0.0))

    def score(model: Any, contents: list[Any], config: Any, *, on_estimate: Any, **_: Any) -> None:
        seen.update(contents=list(contents))
        for number, target in enumerate(contents):
            on_estimate(number, Estimate(-float(len(target.target)), 0.0, 1, True))

    monkeypatch.setattr(harness.DiffusionLM, "jobs", jobs)
    monkeypatch.setattr(answering, "generate_requests", generate)
    monkeypatch.setattr(answering, "log_likelihoods", score)
    assert command.main(words) == 0
    return Asked(**seen)
