"""A patched model against the unpatched one: values, gradients, what is computed of the logits, what is left behind.

The judge is the same script on the unpatched model in float64; the error of the patched float32 may be twice that of
the unpatched float32.
"""

from __future__ import annotations

import copy
import functools
import io
import logging
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dllm.fast import generate, patch, unpatch
from dllm.fast.deferred import DeferredLogits, tensor
from dllm.fast.training.loss import masked_loss
from dllm_kernels.testing import assert_model_no_worse
from tests.fast.test_masked_loss import Capped, Largest, as_thrice, batch_of, model_of
from tests.models import FAMILIES, MASK_ID, make_prompt

pytestmark = pytest.mark.usefixtures("one_thread")
BATCH, LENGTH, V = 3, 9, 131
IDS = make_prompt(model_of(), BATCH, LENGTH)
MASK = torch.rand(BATCH, LENGTH, generator=torch.Generator().manual_seed(2)) < 0.4
P = torch.rand(BATCH, LENGTH, generator=torch.Generator().manual_seed(3)) * 0.9 + 0.1
LABELS = IDS.masked_fill(~MASK, -100)


def shifted(logits):
    return torch.cat([logits[:, :1], logits[:, :-1]], 1)


def chosen(log_or_not, ids=IDS):
    return log_or_not.gather(-1, ids[..., None]).squeeze(-1)


# What scripts do with logits [B, L, V]; each returns one number.
LOSSES = {
    "masked rows": lambda l: F.cross_entropy(l[MASK], IDS[MASK]),
    "masked rows, summed": lambda l: F.cross_entropy(input=l[MASK], target=IDS[MASK], reduction="sum"),
    "divided by p": lambda l: (F.cross_entropy(l[MASK], IDS[MASK], reduction="none") / P[MASK]).sum() / IDS.numel(),
    "transposed": lambda l: (F.cross_entropy(l.transpose(1, 2), IDS, reduction="none") * MASK / P).sum(),
    "transposed, negative weights": lambda l: (F.cross_entropy(l.mT, IDS, reduction="none") * (P - 0.5)).sum(),
    "permuted": lambda l: F.cross_entropy(l.permute(0, 2, 1), LABELS),
    "view": lambda l: F.cross_entropy(l.view(-1, l.size(-1)), LABELS.view(-1)),
    "view, V left out": lambda l: F.cross_entropy(l.view(BATCH * LENGTH, -1), LABELS.view(-1)),
    "reshape": lambda l: F.cross_entropy(torch.reshape(l, (-1, V)), LABELS.reshape(-1), reduction="sum"),
    "flatten, float": lambda l: nn.CrossEntropyLoss()(l.float().flatten(0, 1), IDS.flatten()),
    "to": lambda l: nn.CrossEntropyLoss(reduction="none")(l.to(torch.float32).mT, LABELS).mean(),
    "rows": lambda l: F.cross_entropy(l[torch.tensor([0, 2, 2]), torch.tensor([1, 8, 8])], IDS[0, :3]),
    "one row": lambda l: F.cross_entropy(l[0, 4], IDS[0, 4]),
    "a list of rows": lambda l: F.cross_entropy(l[0][[1, 3]], IDS[0, [1, 3]]),
    "positions": lambda l: F.cross_entropy(l[:, 2:7].transpose(1, 2), IDS[:, 2:7]),
    "next token": lambda l: F.cross_entropy(l[..., :-1, :].contiguous().view(-1, V), IDS[:, 1:].reshape(-1)),
    "right shift": lambda l: F.cross_entropy(shifted(l)[MASK], IDS[MASK], reduction="none").square().sum(),
    "smoothing": lambda l: F.cross_entropy(l.view(-1, V), LABELS.view(-1), label_smoothing=0.1),
    "class weights": lambda l: F.cross_entropy(l.view(-1, V), LABELS.view(-1), torch.arange(V).to(l.dtype) / V),
    "other ignore_index": lambda l: F.cross_entropy(l.mT, IDS.where(MASK, 7), ignore_index=7, reduction="sum"),
    "nll_loss": lambda l: F.nll_loss(F.log_softmax(l, dim=-1)[MASK], IDS[MASK]),
    "log_softmax, gather": lambda l: -(chosen(l.log_softmax(-1)) * MASK).sum(),
    "softmax, gather": lambda l: -(chosen(torch.softmax(l, -1)) * P).sum(),
    "two losses": lambda l: F.cross_entropy(l[MASK], IDS[MASK]) + F.cross_entropy(l.mT, IDS),
    "sliced losses": lambda l: sum(F.cross_entropy(l[b, MASK[b]], IDS[b, MASK[b]]) for b in range(BATCH)),
    "select, narrow": lambda l: F.cross_entropy(l.select(0, 1).narrow(0, 2, 4).unsqueeze(0).mT, IDS[1:2, 2:6]),
}
# What asks for real logits, and by which name.
REAL = {
    "div": lambda l: F.cross_entropy((l / 0.7)[MASK], IDS[MASK]),
    "of rows only": lambda l: (l[MASK] ** 2).mean(),
    "probabilities as labels": lambda l: F.cross_entropy(
        l[MASK], torch.full((int(MASK.sum()), V), 1 / V, dtype=l.dtype)
    ),
    "beside a fused one": lambda l: F.cross_entropy(l.mT, IDS) + 1e-3 * l[MASK].logsumexp(-1).square().mean(),
    "written to": lambda l: F.cross_entropy(banned(l)[MASK], IDS[MASK]),
    "part of the vocabulary": lambda l: l[..., 5:9].square().mean(),
    "softmax used whole": lambda l: (l.softmax(-1)[MASK] ** 2).sum(),
    "of a cast": lambda l: l.float()[:, 2].square().sum(),
    "of a transposed": lambda l: (l.transpose(1, 2) * P[:, None]).square().sum(),
}


