"""Two processes over gloo are one process with batches twice as large."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.core.reference import Objective
from tests.core.runs import Loose, Strict, model_of, samples_of
from tests.core.test_mdlm import close, truth

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[2]
KINDS = {"Strict": Strict, "Loose": Loose}


# one forward and several; every normalisation; both kinds of forward
CASES = [("token", "Strict", 4, 1), ("token", "Loose", 2, 2), ("sequence", "Loose", 1, 4), ("batch", "Strict", 2, 2)]


def settings_of(norm: str, kind: str, size: int, accumulation: int) -> dict:
    options = dict(per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, num_train_epochs=1)
    options |= dict(learning_rate=0.0, per_device_eval_batch_size=2)
    return dict(norm=norm, kind=kind, samples=8, evaluated=7, options=options)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[list[dict]]:
    """What each of two ranks found in each case, all cases one after the other in the same two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    runs = json.dumps([settings_of(*case) for case in CASES])
    words = [sys.executable, "-m", "tests.core.rank", str(folder), runs]
    world = dict(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port, OMP_NUM_THREADS="1")
    processes = []
    for rank in "01":
        environment = os.environ | world | dict(RANK=rank, LOCAL_RANK=rank, PYTHONPATH=str(ROOT))
        log = (folder / f"rank{rank}.log").open("w")
        processes.append(subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=900) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], "\n".join((folder / f"rank{rank}.log").read_text()[-3000:] for rank in "01")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in "01"]


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_are_one_batch(case, ranks):
    norm, kind, *_ = case
    objective, (first, second) = Objective(norm=norm), (rank[CASES.index(case)] for rank in ranks)
    model, samples = model_of(KINDS[kind]), samples_of(8)
    loss64, nll64, exact = truth(model, samples, objective, torch.float64)
    _, nll32, plain = truth(model, samples, objective, torch.float32)
    for rank in (first, second):
        (step,) = rank["gradients"]
        assert float((step - exact).norm()) <= 2 * float((plain - exact).norm())
    (entry,) = [entry for entry in first["logs"] if "loss" in entry]
    assert abs(entry["loss"] - float(loss64.sum())) < 1e-4  # transformers 4 logs four digits
    assert close(entry["nll"], nll64, nll32)


@pytest.mark.parametrize("case", CASES)
def test_evaluation_counts_no_sample_twice(case, ranks):
    """Seven samples on two ranks: the last batch is filled up with one that must not count."""
    norm, kind, *_ = case
    objective, model, samples = Objective(norm=norm), model_of(KINDS[kind]), samples_of(7, seed=5)
    loss64, nll64, _ = truth(model, samples, objective, torch.float64)
    loss32, nll32, _ = truth(model, samples, objective, torch.float32)
    for rank in ranks:
        found = rank[CASES.index(case)]["evaluation"]
        assert close(found["eval_loss"], loss64, loss32) and close(found["eval_nll"], nll64, nll32)
