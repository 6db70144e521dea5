"""What acts between a head and the logits is seen, whatever its values are, and results are those of plain PyTorch."""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from dllm.fast import generate, patch
from dllm.fast.deferred import DeferredLogits
from dllm.fast.head.traced import ROWS, TracedTensor, is_rowwise
from dllm.fast.head.use import HeadUse, find_head_use
from dllm.fast.training.loss import masked_loss
from tests.core.reference import Objective
from tests.core.runs import Gradients, Loose, samples_of, trainer_of
from tests.core.runs import model_of as trained_model_of
from tests.core.test_mdlm import check as check_run
from tests.fast.test_generate import LOW, assert_same, reference
from tests.fast.test_masked_loss import batch_of, check, model_of
from tests.models import MASK_ID, kind_of, make_prompt, tiny

pytestmark = pytest.mark.usefixtures("one_thread")
EXAMPLE = {"input_ids": torch.tensor([[5, 6, 7, 8]])}


class After(nn.Module):
    """A model that does something with its head's output: `step` of the logits, the input's embedding and `self`."""

    def __init__(self, inner, step, **parts):
        super().__init__()
        self.inner, self.step, self.config = inner, step, inner.config
        for name, part in parts.items():
            setattr(self, name, part)
        self.get_output_embeddings, self.get_input_embeddings = inner.get_output_embeddings, inner.get_input_embeddings

    def forward(self, input_ids, attention_mask=None):
        output = self.inner(input_ids=input_ids, attention_mask=attention_mask)
        output.logits = self.step(self, output.logits, self.get_input_embeddings()(input_ids))
        return output


def parameter(*shape, value=0.0):
    return nn.Parameter(torch.full(shape, value))


def add_in_place(model, logits, embedded):
    logits[..., 5:] += model.bias[5:]
    return logits


def scaled_where_large(model, logits, embedded):
    return logits * 3 if float(logits.detach().max()) > model.limit else logits


# what acts, and what it begins with: nothing changes a bit of the logits
NEUTRAL = {
    "scale 1": lambda inner: After(inner, lambda self, l, e: l * self.scale, scale=parameter(value=1.0)),
    "second bias 0": lambda inner: After(inner, lambda self, l, e: l + self.bias, bias=parameter(131)),
    "in place": lambda inner: After(inner, add_in_place, bias=parameter(131)),
    "gate 0": lambda inner: After(
        inner, lambda self, l, e: torch.addcmul(l, self.gate, self.extra(e)), gate=parameter(), extra=nn.Linear(32, 131)
    ),
    "high softcap": lambda inner: After(inner, lambda self, l, e: self.cap * (l / self.cap).clamp(-1, 1), cap=2.0**20),
    "a branch": lambda inner: After(inner, scaled_where_large, limit=1e9),
}


def begin(kind):
    return NEUTRAL[kind](model_of())


def act(model):
    """What was neutral is so no more."""
    with torch.no_grad():
        for name, value in dict(scale=3.0, gate=0.7).items():
            if hasattr(model, name):
                getattr(model, name).fill_(value)
        if hasattr(model, "bias"):
            model.bias.copy_(torch.linspace(0, 5, 131))
        model.cap, model.limit = 1.0, -1e9


@pytest.mark.parametrize("kind", NEUTRAL)
def test_what_is_neutral_at_first_trains_right(kind, caplog):
    """Loss and gradients of the first step and of a later one, as those of full logits."""
    model = begin(kind)
    with caplog.at_level(logging.WARNING, "dllm.fast"):
        assert check(model, batch_of(model.inner)) == "logits"
    assert "from full logits, because it computes with its head's output: aten." in caplog.text
    masked_loss(model, **batch_of(model.inner))
    act(model)
    assert check(model, batch_of(model.inner)) == "logits"


@pytest.mark.parametrize("kind", NEUTRAL)
def test_what_is_neutral_at_first_samples_right(kind):
    model = begin(kind).eval()
    arguments = (6, 12, 6, 0.5, 0.0, LOW)
    for change in (lambda model: None, act):
        change(model)
        prompt = make_prompt(model.inner, 2, 5)
        want = reference(model, prompt, *arguments, seeds=2)
        assert_same(generate(model, prompt, *arguments, mask_id=MASK_ID, seed=2), want)


@pytest.mark.parametrize("kind", NEUTRAL)
def test_what_is_neutral_at_first_is_not_patched(kind):
    with pytest.raises(ValueError, match="After: it computes with its head's output"):
        patch(begin(kind))