def banned(logits):
    logits = logits.clone()
    logits[..., MASK_ID] = -30.0
    return logits


def run(model, loss, *, patched=False):
    """The loss, and the gradients of all parameters in one row."""
    model = copy.deepcopy(model)
    if patched:
        patch(model)
    found = loss(model(IDS % model.config.vocab_size).logits)
    found.backward()
    return found.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def named(loss, gradients):
    return {"loss": loss, "gradient": gradients}


def check(loss, model=None):
    """Values and gradients beside those of the unpatched model."""
    model = model_of() if model is None else model
    ours, plain = run(model, loss, patched=True), run(model, loss)
    assert all(x.dtype == y.dtype and x.shape == y.shape for x, y in zip(ours, plain, strict=True))
    assert_model_no_worse(named(*ours), lambda model: named(*run(model, loss)), model)


@pytest.fixture(autouse=True)
def fresh_log():
    """What is said once is said once per test."""
    tensor.log_once.cache_clear()


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.WARNING, "dllm.fast")
    return lambda: [record.message for record in caplog.records if record.name == "dllm.fast"]


@pytest.mark.parametrize("form", LOSSES)
def test_losses(form, said):
    check(LOSSES[form])
    assert said() == []


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family):
    model = model_of(family)
    for form in ("masked rows", "transposed"):
        if family != "modernbert":
            check(LOSSES[form], model)
    check(lambda l: F.cross_entropy(l[MASK], IDS[MASK] % l.shape[-1]), model)


@pytest.mark.parametrize("form", REAL)
def test_real_logits(form, said):
    check(REAL[form])
    assert len(said()) == 1 and "asked for real logits" in said()[0]


def test_real_logits_are_the_unpatched_ones():
    model = model_of()
    expected = model(IDS).logits
    with patch(model):
        logits = model(IDS).logits
        assert logits.exp().equal(expected.exp())
        assert logits[0, :, 5:9].equal(expected[0, :, 5:9]) and logits.tolist() == expected.tolist()
        assert str(model(IDS).logits.detach()) == str(expected.detach())
        assert model(IDS).logits.detach().numpy().tolist() == expected.tolist()
        assert pickle.loads(pickle.dumps(model(IDS).logits.detach())).equal(expected)
        assert copy.deepcopy(model(IDS).logits.detach()).equal(expected)
        assert type(copy.deepcopy(model(IDS).logits.detach())) is torch.Tensor


