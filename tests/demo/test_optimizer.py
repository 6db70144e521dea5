"""Two optimizers as one: the same updates, one schedule, one state."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dllm.demo.training.optimizer import MuonAdamW, rate, schedule


def small_model() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    return nn.ModuleDict({"embedding": nn.Embedding(5, 4), "body": nn.ModuleDict({"layers": layers})})


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range, rates=None) -> None:
    """Updates with gradients that depend on the step's number alone."""
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
        if rates is not None:
            rates.step()


def test_each_part_updates_its_own():
    model, plain = small_model(), small_model()
    optimizer = MuonAdamW(model, matrix_lr=0.1, other_lr=0.01)
    matrices = [layer.weight for layer in plain["body"]["layers"]]
    others = [plain["embedding"].weight, *(layer.bias for layer in plain["body"]["layers"])]
    muon = torch.optim.Muon(matrices, weight_decay=0.01)
    adamw = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0)
    rates = schedule(optimizer, 30)
    steps(model, optimizer, range(30), rates)
    for number in range(30):
        muon.param_groups[0]["lr"], adamw.param_groups[0]["lr"] = 0.1 * rate(number, 30), 0.01 * rate(number, 30)
        generator = torch.Generator().manual_seed(number)
        for parameter in plain.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        muon.step(), adamw.step()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


def test_goes_on_from_its_state(tmp_path):
    model = small_model()
    optimizer = MuonAdamW(model, matrix_lr=0.1, other_lr=0.01)
    rates = schedule(optimizer, 30)
    steps(model, optimizer, range(3), rates)
    torch.save([optimizer.state_dict(), rates.state_dict(), model.state_dict()], tmp_path / "state")
    saved, saved_rates, weights = torch.load(tmp_path / "state", weights_only=True)
    resumed = small_model()
    resumed.load_state_dict(copy.deepcopy(weights))
    other = MuonAdamW(resumed, matrix_lr=0.1, other_lr=0.01)
    other_rates = schedule(other, 30)
    other.load_state_dict(saved)
    other_rates.load_state_dict(saved_rates)
    steps(model, optimizer, range(3, 9), rates)
    steps(resumed, other, range(3, 9), other_rates)
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] != 0.1
    for one, same in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, same)


@pytest.mark.parametrize("factor", [0.5, 4.0])
def test_the_scale_of_the_loss_does_not_matter(factor):
    """So it is all one whether it is a mean over the tokens that are masked, or over twice as many that may be. By a
    power of two, under which nothing is rounded otherwise."""
    model, scaled = small_model(), small_model()
    for one, by in ((model, 1.0), (scaled, factor)):
        optimizer = MuonAdamW(one, matrix_lr=0.1, other_lr=0.01)
        for number in range(5):
            generator = torch.Generator().manual_seed(number)
            for parameter in one.parameters():
                parameter.grad = by * torch.randn(parameter.shape, generator=generator)
            optimizer.step()
    for one, other in zip(model.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_closure():
    model = small_model()
    optimizer = MuonAdamW(model, matrix_lr=0.1, other_lr=0.01)
    before = [parameter.clone() for parameter in model.parameters()]

    def closure():
        optimizer.zero_grad()
        loss = sum(parameter.square().sum() for parameter in model.parameters())
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == pytest.approx(sum(p.square().sum().item() for p in before))
    assert not any(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


def test_rates_rise_fall_and_rise_once_more():
    rates = [rate(number, 3900) for number in range(3900)]
    top = rates.index(max(rates))
    assert rates[:top] == sorted(rates[:top]) and rates[top:3600] == sorted(rates[top:3600], reverse=True)
    assert rates[3600:] == sorted(rates[3600:], reverse=True) and rates[3600] == 0.1
    assert all(0 < share <= 1 for share in rates)
    assert rate(0, 1) == 0.1  # the shortest run