def test_a_patched_model_that_gains_a_scale_computes_with_it():
    """Deferred logits are logits: what comes later between them and a loss is computed."""
    model = After(model_of(), lambda self, l, e: l)
    plain, batch = copy.deepcopy(model), batch_of(model.inner)
    plain.step = lambda self, l, e: l * 3
    with patch(model):
        assert isinstance(model(**batch["inputs"]).logits, DeferredLogits)
        model.step = plain.step
        targets = torch.full((9,), 7)
        found, wanted = (F.cross_entropy(m(**batch["inputs"]).logits[0], targets) for m in (model, plain))
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)


class Scaled(Loose):
    """A scale after the head, beside it a bias: both begin neutral."""

    family = "bert"

    def forward(self, input_ids, attention_mask=None, **kwargs):
        output = super().forward(input_ids, attention_mask=attention_mask)
        output.logits = output.logits * self.scale + self.beside
        return output


@pytest.mark.parametrize("scale, bias", [(1.0, 0.0), (3.0, 0.5)])
def test_a_trainer_trains_them(scale, bias, tmp_path):
    model, samples, watch = trained_model_of(Scaled), samples_of(8), Gradients()
    model.scale, model.beside = parameter(value=scale), nn.Parameter(torch.linspace(0, bias, 131))
    before = copy.deepcopy(model)
    trainer = trainer_of(tmp_path, model, samples, callbacks=[watch], per_device_train_batch_size=8, num_train_epochs=1)
    trainer.train()
    check_run(trainer, watch.seen, before, samples, Objective())
    assert kind_of(model) == "logits" and model.scale.item() != scale


