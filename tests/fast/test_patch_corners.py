"""What few scripts do with a patched model's logits, each against the unpatched model: the same, or refused aloud."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves

from dllm.fast import patch
from dllm.fast.deferred import tensor
from dllm_kernels.testing import assert_model_no_worse, assert_no_worse
from tests.fast.test_masked_loss import model_of
from tests.fast.test_patch import IDS, LABELS, MASK, V, chosen, shifted

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = model_of()


def run(script, *, patched: bool = False):
    model = copy.deepcopy(MODEL)
    if patched:
        patch(model)
    return tree_leaves(script(model))


def check(script):
    """Numbers beside those of the unpatched model; all else equal."""
    found, expected, numbers = run(script, patched=True), run(script), {}
    for place, (ours, plain) in enumerate(zip(found, expected, strict=True)):
        if not (isinstance(plain, torch.Tensor) and plain.is_floating_point()):
            assert type(ours) is type(plain) and (
                ours.equal(plain) if isinstance(plain, torch.Tensor) else ours == plain
            )
            continue
        assert ours.dtype == plain.dtype and ours.shape == plain.shape and ours.requires_grad == plain.requires_grad
        finite = plain.isfinite()
        assert finite.equal(ours.isfinite())
        numbers[place] = (ours[finite] + 0, finite)

    def compute(model):
        leaves = tree_leaves(script(model))
        return {place: leaves[place][finite] for place, (_, finite) in numbers.items()}

    if numbers:
        assert_model_no_worse({place: ours for place, (ours, _) in numbers.items()}, compute, MODEL)


def gradients(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


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


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("form", ["all", "masked", "slice"])
def test_gradients_of_views(form, late):
    """A view in the middle is asked for its gradient, before or after the loss is made of it."""
    first, then = {
        "all": (lambda l: l.view(-1, V), lambda l: l[MASK.flatten()]),
        "masked": (lambda l: l[MASK], lambda l: l.view(-1, V)),
        "slice": (lambda l: l[:, 1:].mT, lambda l: l.mT[MASK[:, 1:]]),
    }[form]
    ids = IDS[:, 1:][MASK[:, 1:]] if form == "slice" else IDS[MASK]

    def script(model):
        view = first(model(IDS).logits)
        if not late:
            view.retain_grad()
            view.register_hook(lambda gradient: 2 * gradient)
        loss = F.cross_entropy(then(view), ids)
        (eligible,) = torch.autograd.grad(loss, view, retain_graph=True)
        if late:
            view.retain_grad()
            view.register_hook(lambda gradient: 2 * gradient)
        loss.backward()
        return eligible + 0, view.grad + 0, gradients(model)

    check(script)


def test_hooks_on_what_a_shift_is_made_of():
    def script(model):
        logits = model(IDS).logits
        head, tail = logits[:, :1], logits[:, :-1]
        tail.register_hook(lambda gradient: 2 * gradient)
        F.cross_entropy(torch.cat([head, tail], 1).mT, IDS).backward()
        return gradients(model)

    check(script)
    with patch(copy.deepcopy(MODEL)) as model:
        logits = model(IDS).logits
        tail = logits[:, :-1]
        assert shifted(tail.double()).dtype == torch.float64
        with pytest.raises(RuntimeError, match="ask before the cat"):
            tail.register_hook(lambda gradient: 2 * gradient)
        logits.retain_grad()


def test_anomaly_detection_looks_at_gradients():
    def script(model):
        with torch.autograd.set_detect_anomaly(True):
            logits = model(IDS).logits
            (F.cross_entropy(logits[MASK], IDS[MASK]) + logits[MASK].square().mean()).backward()
        return gradients(model)

    check(script)


def test_a_second_derivative_is_refused():
    with patch(copy.deepcopy(MODEL)) as model:
        for of in (lambda logits: logits, lambda logits: model.get_output_embeddings().bias):
            for loss in (lambda l: F.cross_entropy(l.mT, IDS), lambda l: (l**3).mean(), lambda l: l[MASK].mean()):
                logits = model(IDS).logits
                with pytest.raises(RuntimeError, match="differentiated once"):
                    torch.autograd.grad(loss(logits), of(logits), create_graph=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda l: l.unsqueeze_(0),
        lambda l: l.transpose_(1, 2),
        lambda l: l.squeeze_(),
        lambda l: l.detach_(),
        lambda l: setattr(l, "data", torch.zeros_like(l)),
    ],
)
def test_what_would_become_another_tensor_is_refused(change):
    with patch(copy.deepcopy(MODEL)) as model:
        for logits in (model(IDS).logits, model(IDS).logits.detach()):
            with pytest.raises(RuntimeError, match="cannot change deferred logits in place"):
                change(logits)


@pytest.mark.parametrize(
    "index", [[], [[0, 1], [1, 2]], [True, False, True], ([0, 1], [1, 2]), (..., [0, 2], slice(3))]
)
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
def test_lists_as_indices(index):
    check(lambda model: model(IDS).logits[index] + 0)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda l: l.argmax(3),
        lambda l: l.softmax(5),
        lambda l: l.softmax(-1).gather(5, IDS[..., None]),
        lambda l: torch.cat([l, l], 3),
        lambda l: l.flatten(3, 4),
        lambda l: l.unsqueeze(5),
        lambda l: l.select(3, 0),
        lambda l: l.permute(0, 1, 5),
    ],
)
def test_dimensions_out_of_range_raise(wrong):
    with patch(copy.deepcopy(MODEL)) as model, pytest.raises(IndexError, match="Dimension out of range"):
        wrong(model(IDS).logits)


def test_casts_that_only_real_logits_know():
    check(lambda model: model(IDS).logits.to(torch.int64))
    with patch(copy.deepcopy(MODEL)) as model:
        assert model(IDS).logits.to(torch.float8_e4m3fn).dtype == torch.float8_e4m3fn


def test_gradients_leave_torch():
    """To numpy, to lists, to a file."""

    def script(model):
        logits = model(IDS).logits
        logits.retain_grad()
        F.cross_entropy(logits.mT, IDS).backward()
        copied = pickle.loads(pickle.dumps(logits.grad)), copy.deepcopy(logits.grad) + 0
        return torch.tensor(logits.grad.tolist(), dtype=logits.dtype), torch.from_numpy(logits.grad.numpy()), *copied

    check(script)


def test_transforms_of_functions(caplog):
    """Of the whole model, where some weights are the transform's own; and of what follows the logits."""

    def script(model):
        chosen = {name: value.detach() for name, value in model.named_parameters() if "LayerNorm" in name}

        def loss(weights):
            return F.cross_entropy(torch.func.functional_call(model, weights, (IDS,)).logits.mT, IDS)

        logits = model(IDS).logits.detach()
        found = torch.cat([gradient.flatten() for gradient in torch.func.grad(loss)(chosen).values()])
        return (
            found,
            torch.func.grad(lambda l: F.cross_entropy(l.mT, IDS))(logits),
            torch.vmap(F.cross_entropy)(logits, IDS),
        )

    tensor.log_once.cache_clear()
    check(script)
    assert "a transform of torch.func" in caplog.text


