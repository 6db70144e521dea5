"""One model in several hands: threads, changed configurations, weights that are kept elsewhere."""

import copy
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from dllm.fast import generate, patch
from dllm.fast.training.loss import masked_loss
from tests.fast.test_masked_loss import batch_of, model_of
from tests.models import MASK_ID, tiny

ARGUMENTS = dict(steps=4, gen_length=8, block_length=4, mask_id=MASK_ID, remasking="low_confidence", cuda_graph=False)
pytestmark = pytest.mark.usefixtures("one_thread")


def prompts(rows=2, columns=5, seed=0):
    return torch.randint(5, 97, (rows, columns), generator=torch.Generator().manual_seed(seed))


def test_threads_share_a_model():
    model = tiny("bert")
    given = [prompts(seed=seed) for seed in range(2)]
    expected = [generate(model, prompt, **ARGUMENTS) for prompt in given]
    wrong, interval = [], sys.getswitchinterval()

    def work(prompt, want):
        for _ in range(8):
            try:
                if not torch.equal(generate(model, prompt, **ARGUMENTS), want):
                    wrong.append("tokens")
            except Exception as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(given, expected, strict=True)]
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []
    assert "forward" not in model.get_output_embeddings().__dict__
    assert model(given[0]).logits.shape[-1] == model.config.vocab_size


def loss_of(model, batch):
    result = masked_loss(model, **batch)
    return [result.loss.detach(), result.nll, *torch.autograd.grad(result.loss, list(model.parameters()))]


def logits_of_copies(model, batch):
    return [model(**batch["inputs"]).logits, copy.deepcopy(model)(**batch["inputs"]).logits]


def patched_loss(model, batch):
    logits = model(**batch["inputs"]).logits.flatten(0, 1)[batch["rows"]]
    return [torch.nn.functional.cross_entropy(logits, batch["targets"]).detach()]


USERS = {
    "sampling": lambda model, batch: [generate(model, prompts(), **ARGUMENTS)],
    "guided": lambda model, batch: [generate(model, prompts(3), cfg_scale=0.5, **ARGUMENTS)],
    "training": loss_of,
    "logits": logits_of_copies,
    "a patched script": patched_loss,
}


@pytest.mark.parametrize("kind", ["linear", "module", "logits", "patched"])
def test_whoever_else_uses_the_model_sees_it_unchanged(kind):
    """Sampling, training and plain calls at once, each result compared with that of the same call alone."""
    model = model_of()  # without dropout, whose numbers would go to whoever comes first
    head, batch = model.get_output_embeddings(), batch_of(model)
    if kind == "module":
        head.forward = lambda hidden: torch.nn.Linear.forward(head, hidden)
    if kind == "logits":
        model.register_forward_hook(lambda module, args, out: type(out)(logits=out.logits * 2))
    own = vars(head).get("forward")
    expected = {name: use(model, batch) for name, use in USERS.items()}
    if kind == "patched":
        patch(model)
        expected = {name: use(model, batch) for name, use in USERS.items()}
    wrong, end = [], time.monotonic() + 2

    def work(name):
        try:
            while time.monotonic() < end and not wrong:
                found = USERS[name](model, batch)
                if not all(map(torch.equal, found, expected[name])):
                    wrong.append(name)
        except Exception as error:
            wrong.append(f"{name}: {error!r}")

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=work, args=(name,)) for name in USERS]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == [] and vars(head).get("forward") is own


class Capped(torch.nn.Module):
    """A model that caps its logits where its configuration says so."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.config = inner, SimpleNamespace(cap=None)
        self.get_output_embeddings = inner.get_output_embeddings
        self.get_input_embeddings = inner.get_input_embeddings

    def forward(self, input_ids):
        output = self.inner(input_ids=input_ids)
        if self.config.cap:
            output.logits = self.config.cap * (output.logits / self.config.cap).tanh()
        return output


def test_a_configuration_that_changes_between_calls():
    model, fresh = Capped(tiny("bert")), Capped(tiny("bert"))
    plain = generate(model, prompts(), temperature=0.7, seed=1, **ARGUMENTS)
    model.config.cap = fresh.config.cap = 1.0
    capped = generate(fresh, prompts(), temperature=0.7, seed=1, **ARGUMENTS)
    assert not torch.equal(plain, capped)
    assert torch.equal(generate(model, prompts(), temperature=0.7, seed=1, **ARGUMENTS), capped)


def test_a_model_that_was_broken_is_looked_at_again(caplog):
    model, healthy = tiny("bert"), tiny("bert")
    head = model.get_output_embeddings()
    with torch.no_grad():
        bias = head.bias.clone()
        head.bias.fill_(torch.nan)
        with pytest.raises(RuntimeError, match="row 0: no logit was finite at step 0"):
            generate(model, prompts(), **ARGUMENTS)
        head.bias.copy_(bias)
    caplog.clear()
    assert torch.equal(generate(model, prompts(), **ARGUMENTS), generate(healthy, prompts(), **ARGUMENTS))
    assert "full logits" not in caplog.text


def test_padding_may_hold_the_mask_token():
    model, real = tiny("bert"), prompts(1, 3)
    padded = torch.cat([torch.full((1, 2), MASK_ID), real], dim=1)
    got = generate(model, padded, attention_mask=torch.tensor([[0, 0, 1, 1, 1]]), **ARGUMENTS)
    assert torch.equal(got[:, 5:], generate(model, real, **ARGUMENTS)[:, 3:])


def test_weights_that_accelerate_keeps_elsewhere():
    accelerate = pytest.importorskip("accelerate")
    expected = generate(tiny("bert"), prompts(), **ARGUMENTS)
    model = accelerate.cpu_offload(tiny("bert"), execution_device="cpu")
    assert torch.equal(generate(model, prompts(), **ARGUMENTS), expected)


def test_a_wrapper_is_named():
    wrapper = torch.nn.Module()
    wrapper.module = tiny("bert")
    with pytest.raises(ValueError, match=r"wraps the model: pass its \.module"):
        generate(wrapper, prompts(), **ARGUMENTS)