def test_what_is_answered_without_computing():
    model = model_of()
    with patch(model), Largest(V, 32) as largest:
        logits = model(IDS).logits
        assert largest.rows == 0
        assert (
            logits.shape == (BATCH, LENGTH, V) and logits.size(-1) == V and logits.dim() == 3 and len(logits) == BATCH
        )
        assert logits.dtype == torch.float32 and logits.device == IDS.device and logits.requires_grad
        assert logits.numel() == BATCH * LENGTH * V and logits.is_floating_point() and not logits.is_leaf
        assert not logits.detach().requires_grad and isinstance(logits, DeferredLogits)
        with torch.no_grad():
            assert not model(IDS).logits.requires_grad
    assert logits.computed is None


@pytest.mark.parametrize("form", LOSSES)
def test_logits_are_never_stored(form):
    """No tensor has more rows of the vocabulary than carry loss; casts and copies of the logits do not exist."""
    model = model_of()
    with patch(model):
        logits = model(IDS).logits
        with Largest(V, 32) as largest:
            LOSSES[form](logits).backward()
    assert largest.rows <= BATCH * LENGTH
    masked_only = ("masked", "divided", "right", "nll_loss", "view", "reshape", "to", "smoothing", "class", "other")
    if form.startswith(masked_only):
        assert largest.rows <= int(MASK.sum())


def test_rows_without_upstream_gradient_cost_nothing_in_the_backward():
    model = model_of()
    with patch(model):
        loss = F.cross_entropy(model(IDS).logits.transpose(1, 2), IDS, reduction="none")
        with Largest(V, 32) as largest:
            (loss * MASK).sum().backward()
    assert largest.rows == int(MASK.sum())


def test_nothing_to_learn_from():
    model = patched = model_of()
    expected = F.cross_entropy(model(IDS).logits.mT, torch.full_like(IDS, -100))
    patch(patched)
    for labels, rows in ((torch.full_like(IDS, -100), slice(None)), (IDS, slice(0, 0))):
        logits = patched(IDS).logits[rows]
        loss = F.cross_entropy(logits.mT, labels[rows])
        assert loss.isnan() and expected.isnan()
        assert F.cross_entropy(logits.mT, labels[rows], reduction="sum") == 0
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in patched.parameters())


def test_labels():
    """The model's own loss, from its own head's output."""
    model = model_of()
    expected = model(IDS, labels=LABELS)
    with patch(model), Largest(V, 32) as largest:
        output = model(IDS, labels=LABELS)
        output.loss.backward()
    assert float(output.loss.detach()) == pytest.approx(float(expected.loss.detach()), rel=1e-6)
    assert isinstance(output.logits, DeferredLogits) and largest.rows == int(MASK.sum())


def test_argmax_and_confidence():
    model = model_of()
    head, states = copy.deepcopy(model.get_output_embeddings()), []
    with model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: states.append(inputs[0].detach())):
        expected = model(IDS).logits.detach()

    def confidence(head, ids):
        return {"p": chosen(head(states[0].to(head.weight.dtype)).softmax(-1), ids)}

    with patch(model), torch.no_grad():
        logits = model(IDS).logits
        tokens = logits.argmax(-1)
        assert tokens.equal(expected.argmax(-1)) and torch.argmax(logits, dim=-1, keepdim=True).equal(tokens[..., None])
        assert logits[MASK].argmax(dim=1).equal(expected[MASK].argmax(-1))
        for dtype in (torch.float32, torch.float64):
            for ids in (tokens, IDS):
                ours = chosen(F.softmax(logits.to(dtype), dim=-1), ids)
                assert ours.dtype == dtype
                # float64 of float32 logits: no nearer to the truth than these
                assert_model_no_worse({"p": ours.float()}, functools.partial(confidence, ids=ids), head)
        assert logits.computed is None


