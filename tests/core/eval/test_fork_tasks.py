"""The tasks of this package in front of lm-eval: their leaves, what is read from an answer, and what is scored."""

from __future__ import annotations

import importlib.metadata

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks._yaml_loader import load_yaml

from dllm.core.eval.plan import quiet_harness
from dllm.core.eval.settings.tables import tables
from dllm.core.eval.tasks import tasks_folder
from tests.core.eval.lines import Recorder, task_manager, without_the_hub

pytestmark = pytest.mark.usefixtures("one_thread")

FILES = sorted(tasks_folder().glob("*.yaml"))
NAMES = {path.stem for path in FILES}


def evaluate(task: str, answer: str, monkeypatch: pytest.MonkeyPatch, **options) -> dict[str, float]:
    """The results of a task where each request gets this answer."""
    without_the_hub(monkeypatch)
    monkeypatch.setattr(Recorder, "answer", answer)
    options = dict(task_manager=task_manager(), bootstrap_iters=0, limit=2, confirm_run_unsafe_code=True) | options
    with quiet_harness():
        return simple_evaluate(Recorder(), tasks=[task], **options)["results"][task]


def test_no_task_hides_one_of_lm_evals():
    """A name that stands in its files as `task: NAME` or `group: NAME` is taken."""
    taken = set()
    for file in importlib.metadata.files("lm_eval"):
        if file.suffix == ".yaml":
            lines = file.locate().read_text(encoding="utf-8").splitlines()
            taken |= {line.split(":", 1)[1].strip(" \"'") for line in lines if line.startswith(("task:", "group:"))}
    assert "mmlu_generative" in taken and "mmlu_pro" in taken
    assert not NAMES & taken


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_says_what_is_ours_and_bears_the_name_of_its_task(path):
    held = load_yaml(path, resolve_func=False)
    assert held.get("group", held.get("task")) == path.stem
    head = path.read_text().split("\n" + ("group" if "group" in held else "task"))[0]
    assert head.startswith("#") and ("Seen" in head or "ours" in head or "name" in head)


def test_every_task_is_named_in_the_settings_or_the_docs():
    run = {
        line.get("runs", task)
        for table in tables().values()
        for lines in table.sections.values()
        for task, line in lines.items()
    }
    # other names of a task, or tasks that no published table has
    assert NAMES - run == {"humaneval_instruct_dream", "humaneval_instruct_llada", "mbpp_instruct_llada"}


@pytest.mark.parametrize(("name", "leaf"), [("mmlu_generative_dream", "dream"), ("mmlu_generative_dllm", "dllm")])
def test_mmlu_runs_its_own_leaves(name, leaf, monkeypatch):
    without_the_hub(monkeypatch)
    leaves = task_manager().load([name])["tasks"]
    upstream = task_manager().load(["mmlu_generative"])["tasks"]
    subjects = sorted(task.config.dataset_name for task in upstream.values())
    assert sorted(task.config.dataset_name for task in leaves.values()) == subjects and len(subjects) == 57
    assert all(task.endswith(f"_{leaf}") for task in leaves)
    ours, theirs = (next(iter(tasks.values())) for tasks in (leaves, upstream))
    contexts = [task.fewshot_context(ours.dataset["test"][0], num_fewshot=2) for task in (ours, theirs)]
    assert (contexts[0] == contexts[1]) == (leaf == "dream")


# task, what is answered, what is scored, the score of two documents. The rows are those of published_rows.
ANSWERS = [
    ("mmlu_generative_dream", "A. one", "exact_match,get_response", 0.5),
    ("mmlu_generative_dream", "a", "exact_match,get_response", 0.0),  # the filter asks for an upper-case letter
    ("mmlu_generative_dllm", " B \nmore", "exact_match,get_response", 0.5),
    ("mmlu_pro_dllm", "So the answer is (B).", "exact_match,custom-extract", 1.0),
    ("gsm8k_bert", "8 + 2 = 10\n#### 10", "exact_match,strict-match", 0.5),
    ("gsm8k_bert", "That makes 11.", "exact_match,flexible-extract", 0.5),
    ("hellaswag_gen", "A.", "exact_match,first-letter", 1.0),
    ("hellaswag_gen", "it is B", "exact_match,first-letter", 0.0),
    ("humaneval_dream", "    return x + 1\n```\nwords", "pass_at_1,create_test", 0.5),
    ("humaneval_instruct_dream", "\n    return x + 1\n", "pass_at_1,create_test", 0.5),
    ("humaneval_instruct_llada", "```python\ndef plus_0(x):\n    return x\n```", "pass_at_1,create_test", 0.5),
    ("mbpp_instruct_dream", "def plus_11(x):\n    return x + 11\n```", "pass_at_1,extract_code", 0.5),
    ("mbpp_instruct_llada", "def plus_12(x):\n    return x + 12\n[DONE]", "pass_at_1,extract_code", 0.5),
    ("mbpp_llada_instruct", "[BEGIN]\ndef plus_12(x):\n    return x + 12\n", "pass_at_1,extract_code", 0.5),
]


@pytest.mark.parametrize(("task", "answer", "metric", "score"), ANSWERS)
def test_what_an_answer_scores(task, answer, metric, score, monkeypatch):
    assert evaluate(task, answer, monkeypatch)[metric] == score


def test_gpqa_is_answered_after_five_shots_of_ours(monkeypatch):
    found = [
        evaluate("gpqa_n_shot_gen", f"Surely.\nANSWER: {letter}", monkeypatch, limit=8)["exact_match,after-answer"]
        for letter in "ABCD"
    ]
    assert sum(found) == 1 and max(found) < 1  # the right choice is not always the same one
    prompt = Recorder.asked[0].args[0]
    assert prompt.count("\nANSWER: ") == 5 and prompt.count("Question: ") == 6


@pytest.mark.parametrize("task", [name for name, _, metric, _ in ANSWERS if metric.startswith("pass_at_1")])
def test_generated_programs_run_only_if_that_is_confirmed(task, monkeypatch):
    with pytest.raises(ValueError, match="confirm_run_unsafe_code"):
        evaluate(task, "x", monkeypatch, confirm_run_unsafe_code=False)


def test_tasks_of_code_need_no_metric_of_the_hub(monkeypatch):
    def refuse(name: str) -> None:
        raise ConnectionError(name)

    without_the_hub(monkeypatch)
    monkeypatch.setattr("evaluate.load", refuse)
    loaded = task_manager().load(["humaneval_dream", "mbpp_instruct_dream", "mbpp_instruct_llada"])
    assert len(loaded["tasks"]) == 3
