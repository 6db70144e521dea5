"""What a run measures: means, rates, operations; and the curve that it draws."""

from __future__ import annotations

import logging
import math
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from dllm.core.trainers.utils import OnEvaluateMetricsCallback, throughput
from dllm.core.trainers.utils.curve import draw_curve
from dllm.core.trainers.utils.metrics import MeanMetric, NLLMetric, PPLMetric
from dllm.core.trainers.utils.throughput import Flops, Throughput
from tests.models import tiny


def test_means():
    nll, ppl = NLLMetric(), PPLMetric()
    for metric in (nll, ppl):
        metric.update(torch.tensor([1.0, 2.0]), torch.tensor([3, 1]))
        metric.update(torch.tensor(4.0), 4)
    assert float(nll.compute()) == (3 + 2 + 16) / 8
    assert float(ppl.compute()) == pytest.approx(math.exp(21 / 8), rel=1e-12)
    assert float(nll.compute()) == float(nll.compute())  # computing takes nothing away
    nll.reset()
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert math.isnan(float(nll.compute()))
    nll.update(torch.tensor([5.0, 7.0]))  # one weight for all
    assert float(nll.compute()) == 6


def test_means_are_exact_where_float32_is_not():
    mean = MeanMetric()
    for _ in range(3):
        mean.update(torch.tensor(1.0), 2**24)
        mean.update(torch.tensor(3.0), 1)
    assert float(mean.compute()) == (3 * 2**24 + 9) / (3 * 2**24 + 3)


def test_they_are_metrics_of_torchmetrics():
    """Of which scripts make collections, and which are synchronised over ranks when they are computed."""
    torchmetrics = pytest.importorskip("torchmetrics")
    found = torchmetrics.MetricCollection({"nll": NLLMetric(), "ppl": PPLMetric()})
    found.update(torch.tensor([1.0, 2.0]), weight=torch.tensor(2))
    assert {name: float(value) for name, value in found.compute().items()} == {"nll": 1.5, "ppl": math.exp(1.5)}
    assert all(metric.sync_on_compute for metric in found.values())


def test_what_is_logged_after_an_evaluation(capsys):
    logged = []
    trainer = SimpleNamespace(accelerator=SimpleNamespace(device=torch.device("cpu")), log=logged.append)
    meter = OnEvaluateMetricsCallback(trainer, metrics={"nll": NLLMetric(), "ppl": PPLMetric()})
    meter.update("train", value=torch.tensor([[1.0, 3.0]]), weight=torch.tensor([[3, 1]]))
    meter.update(split="eval", value=torch.tensor([0.0]), weight=torch.tensor([2]))
    for _ in range(2):  # the second time there is nothing
        meter.on_evaluate(None, SimpleNamespace(global_step=7), None)
    assert logged == [{"nll": 1.5, "ppl": math.exp(1.5), "eval_nll": 0.0, "eval_ppl": 1.0}]
    assert capsys.readouterr().out.startswith("[step 7] nll=1.500000")
    with pytest.raises(TypeError, match="metrics by name, or a MetricCollection, got list"):
        OnEvaluateMetricsCallback(trainer, metrics=[NLLMetric()])


def test_gradients_do_not_keep_graphs():
    mean, x = MeanMetric(), torch.ones(3, requires_grad=True)
    mean.update(x * 2)
    assert not mean.compute().requires_grad


def test_rates(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    rates = Throughput(torch.device("cpu"))
    rates.start()
    now[0] += 1
    rates.start()  # goes on from the first
    rates.update(torch.tensor([3, 5]), masked=4)
    with rates.paused():
        now[0] += 50
    rates.update(torch.tensor([2]), masked=1)
    now[0] += 1

    def flops(tokens, squares, masked):
        return 1000 * tokens + 100 * squares + masked

    measured = rates.rates(flops, peak=1e4)
    operations = 1000 * 10 + 100 * (9 + 25 + 4) + 5
    assert measured == {"tokens_per_second": 5, "masked_tokens_per_second": 2.5, "mfu": operations / 2 / 1e4}
    assert rates.rates() == {}
    rates.start()
    now[0] += 4
    rates.update(torch.tensor([8]), masked=2)
    assert rates.rates()["tokens_per_second"] == 2


def test_operations():
    """Of BERT with H = 32, 2 layers, MLP 48, V = 131, by hand."""
    model = tiny("bert")
    layer = 4 * 32 * 32 + 2 * 32 * 48
    transform = 32 * 32
    flops = Flops(model)
    assert flops.body == 6 * (2 * layer + transform)
    assert flops.head == 6 * 32 * 131
    assert flops.attention == 12 * 2 * 32
    assert flops(10, 60, 4) == flops.body * 10 + flops.attention * 60 + flops.head * 4
    for p in model.bert.parameters():
        p.requires_grad_(False)
    assert Flops(model).body == 4 * 2 * layer + 6 * transform
    assert Flops(model).head == 4 * 32 * 131  # tied to the embeddings


def test_the_machine():
    began = time.perf_counter()
    rate = throughput.matmul_rate.__wrapped__(torch.device("cpu"), torch.float32)
    assert rate >= 5 * 2 * 1024**3 / (time.perf_counter() - began)  # the fastest is not slower than the mean
    ballast = torch.ones(2**28 // 4)  # 256 MiB
    assert throughput.peak_memory(torch.device("cpu")) > 0.25 and ballast.any()


def test_curve(tmp_path):
    entries = [{"step": i, "loss": 5 / (i + 1), "learning_rate": 1e-3} for i in range(10)]
    path = draw_curve([*entries, {"step": 9, "eval_loss": 1.0}], tmp_path / "deep" / "curve.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert draw_curve([{"step": 1, "train_runtime": 3.0}], tmp_path / "none.png") is None
    assert not (tmp_path / "none.png").exists()


def test_curve_without_matplotlib(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with caplog.at_level(logging.WARNING, "dllm"):
        assert draw_curve([{"step": 1, "loss": 3.0}], tmp_path / "curve.png") is None
    assert "matplotlib is not installed" in caplog.text