def test_confidences_near_one_are_told_apart():
    """A float64 softmax tells 1 - 1e-11 from 1 - 1e-12, so a loop that ranks confidences needs that of ours."""
    hidden = torch.tensor([[24.0], [26.0], [28.0], [30.0]])
    head = nn.Linear(1, 3, bias=False)
    head.weight.data = torch.tensor([[1.0], [0.0], [-1.0]])
    with torch.no_grad():
        logits = tensor.defer(hidden, head.weight, None)
        tokens = logits.argmax(-1)
        told = F.softmax(logits.double(), -1).gather(-1, tokens[:, None])
        fresh = F.softmax(logits.double(), -1).gather(-1, tokens[:, None].clone())
        expected = F.softmax(head(hidden).double(), -1).gather(-1, tokens[:, None])
    assert told.equal(fresh) and len(told.unique()) == 4
    assert float((told - expected).abs().max()) <= 2 * torch.finfo(torch.float64).eps


def test_the_argmax_is_not_trusted_once_its_tokens_change():
    model = model_of()
    with patch(model), torch.no_grad():
        logits = model(IDS).logits
        probabilities, tokens = logits.softmax(-1), logits.argmax(-1)
        tokens[:] = IDS
        changed = chosen(probabilities, tokens)
        assert changed.equal(chosen(probabilities)) and not changed.equal(chosen(probabilities, logits.argmax(-1)))


def test_autocast():
    model = model_of()

    def loss(logits):
        return F.cross_entropy(logits[MASK], IDS[MASK])

    def under(model, patched, outside):
        model = copy.deepcopy(model)
        if patched:
            patch(model)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(IDS).logits
            found = None if outside else loss(logits)
        found = loss(logits) if outside else found
        found.backward()
        return found.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    for outside in (False, True):
        ours, plain = under(model, True, outside), under(model, False, outside)
        assert all(x.dtype == y.dtype for x, y in zip(ours, plain, strict=True))

        def compute(model, outside=outside):
            half = next(model.parameters()).dtype == torch.float32
            return named(*(under(model, False, outside) if half else run(model, loss)))

        assert_model_no_worse(named(*ours), compute, model, dtype=torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes(dtype):
    model = model_of().to(dtype)
    for form in ("masked rows", "transposed", "flatten, float", "nll_loss"):
        check(LOSSES[form], model)
    with patch(model):
        logits = model(IDS).logits
        assert logits.dtype == dtype and logits.float().dtype == torch.float32
        assert logits.float().half().dtype == torch.float16  # rounds again: real


def test_float64_has_no_kernel(said):
    model = model_of().double()
    with patch(model):
        assert type(model(IDS).logits) is torch.Tensor
    assert said() == ["deferred logits: not here, because no kernel computes in torch.float64"]


class Squares(torch.autograd.Function):
    """A user's own operation on logits, which sees them below torch's functions."""

    @staticmethod
    def forward(ctx, logits):
        ctx.save_for_backward(logits)
        return (logits * logits).sum()

    @staticmethod
    def backward(ctx, gradient):
        (logits,) = ctx.saved_tensors
        return 2 * gradient * logits


@pytest.mark.parametrize("view", [lambda l: l, lambda l: l[MASK], lambda l: l.mT, lambda l: l.float()])
def test_a_function_of_autograd(view):
    check(lambda l: Squares.apply(view(l)))


class Thrice(torch.autograd.Function):
    """Hands on what it was given, in some view of it, and a gradient of its own making."""

    @staticmethod
    def forward(ctx, logits, view):
        return view(logits)

    @staticmethod
    def backward(ctx, gradient):
        return 3 * gradient, None


@pytest.mark.parametrize("view", [lambda l: l, lambda l: l.clone(), lambda l: l.view(l.shape), lambda l: l.detach()])
def test_a_function_between_logits_and_loss(view):
    for form in ("masked rows", "transposed", "flatten, float", "right shift"):
        check(lambda l, form=form: LOSSES[form](Thrice.apply(l, view)))
        check(lambda l, form=form: LOSSES[form](Thrice.apply(l, view)) + LOSSES[form](l))


def test_real_before_they_have_a_gradient():
    """What became real too early becomes so again; what was written to by then is refused."""
    for early in (lambda l: l.square(), lambda l: l):
        model = model_of()
        with patch(model):
            logits = model(IDS).logits.detach()
            early(logits)
            logits.requires_grad_()
            logits.square().sum().backward()
        assert torch.allclose(logits.grad + 0, 2 * model(IDS).logits)

    def write(logits):
        logits = logits.clone()
        logits[..., 0] = 0
        return logits

    with patch(model), pytest.raises(RuntimeError, match="in the forward of an autograd function"):
        F.cross_entropy(Thrice.apply(model(IDS).logits, write).mT, IDS)


def test_views_taken_without_gradients_have_none():
    model = model_of()
    patch(model)
    logits = model(IDS).logits
    with torch.no_grad():
        view = logits.float().view(-1, V)
        assert shifted(logits).computed is None and not shifted(logits).requires_grad
    loss = F.cross_entropy(view, IDS.flatten())
    assert not view.requires_grad and not loss.requires_grad
    with torch.no_grad():
        assert shifted(logits).argmax(-1)[:, 1:].equal(logits.argmax(-1)[:, :-1])


@pytest.mark.covering(1)
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("form", ["masked rows", "transposed", "two losses", "smoothing"])
def test_checkpoint_around_the_loss(form, reentrant, said):
    from torch.utils.checkpoint import checkpoint

    for before in (lambda l: l, lambda l: l.float().clone()):
        check(lambda l, before=before: checkpoint(LOSSES[form], before(l), use_reentrant=reentrant))
    check(lambda l: checkpoint(lambda m: LOSSES[form](m) + m.square().mean(), l, use_reentrant=reentrant))
    assert [line for line in said() if "square" not in line] == []


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant):
    model = model_of()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    for form in ("masked rows", "divided by p"):
        check(LOSSES[form], model)