COPIES = {
    "nothing": lambda logits: logits,
    "float": lambda logits: logits.float(),
    "double": lambda logits: logits.double(),
    "clone": lambda logits: logits.clone().contiguous(),
    "all of it": lambda logits: logits[:, 0:][...].detach(),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_and_casts_are_no_computation(kind):
    model = After(model_of(), lambda self, l, e: COPIES[kind](l))
    assert find_head_use(model, model.get_output_embeddings(), EXAMPLE) == HeadUse("linear")


OTHERS = {
    "a part": lambda logits: logits[..., :90],
    "rounded": lambda logits: logits.bfloat16().float(),
    "other values": torch.zeros_like,
    "rows moved": lambda logits: logits.transpose(1, 2).reshape(logits.shape),
    "looked at": lambda logits: logits if logits.isfinite().all() else -logits,
    "as numbers": lambda logits: torch.tensor(logits.tolist()),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_anything_else_is(kind):
    model = After(tiny("bert"), lambda self, l, e: OTHERS[kind](l))
    use = find_head_use(model, model.get_output_embeddings(), EXAMPLE)
    assert use.kind == "logits" and use.why


def test_what_comes_later_is_seen():
    """Modules, functions, switches, hooks and configurations between head and logits, one after the other."""
    model = After(tiny("bert"), lambda self, l, e: self.post(l), post=nn.Sequential(nn.Identity()))
    model.config = SimpleNamespace(cap=None)
    head = model.get_output_embeddings()

    def kind():
        return find_head_use(model, head, EXAMPLE).kind

    assert kind() == "linear"
    model.post[0] = nn.Dropout(0.1).eval()  # acts in training only
    assert kind() == "linear"
    model.train()
    assert kind() == "logits"
    model.eval()
    assert kind() == "linear"
    model.post[0].register_forward_hook(lambda module, args, out: out * 1)
    assert kind() == "logits"
    model.post[0] = nn.Identity().eval()
    assert kind() == "linear"
    model.step = lambda self, l, e: l * self.config.cap if self.config.cap else l
    assert kind() == "linear"
    model.config.cap = 1.0
    assert kind() == "logits"
    model.config.cap = None
    model.args = SimpleNamespace(cap=None)
    model.step = lambda self, l, e: l * self.args.cap if self.args.cap else l
    assert kind() == "linear"
    model.args.cap = 1.0
    assert kind() == "logits"
    model.args.cap = None
    handle = model.inner.cls.register_forward_hook(lambda module, args, out: out + 0)
    assert kind() == "logits"
    handle.remove()
    assert kind() == "linear"
    handle = head.register_full_backward_hook(lambda *_: None)
    assert kind() == "logits"
    handle.remove()
    head.forward = lambda hidden: nn.Linear.forward(head, hidden)
    assert kind() == "module"
    del head.forward
    assert kind() == "linear"


class Tilted(nn.Linear):
    """Every position has a bias of its own, which begins at 0."""

    def forward(self, hidden):
        return super().forward(hidden) + self.tilt[: hidden.shape[-2]]


def test_a_head_that_may_tell_rows_apart_is_called_on_all():
    model = model_of()
    head = model.get_output_embeddings()
    head.__class__ = Tilted
    head.tilt = parameter(9, 1)
    assert check(model, batch_of(model)) == "logits"
    with torch.no_grad():
        head.tilt.copy_(torch.randn(9, 131)[:, :1])
    assert check(model, batch_of(model)) == "logits"


_linear, _norm = nn.Linear(8, 11), nn.LayerNorm(8)
ALONE = {
    "linear": _linear,
    "no bias": nn.Linear(8, 11, bias=False),
    "adapter": lambda h: _linear(h) + 2 * F.dropout(h, 0.1, True) @ torch.ones(8, 11),
    "norms": lambda h: _linear(_norm(h) * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)),
    "reshaped": lambda h: _linear(h.flatten(0, -2)).view(*h.shape[:-1], 11).log_softmax(-1),
    "in place": lambda h: _linear(h).mul_(2).add_(torch.ones(11)).tanh_(),
}
TOGETHER = {
    "slice": lambda h: _linear(h) - _linear(h)[..., :1, :],
    "position": lambda h: _linear(h) + torch.zeros(h.shape[1], 11),
    "mean over rows": lambda h: _linear(h) - _linear(h).mean(1, keepdim=True),
    "one size for all": lambda h: _linear(h / h.abs().amax()),
    "rolled": lambda h: _linear(h.roll(1, 1)),
    "written elsewhere": lambda h: torch.zeros(1, ROWS, 8).copy_(h),
    "attention": lambda h: h @ h.mT @ torch.ones(ROWS, 11),
}


@pytest.mark.parametrize("kind", [*ALONE, *TOGETHER])
@torch.no_grad()
def test_rows_alone_or_together(kind):
    rows = TracedTensor(torch.randn(1, ROWS, 8, generator=torch.Generator().manual_seed(0)), is_rowwise)
    (ALONE | TOGETHER)[kind](rows)
    assert (rows.trace.exception is None) == (kind in ALONE)


def test_looking_leaves_nothing_behind():
    """Neither random numbers nor modes nor running means, in training mode; and gradient checkpoints say nothing."""

    class Normed(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.norm = inner, nn.BatchNorm1d(32)
            self.get_output_embeddings = inner.get_output_embeddings

        def forward(self, input_ids):
            self.norm(self.inner.get_input_embeddings()(input_ids).flatten(0, 1))
            return self.inner(input_ids=input_ids)

    model = Normed(tiny("bert")).train()
    model.inner.gradient_checkpointing_enable({"use_reentrant": True})
    before = [t.clone() for t in model.buffers()], torch.get_rng_state(), [m.training for m in model.modules()]
    find_head_use(model, model.get_output_embeddings(), {"input_ids": EXAMPLE["input_ids"]})
    after = list(model.buffers()), torch.get_rng_state(), [m.training for m in model.modules()]
    assert all(map(torch.equal, before[0], after[0])) and torch.equal(before[1], after[1]) and before[2] == after[2]


class Whole(nn.Module):
    """A model of which all is computed twice, its head too."""

    def __init__(self, inner, reentrant):
        super().__init__()
        self.inner, self.reentrant = inner, reentrant
        self.get_output_embeddings = inner.get_output_embeddings

    def forward(self, input_ids):
        def logits(embedded):
            return self.inner(inputs_embeds=embedded).logits

        embedded = self.inner.get_input_embeddings()(input_ids)
        return SimpleNamespace(logits=checkpoint(logits, embedded, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_around_the_head(reentrant):
    model = Whole(model_of(), reentrant)
    check(model, batch_of(model.inner))


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_around_the_loss(reentrant):
    model, batch = model_of(), batch_of(model_of())
    masked_loss(model, **batch).loss.backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()

    def loss(anchor):
        return masked_loss(model, **batch).loss + 0 * anchor

    checkpoint(loss, torch.ones((), requires_grad=True), use_reentrant=reentrant).backward()
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(model.parameters(), plain, strict=True))


def test_a_model_compiled_as_one_graph():
    torch._dynamo.reset()
    model = tiny("bert")
    prompt, arguments = make_prompt(model, 2, 5), (4, 8, 4, 0.5, 0.0, LOW)
    want = reference(model, prompt, *arguments, seeds=2)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_same(generate(compiled, prompt, *arguments, mask_id=MASK_ID, seed=2), want)
    torch._dynamo.reset()
