"""The cluster script, in front of stand-ins for Slurm, and the configurations of accelerate."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.slurm_stand_in import login_node, started

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "train.slurm.sh"
CONFIGS = {path.stem: path for path in (ROOT / "scripts" / "accelerate_configs").glob("*.yaml")}

ACCELERATE = f'{sys.executable} -c "import json, sys; print(json.dumps(sys.argv[1:]))" "$@" >> "$FAKES/started"'


@pytest.fixture
def slurm(tmp_path) -> dict[str, str]:
    """The environment of a login node."""
    return login_node(tmp_path, accelerate=ACCELERATE) | dict(SLURM_GPUS_ON_NODE="4")


def sbatch(slurm: dict[str, str], *words: str) -> subprocess.CompletedProcess:
    command = ["bash", f"{slurm['FAKES']}/sbatch", "--nodes", "2", str(SCRIPT), *words]
    return subprocess.run(command, cwd=ROOT, env=slurm, capture_output=True, text=True)


@pytest.mark.parametrize("form", [["--script_path", "examples/bert/pt.py"], ["--script_path=examples/bert/pt.py"]])
def test_every_machine_starts_a_launcher(slurm, form):
    own = ["--dataset_args", "a b[train:5]", "--shape", "x=1,y=2", "--empty", ""]
    done = sbatch(slurm, "--accelerate_config", "fsdp2", own[0], own[1], *form, *own[2:])
    assert done.returncode == 0, done.stderr
    both = started(slurm)
    assert len(both) == 2
    for node, words in enumerate(both):
        assert words[:3] == ["launch", "--config_file", "scripts/accelerate_configs/fsdp2.yaml"]
        options = dict(zip(words[3:13:2], words[4:13:2], strict=True))
        expected = dict(num_machines="2", num_processes="8", main_process_ip="node1", main_process_port="30123")
        assert options == {f"--{name}": value for name, value in (expected | {"machine_rank": str(node)}).items()}
        assert words[13:] == ["examples/bert/pt.py", *own]
    assert (Path(slurm["FAKES"]) / "asked").read_text() == "show hostnames node[1-9]\n"


def test_what_is_started_unless_it_is_said(slurm):
    assert sbatch(slurm).returncode == 0
    assert started(slurm)[0][2] == "scripts/accelerate_configs/ddp.yaml"
    assert started(slurm)[0][13:] == ["examples/bert/sft.py"]


@pytest.mark.parametrize(
    ("words", "gpus", "said"),
    [
        (["--accelerate_config", "zero9"], "4", "there is no file scripts/accelerate_configs/zero9.yaml"),
        (["--script_path", "no.py"], "4", "there is no file no.py"),
        (["--script_path"], "4", "--script_path must have a value"),
        ([], "", "must have GPUs"),
    ],
)
def test_what_cannot_be_started(slurm, words, gpus, said):
    done = sbatch(slurm | dict(SLURM_GPUS_ON_NODE=gpus), *words)
    assert done.returncode == 2 and said in done.stderr
    assert not (Path(slurm["FAKES"]) / "started").exists()


def test_outside_of_a_job(slurm):
    done = subprocess.run(["bash", str(SCRIPT)], cwd=ROOT, env=slurm, capture_output=True, text=True)
    assert done.returncode == 2 and "sbatch scripts/train.slurm.sh" in done.stderr


def test_shellcheck_finds_nothing():
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if checker is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([checker, *map(str, (ROOT / "scripts").glob("*.sh"))], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_configurations_are_there():
    assert set(CONFIGS) == {"cpu", "ddp", "fsdp", "fsdp2", "zero1", "zero2", "zero3"}


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_accelerate_takes_the_configuration(name):
    """Read as `accelerate launch` reads it, which refuses names that it does not know."""
    pytest.importorskip("accelerate")
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    loaded = load_config_from_file(str(CONFIGS[name]))
    assert loaded.mixed_precision == "no"  # bf16 of the training arguments decides
    words = ["--config_file", str(CONFIGS[name]), "--num_processes", "2", "script.py"]
    options, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    kinds = dict(options.__dict__)
    assert (kinds["multi_gpu"], kinds["use_fsdp"], kinds["use_deepspeed"], bool(kinds["use_cpu"])) == (
        name == "ddp",
        name.startswith("fsdp"),
        name.startswith("zero"),
        name == "cpu",
    )
    held = yaml.safe_load(CONFIGS[name].read_text())
    for section, prefix in (("fsdp_config", "fsdp_"), ("deepspeed_config", "")):
        for field, value in held.get(section, {}).items():
            assert field.startswith(prefix) and kinds[field] == value
