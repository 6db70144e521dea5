"""A patched model under DDP, FSDP2 and FSDP1 on two gloo processes: served, or real and said so, or refused."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.fast.patch_rank import STEPS, batch_of, loss_of
from tests.fast.test_masked_loss import model_of

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[2]
DEFERRED = ("ddp", "ddp, unused parameters", "ddp, static graph", "fsdp2")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    world = dict(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port, OMP_NUM_THREADS="1")
    processes = []
    for rank in "01":
        environment = os.environ | world | dict(RANK=rank, LOCAL_RANK=rank, PYTHONPATH=str(ROOT))
        log = (folder / f"rank{rank}.log").open("w")
        words = [sys.executable, "-m", "tests.fast.patch_rank", str(folder)]
        processes.append(subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=900) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], "\n".join((folder / f"rank{rank}.log").read_text()[-3000:] for rank in "01")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in "01"]


def truth(real: bool) -> dict:
    """float64 gradients of both ranks' losses, averaged over ranks, summed over steps."""
    model = model_of().double()
    for step in range(STEPS):
        for rank in range(2):
            (loss_of(model, *batch_of(rank, step), real)[1] / 2).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def distance(found: dict, exact: dict) -> float:
    assert found.keys() == exact.keys()
    return float(torch.cat([(found[name].double() - exact[name]).flatten() for name in exact]).norm())


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("case", DEFERRED)
def test_served(case, when, real, ranks):
    exact = truth(real)
    for rank in ranks:
        assert rank[case, when, real]["deferred"] and not rank[case, "never", real]["deferred"]
        plain = distance(rank[case, "never", real]["gradients"], exact)
        assert distance(rank[case, when, real]["gradients"], exact) <= 2 * plain


@pytest.mark.parametrize("case, when", [("fsdp2, head by itself", "before"), ("fsdp1", "before"), ("fsdp1", "after")])
def test_real_where_the_weight_is_only_lent(case, when, ranks):
    for rank in ranks:
        found, expected = rank[case, when, False], rank[case, "never", False]["gradients"]
        assert not found["deferred"] and found["gradients"].keys() == expected.keys()
        assert all(gradient.equal(expected[name]) for name, gradient in found["gradients"].items())


def test_refused(ranks):
    for rank in ranks:
        for when in ("before", "after"):
            assert "it has been given back" in rank["fsdp2, root resharded", when, False]["refused"]
        assert "must be an nn.Linear, got" in rank["fsdp2, head by itself", "after", False]["refused"]
