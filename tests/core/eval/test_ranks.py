"""Several processes: the collectives, and two processes over gloo that give the numbers of one."""

from __future__ import annotations

import pytest
import torch

from dllm.core.eval.journal import Journal
from dllm.core.eval.ranks import device_named
from tests import launch
from tests.core.eval import eval_rank

pytestmark = pytest.mark.usefixtures("one_thread")


def numbers(scores):
    return {name: score for name, score in scores.items() if not isinstance(score, str)}


def test_two_processes_give_the_numbers_of_one(tmp_path, tasks):
    """Five documents: one process has three, the other two and, to be even, one of them twice."""
    first, second = launch.two_ranks(tmp_path, "tests.core.eval.eval_rank", tasks)
    told, other = first["collectives"], second["collectives"]
    assert (told["rank"], other["rank"]) == ((0, 2), (1, 2))
    assert told["scalars"] == other["scalars"] == [7, 8]
    assert told["rows"] == other["rows"] == [[0.0] * 3] * 2 + [[1.0] * 3] * 2
    assert (told["objects"], other["objects"]) == ([{"rank": 0}, {"rank": 1}], None)
    assert (told["elsewhere"], other["elsewhere"]) == (None, ["to 1", "to 1"])
    assert told["broadcast"] == other["broadcast"] == "of 0"
    alone, both = eval_rank.evaluated(tasks), first["evaluated"]
    assert second["evaluated"] is None
    assert both["answers"].keys() == alone["answers"].keys()
    for task, answers in alone["answers"].items():
        for (document, one), (same, two) in zip(answers, both["answers"][task], strict=True):
            assert document == same
            assert one == two or task != "sums_generated"
    near = {task: pytest.approx(numbers(scores), rel=1e-5) for task, scores in alone["results"].items()}
    assert {task: numbers(scores) for task, scores in both["results"].items()} == near
    assert both["cost"] == alone["cost"]
    # one process takes up what two have begun
    assert len(Journal(tmp_path / "journal").entries) == sum(requests for requests, *_ in alone["cost"].values())
    again = eval_rank.evaluated(tasks, str(tmp_path / "journal"))
    assert again["cost"] == alone["cost"]
    assert {task: numbers(scores) for task, scores in again["results"].items()} == near


def test_devices(monkeypatch):
    assert device_named("cpu").type == "cpu"
    if not torch.cuda.is_available():
        for name in (None, "cuda", "cuda:0", "cuda:7"):
            assert device_named(name) == torch.device("cpu")
    with pytest.raises(ValueError, match="device must be cpu, cuda"):
        device_named("the fast one")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert device_named(None) == device_named("cuda") == torch.device("cuda", 0)
    assert device_named("cuda:2") == torch.device("cuda", 2)
    with pytest.raises(ValueError, match="one of the 4 GPUs of this machine, got cuda:4"):
        device_named("cuda:4")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert device_named("cuda:0") == torch.device("cuda", 3)  # lm-evaluation-harness's default on every process
