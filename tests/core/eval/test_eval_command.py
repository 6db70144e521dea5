"""`dllm eval` and `python -m dllm.core.eval`: what they print, write and refuse; resume, dry run, tasks that fail."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dllm import cli
from dllm.core.eval import arguments, command, plan
from dllm.demo.shipped import SHIPPED
from tests.core.eval.local_tasks import DOCUMENTS, TASKS
from tests.programs import ROOT

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = ["--max-new-tokens", "16", "--device", "cpu", "--exact-up-to", "1", "--mc-num", "8"]
LOCAL = ["sums_generated", "sums_chosen", "sums_last_word", "sums_text"]


@pytest.fixture(autouse=True)
def without_the_tasks_of_lm_eval(monkeypatch):
    """Listing its 14,683 tasks takes seconds, and no test needs them."""
    kept = plan.KeptTaskManager
    monkeypatch.setattr(plan, "KeptTaskManager", functools.partial(kept, include_defaults=False))


@pytest.fixture
def run(tasks, capsys):
    """Runs `dllm eval` and returns its exit code, stdout and stderr."""

    def run(*words):
        code = cli.main(["eval", *map(str, words), "--include-path", tasks])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def results_in(folder: Path):
    (file,) = folder.rglob("results_*.json")
    return json.loads(file.read_text())


def test_table_plot_and_record(run, tmp_path):
    """Also what a second run of the same makes of the journal: nothing is run again, and the numbers are the same."""
    words = [SHIPPED, "--tasks", ",".join(LOCAL), "--apply-chat-template", *SHORT, "--log-samples"]
    code, out, err = run(*words, "--output", tmp_path / "first")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].split()[:4] == ["task", "metric", "score", "95%"]
    assert [line.split()[0] for line in lines[1:] if not line.startswith(" ")] == LOCAL
    assert lines[1].split()[1:4] == ["exact_match", "(last)", "1.0000"]
    assert "evaluation:" in err and "it/s" not in err
    results = results_in(tmp_path / "first")
    assert set(results["results"]) == set(results["dllm"]["data"]) == set(LOCAL)
    (model,) = results["dllm"]["models"]
    assert model["tasks"] == LOCAL and set(model["cost"]) == set(LOCAL)
    assert len({model["cost"][task]["requests"] for task in LOCAL}) == 2  # choices are requests of their own
    options = results["dllm"]["options"]["sums_chosen"]
    assert options["fewshot_as_multiturn"] is False and options["seed"] == [0, 1234, 1234, 1234]
    assert results["fewshot_as_multiturn"] is False and results["chat_template"]
    assert results["dllm"]["data"]["sums_text"]["rows"] == {"test": len(DOCUMENTS)}
    assert results["dllm"]["data"]["sums_text"]["fingerprints"]["test"]
    (picture,) = (tmp_path / "first").rglob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    samples = sorted(path.name.split("_2")[0] for path in (tmp_path / "first").rglob("samples_*.jsonl"))
    assert samples == sorted(f"samples_{task}" for task in LOCAL)
    journal = tmp_path / "first" / "journal" / "rank-0.jsonl"
    before = journal.read_bytes()
    code, _, _ = run(*words, "--output", tmp_path / "second", "--journal", tmp_path / "first" / "journal")
    assert code == 0 and journal.read_bytes() == before
    again = results_in(tmp_path / "second")
    assert again["results"] == results["results"]
    cost = again["dllm"]["models"][0]["cost"]["sums_chosen"]
    assert cost["resumed_requests"] == cost["requests"] and cost["forwards"] == model["cost"]["sums_chosen"]["forwards"]


def test_a_task_that_fails_does_not_lose_the_others(run, tmp_path):
    failing = {
        "not_here": "not_here is left out:",
        "too_long": "too_long is left out: too_long, document 0: prompt and answer must have at most 256 tokens",
        "no_stop": "no_stop is left out: no_stop, document 0: a stop string must have at least one character",
        "masked": "masked is left out: masked, document 0: a text must not hold the mask token",
        "no_target": "no_target is left out: no_target, document 0: a target must have at least one token",
    }
    tasks = ",".join([*failing, "sums_generated"])
    code, out, err = run(SHIPPED, "--tasks", tasks, *SHORT, "--max_length", 256, "--limit", 2)
    assert code == 1
    for message in failing.values():
        assert message in err
    assert out.splitlines()[1].split()[0] == "sums_generated" and "nothing is saved" in err
    # all that before the model runs
    assert max(err.index(message) for message in failing.values()) < err.index("evaluation:")


def test_a_task_that_fails_while_it_runs(run, tasks, monkeypatch, tmp_path):
    from dllm.core.eval.model_classes import BertLM

    def failing(self, requests, disable_tqdm=False):
        raise MemoryError("too much")

    monkeypatch.setattr(BertLM, "loglikelihood_rolling", failing)
    code, out, err = run(SHIPPED, "--tasks", "sums_text,sums_chosen", *SHORT, "--output", tmp_path, "--limit", 2)
    assert code == 1 and "sums_text is left out: out of memory: too much" in err
    assert "sums_chosen" in out and results_in(tmp_path)["dllm"]["errors"] == {"sums_text": "out of memory: too much"}


def test_interrupted(run, monkeypatch, tmp_path):
    from dllm.core.eval.model_classes import BertLM

    def stopped(self, requests, disable_tqdm=False):
        raise KeyboardInterrupt

    monkeypatch.setattr(BertLM, "loglikelihood_rolling", stopped)
    code, out, err = run(SHIPPED, "--tasks", "sums_text", *SHORT, "--output", tmp_path, "--limit", 2)
    assert code == 130 and f"is in {tmp_path / 'journal'}, and the same command continues" in err and out == ""


def test_the_command_line_of_0_1(tasks, capsys, tmp_path):
    """As the examples of dLLM 0.1 call it."""
    words = f"""
        --tasks sums_generated --model bert --apply_chat_template True --num_fewshot 0 --batch_size 4 --limit 2
        --model_args pretrained={SHIPPED},max_new_tokens=16,steps=16,block_size=16,cfg=0.0,suppress_tokens=[],mc_num=8
        --seed 1234 --device cuda --output_path {tmp_path}/scores.json --log_samples --confirm_run_unsafe_code
        --fewshot_as_multiturn False --include_path {tasks} --gen_kwargs until=[/Answer]
    """
    assert command.main(words.split()) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[0] == "sums_generated"
    (file,) = tmp_path.glob("scores_*.json")
    results = json.loads(file.read_text())
    assert results["config"]["model"] == "bert" and results["config"]["random_seed"] == 1234
    assert results["dllm"]["models"][0]["settings"]["sampler"]["steps"] == 16
    assert (tmp_path / "scores" / "journal" / "rank-0.jsonl").is_file()


def test_dry_run(run, tmp_path):
    code, out, err = run(SHIPPED, "--tasks", ",".join(LOCAL), *SHORT, "--dry-run", "--output", tmp_path)
    assert code == 0 and "evaluation:" not in err
    rows = {line.split()[0]: line.split() for line in out.splitlines()[1:5]}
    assert set(rows) == set(LOCAL)
    assert rows["sums_generated"][1:3] == [str(len(DOCUMENTS)), "0"]
    assert 0 < int(rows["sums_generated"][3]) <= 16 * len(DOCUMENTS)
    assert re.search(r"estimated from 2[0-2] requests", out)
    assert "memory so far" in out and not list(tmp_path.rglob("results_*"))
    code, out, _ = run(SHIPPED, "--tasks", "sums_generated", *SHORT, "--dry-run", "--output", tmp_path)
    assert int(out.splitlines()[1].split()[2]) > 0  # answers that the first one kept


def test_published_settings(run, tmp_path, monkeypatch, tasks):
    """Each task gets its own; what is given goes over them."""
    from dllm.core.eval import settings

    real = settings.task_settings

    def local(family, task, **options):
        import dataclasses

        return dataclasses.replace(real(family, "gsm8k_bert" if "generated" in task else "mmlu", **options), runs=task)

    monkeypatch.setattr(settings, "task_settings", local)
    words = ["--tasks", "sums_generated,sums_chosen", "--published", "--num-fewshot", 0, "--limit", 2]
    words += ["--max-length", 400, "--exact-up-to", 1, "--mc-num", 4, "--steps", 8]
    code, _, err = run(SHIPPED, *words, "--device", "cpu", "--output", tmp_path)
    assert code == 0, err
    models = {model["tasks"][0]: model for model in results_in(tmp_path)["dllm"]["models"]}
    sampler = models["sums_generated"]["settings"]["sampler"]
    assert (sampler["max_new_tokens"], sampler["block_size"]) == (256, 32)
    assert models["sums_chosen"]["settings"]["likelihood"]["mc_num"] == 4
    options = results_in(tmp_path)["dllm"]["options"]["sums_generated"]
    assert options["seed"] == [1234] * 4 and options["num_fewshot"] == 0


def planned(monkeypatch, *words) -> dict:
    """The options of each task, as they would run: no model is loaded and no task looked up."""
    monkeypatch.setattr(command, "_loaded", lambda *arguments: None)
    monkeypatch.setattr(plan, "task_manager", lambda *arguments: None)
    monkeypatch.setattr(plan, "task_names", lambda manager, names: names)
    options, settings = arguments.read([str(word) for word in ("a/model", "--published", *words)])
    items, _ = command._items(options, settings, "dream")
    return {item.task: item.options for item in items}


@pytest.mark.parametrize("instruct, tasks", [([], 13), (["--instruct"], 10)])
def test_published_tasks(monkeypatch, instruct, tasks):
    """All of them, where none is named."""
    found = planned(monkeypatch, *instruct)
    assert len(found) == tasks and all(options.seed == (1234,) * 4 for options in found.values())
    assert all(options.apply_chat_template is bool(instruct) for options in found.values())


def test_what_is_given_goes_over_published_settings(monkeypatch):
    words = ["--instruct", "--apply-chat-template", "False", "--seed", 7, "--num-fewshot", 1]
    (options,) = planned(monkeypatch, "--tasks", "gsm8k_cot", *words).values()
    assert (options.apply_chat_template, options.seed, options.num_fewshot) == (False, (7,) * 4, 1)


@pytest.mark.parametrize(
    "words, message",
    [
        ([SHIPPED], "--tasks must name at least one task"),
        (["--tasks", "sums_text"], "expected a model"),
        ([SHIPPED, "--tasks", "sums_tekst"], "there is no task 'sums_tekst': did you mean 'sums_text'?"),
        ([SHIPPED, "--tasks", "sums_text", "--stepz", "8"], "bert knows no 'stepz': did you mean 'steps'?"),
        ([SHIPPED, "--tasks", "sums_text", "--model", "lada"], "the evaluation knows no 'lada': did you mean 'llada'?"),
        ([SHIPPED, "--tasks", "sums_text", "--model-args", "steps"], "model_args must be name=value"),
        ([SHIPPED, "--tasks", "sums_text", "--model-args", "steps=8", "--steps", "9"], "steps must be given once"),
        ([SHIPPED, "--tasks", "sums_text", "--seed", "1,2"], "seed must be a number, or four"),
        ([SHIPPED, "--tasks", "sums_text", "--log-samples"], "log_samples needs output_path"),
        ([SHIPPED, "--tasks", "sums_text", "--fewshot-as-multiturn"], "fewshot_as_multiturn needs apply_chat_template"),
        ([SHIPPED, "--tasks", "sums_text", "--apply-chat-template", "short"], "apply_chat_template must be True or"),
        (["/no/such/model", "--tasks", "sums_text"], "/no/such/model"),
        ([SHIPPED, "--tasks", "sums_text", "--instruct"], "--instruct chooses among published settings"),
        ([SHIPPED, "--tasks", "sums_text", "--published", "slurn"], "no era 'slurn' (nearest: slurm)"),
    ],
)
def test_what_is_refused(run, words, message):
    code, out, err = run(*words)
    assert code == 2 and message in err and err.count("\n") == 1 and out == ""


def test_words():
    options, settings = arguments.read(
        ["m", "-t", "a,b", "c", "--gen-kwargs", "until=[a,b],top_p=1", "--temperature=1"]
    )
    assert (options.tasks, settings) == (["a", "b", "c"], {"temperature": "1", "pretrained": "m"})
    assert arguments.pairs("gen_kwargs", options.gen_kwargs) == {"until": "[a,b]", "top_p": "1"}
    assert arguments.pairs("model_args", ['{"steps": 8}']) == {"steps": 8}
    assert arguments.read(["m", "--check-greedy", "--seed", "7"])[0].seed == (7, 7, 7, 7)
    assert arguments.read(["m", "--check-greedy"])[1] == {"check_greedy": "true", "pretrained": "m"}


def test_help(run):
    code, out, _ = run("--help")
    assert code == 0 and "--dry-run" in out and "settings:" in out


def test_imports_are_cheap():
    """The package tells lm-evaluation-harness its names and loads nothing; the engine knows nothing of evaluation."""
    programs = {
        "import dllm.core.eval": "torch transformers datasets lm_eval.tasks",
        "import dllm, dllm.fast, dllm.core.likelihood": "transformers datasets lm_eval",
    }
    for program, heavy in programs.items():
        code = f"import sys\n{program}\nprint([name for name in {heavy.split()} if name in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.stdout.strip() == "[]", (program, done.stdout, done.stderr)
    assert set(TASKS) == set(LOCAL)