def test_forward_differentiation():
    def script(model):
        head = model.get_output_embeddings()
        hidden = torch.ones(2, head.in_features, dtype=head.weight.dtype)
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(head(forward_ad.make_dual(hidden, hidden))).tangent

    check(script)


def test_float64_under_autocast():
    def script(model):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model.double()(IDS).logits.detach() + 0

    check(script)


def test_no_rows_at_all():
    def script(model):
        rows = model(IDS).logits[MASK & ~MASK]
        (rows.square().sum() + F.cross_entropy(rows, IDS[:0, 0], reduction="sum")).backward()
        return rows + 0, rows.argmax(-1), rows.softmax(-1) + 0, gradients(model)

    check(script)


def test_a_clone_of_log_probabilities_is_written_to():
    def script(model):
        log_probs = model(IDS).logits.log_softmax(-1).clone()
        log_probs[..., 5] = 0
        loss = -chosen(log_probs).mean()
        loss.backward()
        return loss, gradients(model)

    check(script)


def test_several_models_in_several_threads():
    """Each model's logits belong to its own head, whoever else is at work."""
    models = [model_of(), copy.deepcopy(MODEL)]
    with torch.no_grad():
        models[1].get_output_embeddings().weight.mul_(2)
    together = [copy.deepcopy(model) for model in models]
    for model in together:
        patch(model)

    def script(model):
        for _ in range(3):
            logits = model(IDS).logits
            F.cross_entropy(logits[MASK], IDS[MASK], reduction="none").sum().backward()
        return gradients(model)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(script, together))
    for model, ours in zip(models, found, strict=True):
        exact, plain = script(copy.deepcopy(model).double()), script(model)
        assert_no_worse({"gradient": ours}, {"gradient": plain}, {"gradient": exact}, entries=False)
