"""What few scripts do with a patched model's logits, each against the unpatched model: the same, or refused aloud."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from dllm.fast import patch
from tests.fast.test_masked_loss import model_of
from tests.fast.test_patch import IDS, LABELS, MASK, V, chosen, shifted

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = model_of()


def run(script, patched: bool):
    model = copy.deepcopy(MODEL)
    if patched:
        patch(model)
    return script(model)


def check(script):
    """The same tensors within float32's rounding of a few operations, the same of everything else."""
    plain, ours = run(script, False), run(script, True)
    torch.testing.assert_close(ours, plain, rtol=2e-5, atol=2e-6, equal_nan=True)


def gradients(model):
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("write", [lambda l: l, lambda l: l.data, lambda l: l.detach()])
def test_writes_without_gradients(mode, write):
    """A sampling loop that bans tokens, under either mode."""

    def script(model):
        with mode():
            logits = model(IDS).logits
            logits.argmax(-1)
            banned = write(logits)
            banned[..., : V // 2] = -torch.inf
            return banned.argmax(-1), banned.softmax(-1) + 0, chosen(banned.log_softmax(-1))

    check(script)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_writes_through_a_view_are_refused(mode):
    with patch(copy.deepcopy(MODEL)) as model, mode():
        logits = model(IDS).logits
        logits[:, 1:][..., : V // 2] = -torch.inf
        with pytest.raises(RuntimeError, match="written to in place after this view"):
            logits.argmax(-1)


def test_writes_in_inference_mode_to_logits_with_gradients():
    def script(model):
        logits = model(IDS).logits
        with torch.inference_mode():
            logits.mul_(2)
        return logits.argmax(-1), logits.detach() + 0

    check(script)


def halved(gradient):
    return gradient.mul_(0.5)


def capped(gradient):
    gradient.clamp_(-1e-3, 1e-3)


def without_first_row(gradient):
    gradient[0].zero_()


@pytest.mark.parametrize("hook", [halved, capped, without_first_row])
@pytest.mark.parametrize("view", [lambda l: l, lambda l: l.view(-1, V)])
def test_hooks_that_write_to_the_gradient(hook, view):
    def script(model):
        logits = view(model(IDS).logits)
        logits.register_hook(hook)
        F.cross_entropy(logits.view(-1, V), IDS.flatten()).backward()
        return gradients(model)

    check(script)


def test_gradients_of_leaves_add_up_and_are_cleared():
    def script(model):
        logits, found = model(IDS).logits.detach().requires_grad_(), []
        for loss in (F.cross_entropy, lambda l, ids: l.square().mean(), F.cross_entropy):
            loss(logits.mT, LABELS).backward()
            found.append(logits.grad + 0)
        logits.grad.data.zero_()
        F.cross_entropy(logits.mT, IDS).backward()
        return *found, logits.grad + 0

    check(script)