def test_gradients_that_are_looked_at():
    """Hooks, retain_grad and autograd.grad get the gradient in full."""
    model = model_of()
    logits = model(IDS).logits
    (expected,) = torch.autograd.grad(LOSSES["divided by p"](logits) + LOSSES["transposed"](logits), logits)
    patch(model)
    logits = model(IDS).logits
    loss = LOSSES["divided by p"](logits) + LOSSES["transposed"](logits)
    (found,) = torch.autograd.grad(loss, logits)
    assert torch.allclose(found + 0, expected, rtol=1e-5, atol=1e-5)
    logits, seen = model(IDS).logits, []
    view = logits.view(-1, V)
    view.retain_grad()
    view.register_hook(lambda gradient: seen.append(gradient + 0))
    F.cross_entropy(view, IDS.flatten(), reduction="sum").backward()
    assert (view.grad + 0).equal(seen[0]) and seen[0].shape == (BATCH * LENGTH, V)
    assert float(seen[0].sum(-1).abs().max()) < 1e-5 and float(seen[0].min()) < -0.5


def test_leaves_of_their_own():
    """Logits cut off from their model and differentiated by themselves."""
    model = model_of()
    plain = model(IDS).logits.detach().requires_grad_()
    F.cross_entropy(plain[MASK], IDS[MASK]).backward()
    with patch(model):
        for logits in (model(IDS).logits.detach().requires_grad_(), _no_grad(model).requires_grad_()):
            F.cross_entropy(logits[MASK], IDS[MASK]).backward()
            assert torch.allclose(logits.grad + 0, plain.grad, atol=1e-6)
    assert all(p.grad is None for p in model.parameters())


def _no_grad(model):
    with torch.no_grad():
        return model(IDS).logits


def test_a_metric_without_gradient_before_the_loss():
    def loss(logits):
        with torch.no_grad():
            assert logits.square().mean() > 0
        return F.cross_entropy(logits[MASK], IDS[MASK])

    check(loss)


def test_accumulation():
    def accumulated(model):
        for rows in ([0], [1, 2]):
            (F.cross_entropy(model(IDS[rows]).logits.mT, LABELS[rows], reduction="sum") / 7).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    model = model_of()
    expected = accumulated(copy.deepcopy(model))
    with patch(model):
        found = accumulated(model)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_frozen_models_and_heads():
    """Only what wants a gradient gets one."""
    for frozen in ("head", "body"):
        model = model_of("modernbert", tie_word_embeddings=False)
        module = model.get_output_embeddings() if frozen == "head" else model.model
        module.requires_grad_(False)
        check(lambda l: F.cross_entropy(l[MASK], IDS[MASK] % l.shape[-1]), model)
        check(lambda l: l[MASK].square().mean(), model)


