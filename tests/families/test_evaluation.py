"""Every family in front of lm-evaluation-harness: a likelihood task and a generation task on its small checkpoint."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("lm_eval")

from dllm.core.eval.models import name_for
from tests.core.eval import local_tasks
from tests.families import folders
from tests.families.toys import NAMES

pytestmark = pytest.mark.usefixtures("one_thread")

TASKS = ["sums_chosen", "sums_generated"]


@pytest.mark.parametrize("name", NAMES)
def test_evaluation(name, tmp_path):
    """The model of lm-evaluation-harness is found by the family; every choice has a likelihood, every prompt a text."""
    folder = folders.write(tmp_path / "model", name)
    model = name_for(folder)
    given = dict(pretrained=folder, dtype="float32", max_new_tokens=8, exact_up_to=1, mc_num=4, device="cpu")
    found = local_tasks.evaluate(
        model, local_tasks.write(tmp_path / "tasks"), TASKS, model_args=given, limit=2, apply_chat_template=False
    )
    assert found["config"]["dllm"]["model"] == model
    for chosen in found["samples"]["sums_chosen"]:
        values = [value for ((value, _),) in chosen["resps"]]
        assert len(set(values)) == 3 and all(-math.inf < value < 0 for value in values)
    cost = found["config"]["dllm"]["cost"]["sums_generated"]
    assert cost["requests"] == 2 and cost["tokens"] > 0
    assert all(isinstance(text, str) for sample in found["samples"]["sums_generated"] for (text,) in sample["resps"])
