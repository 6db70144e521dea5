"""accelerate's configurations, on two CPU processes over gloo, are one process with a batch twice as large."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM

from dllm.demo.shipped import SHIPPED
from tests import programs

ROOT = Path(__file__).parents[2]
for package in ("accelerate", "datasets"):
    pytest.importorskip(package)

LENGTH, SAMPLES = 16, 8
SHAPE = "hidden_size=32,intermediate_size=48,num_hidden_layers=2,num_attention_heads=4,max_position_embeddings=64"

# dropout draws other numbers in each process
EXACT = {"modernbert": "", "bert": ",hidden_dropout_prob=0,attention_probs_dropout_prob=0"}


def run(folder: Path, data: Path, *launcher: str, size: int, kind: str) -> list[dict]:
    """What the processes of one run found."""
    folder.mkdir()
    words = ["-m", "tests.recipes.launched", str(folder), "--model_name_or_path", str(SHIPPED), "--num_proc", "1"]
    words += ["--model_type", kind, "--shape", SHAPE + EXACT[kind], "--dataset_args", str(data), "--dtype", "float32"]
    words += [
        "--max_length",
        str(LENGTH),
        "--output_dir",
        str(folder / "out"),
        "--per_device_train_batch_size",
        str(size),
    ]
    words += [
        "--max_steps",
        "3",
        "--logging_steps",
        "1",
        "--eval_strategy",
        "no",
        "--bf16",
        "False",
        "--report_to",
        "none",
    ]
    words += ["--warmup_ratio", "0", "--random_length_ratio", "0", "--save_strategy", "no", "--disable_tqdm", "True"]
    environment = dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", HF_HOME=str(folder / "hf"))
    environment |= dict(CUDA_VISIBLE_DEVICES="", TOKENIZERS_PARALLELISM="false")
    done = programs.run(*launcher, *words, environment=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(file, weights_only=True) for file in sorted(folder.glob("rank*.pt"))]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("text") / "train.jsonl"
    file.write_text("".join(f'{{"text": "Number {i} is followed by number {i + 1}, as ever."}}\n' for i in range(40)))
    return file


def launch(config: str, folder: Path, data: Path, kind: str) -> list[dict]:
    launcher = ["-m", "accelerate.commands.launch", "--config_file", f"scripts/accelerate_configs/{config}.yaml"]
    options = ["--num_processes", "2", "--main_process_port", "0"]
    return run(folder, data, *launcher, *options, size=SAMPLES // 2, kind=kind)


# BERT's head has a bias that is in two places
@pytest.mark.parametrize(
    "name, kind",
    [
        ("fsdp2", "bert"),
        pytest.param("fsdp2", "modernbert", marks=pytest.mark.exhaustive),
        pytest.param("ddp", "modernbert", marks=pytest.mark.exhaustive),  # tests/core/test_distributed.py is of DDP
    ],
)
def test_two_processes_are_one(name, kind, data, tmp_path):
    folder = tmp_path / "alone"
    [whole] = run(folder, data, size=SAMPLES, kind=kind)
    ranks = launch(name, tmp_path / "run", data, kind)
    assert len(ranks) == 2
    once = [entry["nll"] for entry in whole["logs"] if "nll" in entry]
    for rank in ranks:
        assert rank["kind"] == {"ddp": "MULTI_CPU", "fsdp2": "FSDP"}[name]
        assert rank["weights"] == whole["weights"]  # what is tied still is
        assert rank["sharded"] == {"ddp": 0, "fsdp2": rank["weights"]}[name]
        nll = [entry["nll"] for entry in rank["logs"] if "nll" in entry]
        # a sum in float32 over the tokens of a batch, in another order; later steps start from weights that it moved
        assert nll[0] == pytest.approx(once[0], rel=SAMPLES * LENGTH * torch.finfo(torch.float32).eps)
        assert len(nll) == len(once) == 3
    saved, truth = (
        AutoModelForMaskedLM.from_pretrained(folder / "out" / "checkpoint-final").state_dict()
        for folder in (tmp_path / "run", folder)
    )
    assert {name: weight.shape for name, weight in saved.items()} == {name: w.shape for name, w in truth.items()}