def test_writes_are_seen():
    model = model_of()
    unpatched = model(IDS).logits.detach()
    expected = unpatched.clone()
    expected[..., MASK_ID] = -torch.inf
    with patch(model), torch.no_grad():
        logits = model(IDS).logits
        before = logits.argmax(-1)
        logits[..., MASK_ID] = -torch.inf
        assert logits.argmax(-1).equal(expected.argmax(-1)) and logits.softmax(-1).equal(expected.softmax(-1))
        logits = model(IDS).logits
        view, copied = logits[:, 1:], logits.float().clone()
        logits.mul_(-1)
        with pytest.raises(RuntimeError, match="written to in place after this view"):
            view.argmax(-1)
        assert copied.argmax(-1).equal(before) and logits.argmax(-1).equal(unpatched.neg().argmax(-1))
        logits = model(IDS).logits
        logits[:, 1:].expand(BATCH, LENGTH - 1, V).zero_()
        with pytest.raises(RuntimeError, match="written to in place"):
            logits.argmax(-1)


def test_weights_that_change_before_the_use_are_refused():
    model = model_of()
    with patch(model):
        logits = model(IDS).logits
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(2)
        for use in (lambda: logits.argmax(-1), lambda: logits.square(), lambda: F.cross_entropy(logits.mT, IDS)):
            with pytest.raises(RuntimeError, match="before their hidden states or their head change"):
                use()


def test_unpatch_restores():
    model = model_of()
    head = model.get_output_embeddings()
    before, keys = dict(head.__dict__), list(model.state_dict())
    expected = model(IDS).logits
    patch(model)
    patch(model)  # once is enough
    assert list(model.state_dict()) == keys
    with patch(model) as same:
        assert same is model
    assert isinstance(model(IDS).logits, DeferredLogits)  # what was patched before stays so
    unpatch(model)
    assert type(head) is nn.Linear and head.__dict__ == before and model(IDS).logits.equal(expected)
    unpatch(model)
    with pytest.raises(ZeroDivisionError), patch(model):
        1 / 0  # noqa: B018
    assert type(head) is nn.Linear


def test_copies_are_unpatched(tmp_path):
    model = model_of()
    expected = model(IDS).logits
    patch(model)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    model.save_pretrained(tmp_path)
    copies = (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(stream, weights_only=False),
        type(model).from_pretrained(tmp_path).train(),
    )
    for other in copies:
        assert type(other.get_output_embeddings()) is nn.Linear
        assert type(other(IDS).logits) is torch.Tensor and other(IDS).logits.equal(expected)
    assert isinstance(model(IDS).logits, DeferredLogits)


def test_patched_models_serve_the_library_as_before():
    model = model_of()
    batch = batch_of(model)
    prompt = IDS[:, :4]
    arguments = dict(steps=4, gen_length=8, block_length=8, remasking="low_confidence", mask_id=MASK_ID)
    loss, canvas = masked_loss(model, **batch).loss, generate(model, prompt, **arguments)
    with patch(model):
        assert masked_loss(model, **batch).loss.equal(loss) and generate(model, prompt, **arguments).equal(canvas)
        assert isinstance(model(IDS).logits, DeferredLogits)


def test_what_cannot_be_patched():
    with pytest.raises(ValueError, match="output embeddings"):
        patch(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"must be an nn.Linear, got .*Thrice"):
        patch(as_thrice(model_of()))
    with pytest.raises(ValueError, match=r"Capped: it computes with its head's output: aten.div"):
        patch(Capped(model_of()))
    model = model_of()
    model.get_output_embeddings().forward = lambda hidden: hidden
    with pytest.raises(ValueError, match="forward of its class"):
        patch(model)
    with pytest.raises(ValueError, match=r"weight_norm|Parametrized"):
        model = model_of("modernbert", tie_word_embeddings=False)
        nn.utils.parametrizations.weight_norm(model.get_output_embeddings())
        patch(model)
