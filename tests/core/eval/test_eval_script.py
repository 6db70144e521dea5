"""The evaluation script of a cluster, in front of stand-ins for Slurm and for what it starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dllm.core.eval.arguments import read
from dllm.core.eval.settings import settings_table
from dllm.core.eval.settings.command import arguments_of
from tests.slurm_stand_in import login_node, started

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "scripts" / "eval.slurm.sh"
MODEL = "Dream-org/Dream-v0-Instruct-7B"

# settings and the number of GPUs are asked for in earnest; an evaluation is noted
PYTHON = f"""
case "$2" in
    dllm.core.eval | torch.distributed.run)
        {sys.executable} "$FAKES/note.py" "$@" >> "$FAKES/started"
        ;;
    *) exec {sys.executable} "$@" ;;
esac
"""
NOTE = 'import json, os, sys; print(json.dumps([os.environ["HF_ALLOW_CODE_EVAL"], *sys.argv[1:]]))'


@pytest.fixture
def machine(tmp_path) -> dict[str, str]:
    """The environment of a machine where Slurm may be called. The working folder is its `here`."""
    (tmp_path / "note.py").write_text(NOTE)
    (tmp_path / "here").mkdir()
    dropped = ("BASE_MODELS_DIR", "PROCESSES_PER_NODE", "HF_ALLOW_CODE_EVAL")
    return login_node(tmp_path, dropped, python=PYTHON) | dict(PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES="")


def run(machine: dict[str, str], *words: str, slurm: bool = False, **environment: str) -> subprocess.CompletedProcess:
    command = ["bash", *([f"{machine['FAKES']}/sbatch"] if slurm else []), str(SCRIPT), *words]
    here = Path(machine["FAKES"]) / "here"
    return subprocess.run(command, cwd=here, env=machine | environment, capture_output=True, text=True)


def test_every_machine_of_a_job_starts_a_launcher(machine):
    done = run(machine, "Dream", "gsm8k_cot", MODEL, "True", "8", "True", "4", slurm=True, SLURM_GPUS_ON_NODE="4")
    assert done.returncode == 0, done.stderr
    expected = arguments_of("dream", "gsm8k_cot", MODEL, instruct=True, batch_size=8, log_samples=True, limit="4")
    both = started(machine)
    assert len(both) == 2
    for node, (allowed, *words) in enumerate(both):
        assert allowed == "1"
        assert words[:2] == ["-m", "torch.distributed.run"]
        options = dict(zip(words[2:12:2], words[3:12:2], strict=True))
        expected_options = {"nnodes": "2", "nproc-per-node": "4", "master-addr": "node1", "master-port": "30123"}
        assert options == {f"--{name}": value for name, value in (expected_options | {"node-rank": str(node)}).items()}
        output = ["--output_path", ".logs/dream_gsm8k_cot_70123_samples.json"]
        assert words[12:] == ["-m", "dllm.core.eval", *expected, *output]
    assert (Path(machine["FAKES"]) / "here" / ".logs").is_dir()


def test_on_one_machine_without_slurm(machine):
    done = run(machine, "bert", "mmlu", "owner/model")
    assert done.returncode == 0, done.stderr
    ((_, *words),) = started(machine)
    assert words[:2] == ["-m", "dllm.core.eval"]
    assert words[2:-2] == arguments_of("bert", "mmlu", "owner/model")
    assert words[-1].startswith(".logs/bert_mmlu_2") and words[-1].endswith("_samples.json")


def test_several_processes_without_slurm(machine):
    done = run(machine, "llada", "piqa", "owner/model", PROCESSES_PER_NODE="2")
    assert done.returncode == 0, done.stderr
    ((_, *words),) = started(machine)
    assert words[:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    assert words[5:7] == ["-m", "dllm.core.eval"]


def test_an_unknown_task_lists_the_tasks(machine):
    done = run(machine, "dream", "gsm8k", MODEL)
    assert done.returncode == 1 and not started(machine)
    assert "have no task 'gsm8k' (nearest: gsm8k_cot)" in done.stderr
    assert all(task in done.stderr for task in settings_table("dream").lines(instruct=False))


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["dream", "mmlu"], 2, "must have CLASS TASK MODEL"),
        (["dream", "mmlu", MODEL, "False", "1", "False", "2", "more"], 2, "got 8 arguments"),
        (["gpt", "mmlu", MODEL], 1, "have no family 'gpt'"),
        (["dream", "mmlu", "/no/such/model"], 1, "there is no model /no/such/model"),
        (["dream", "mmlu", MODEL, "perhaps"], 2, "must be True or False, got 'perhaps'"),
    ],
)
def test_what_cannot_be_started(machine, words, status, said):
    done = run(machine, *words)
    assert done.returncode == status and said in done.stderr
    assert not started(machine)


def test_a_job_without_gpus(machine):
    done = run(machine, "dream", "mmlu", MODEL, slurm=True)
    assert done.returncode == 2 and "must have GPUs" in done.stderr and not started(machine)


@pytest.mark.exhaustive  # tests of the settings' arguments cover it without a process
def test_a_model_under_the_base_folder(machine, tmp_path):
    (tmp_path / "models" / "toy").mkdir(parents=True)
    folder = str(tmp_path / "models")
    done = run(machine, "dream", "mmlu", "toy", BASE_MODELS_DIR=folder, PROCESSES_PER_NODE="1")
    assert done.returncode == 0, done.stderr
    assert f"pretrained={folder}/toy," in " ".join(started(machine)[0])


@pytest.mark.parametrize("instruct", [False, True])
@pytest.mark.parametrize("family", ["a2d", "bert", "dream", "llada"])
def test_the_examples_run_every_task(machine, family, instruct):
    script = ROOT / "examples" / family / "eval.sh"
    words = ["owner/model", "--limit", "2", *["--instruct"] * (instruct and family != "a2d")]
    done = subprocess.run(["bash", str(script), *words], env=machine, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ((allowed, _, module, *given),) = started(machine)
    options, settings = read(given)
    assert (allowed, module, options.limit, settings) == ("1", "dllm.core.eval", 2, {"pretrained": "owner/model"})
    assert options.confirm_run_unsafe_code and options.output_path == f"runs/eval/{family}"
    if family != "a2d":
        assert options.published == "slurm" and options.instruct is instruct and options.model == family
        assert options.tasks == []  # all of them, as dllm.core.eval takes it (test_published_tasks)


@pytest.mark.parametrize("chosen", [[], ["--tasks", "ifeval"], ["--tasks=ifeval"]])
def test_the_example_of_diffusion_gemma(machine, chosen):
    script = ROOT / "examples/diffusiongemma/eval.sh"
    done = subprocess.run(["bash", str(script), "owner/model", *chosen], env=machine, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ((_, _, _, *given),) = started(machine)
    options, settings = read(given)
    assert (options.model, settings) == ("diffusiongemma", {"pretrained": "owner/model"})
    assert options.tasks == (["ifeval"] if chosen else ["gsm8k_cot"]) and options.apply_chat_template


@pytest.mark.parametrize("family", ["a2d", "bert", "diffusiongemma", "dream", "llada"])
def test_an_example_without_a_model_says_how_to_run_it(machine, family):
    done = subprocess.run(
        ["bash", str(ROOT / f"examples/{family}/eval.sh")], env=machine, capture_output=True, text=True
    )
    assert done.returncode == 2 and f"usage: bash examples/{family}/eval.sh MODEL" in done.stderr


def test_shellcheck_finds_nothing():
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if checker is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([checker, *map(str, (ROOT / "examples").glob("*/*.sh"))], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
