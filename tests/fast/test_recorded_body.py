"""A body that runs from a recording: the bits of the eager one, for all tokens, shapes and weights, or no recording."""

import gc
import weakref

import pytest
import torch

from dllm.demo.shipped import load_shipped
from dllm.fast.compiled import recorded
from dllm.fast.compiled.recorded import RecordedBody
from dllm.fast.head.interception import replaced_forward
from tests.models import tiny

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model():
    return load_shipped()[0]


def inputs(rows, columns, hidden=0, seed=0):
    tokens = torch.randint(5, 2000, (rows, columns), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(tokens)
    mask[0, columns - hidden :] = 0
    return dict(input_ids=tokens, attention_mask=mask)


def hidden(model, given):
    with torch.no_grad():
        return model.model(**given).last_hidden_state


# one row and several; with padding, and with a mask that hides nothing; shorter and longer than what was recorded
SHAPES = [(1, 24, 3), (1, 64, 5), (3, 24, 2), (5, 8, 0), (2, 190, 1)]


@pytest.mark.parametrize("masked", [True, False])
def test_the_bits_of_the_eager_body(model, masked, monkeypatch):
    """Of other tokens and other padding than those of the check, and after the weights have changed in place."""
    body = RecordedBody.of(model)
    cases = [inputs(*shape) for shape in SHAPES]
    others = [inputs(rows, columns, min(2 * padding, columns - 1), seed=1) for rows, columns, padding in SHAPES]
    if not masked:
        cases, others = ([dict(input_ids=case["input_ids"]) for case in some] for some in (cases, others))
    for case in cases:
        with body.in_place():
            hidden(model, case)
    assert body.why_not is None and body.shapes == len(SHAPES)
    expected = [hidden(model, case) for case in others]
    monkeypatch.setattr(type(model.model), "forward", lambda *args, **kwargs: pytest.fail("ran eagerly"))
    with body.in_place():
        got = [hidden(model, case) for case in others]
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    monkeypatch.undo()
    with torch.no_grad():
        model.model.layers[0].mlp.Wo.weight.mul_(2)
    with body.in_place():
        changed = hidden(model, others[0])
    assert torch.equal(changed, hidden(model, others[0])) and not torch.equal(changed, expected[0])


def test_weights_that_are_replaced_are_recorded_anew(model):
    case = inputs(1, 16, 2)
    before = RecordedBody.of(model)
    assert RecordedBody.of(model) is before
    with torch.no_grad():
        layer = model.model.layers[0].mlp.Wo
        layer.weight = torch.nn.Parameter(2 * layer.weight, requires_grad=False)
    after = RecordedBody.of(model)
    assert after is not before
    with after.in_place():
        hidden(model, case)
        assert torch.equal(hidden(model, case), hidden(model, case)) and after.shapes == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model.model.layers[0].mlp, "act", torch.nn.ReLU()),
        lambda model: setattr(model.model.layers[3].mlp_norm, "eps", 1.0),
        lambda model: setattr(model.model.layers[0].mlp.drop, "p", 0.5) or model.train(),
        lambda model: setattr(model.config, "return_dict", False),
    ],
    ids=["module", "number", "mode", "configuration"],
)
def test_settings_that_change_are_recorded_anew(model, change):
    case, before = inputs(1, 16, 2), RecordedBody.of(model)
    with before.in_place():
        hidden(model, case)
    change(model)
    body = RecordedBody.of(model)
    with torch.no_grad():
        torch.manual_seed(0)
        expected = [model.model(**case) for _ in range(2)]
        torch.manual_seed(0)
        with body.in_place():
            got = [model.model(**case) for _ in range(2)]
    assert before.shapes == 1 and body is not before
    assert all(type(a) is type(b) and torch.equal(a[0], b[0]) for a, b in zip(got, expected, strict=True))


def test_a_model_that_goes_takes_its_weights_with_it():
    model, case = load_shipped()[0], inputs(1, 16)
    body, gone = RecordedBody.of(model), [weakref.ref(model.model), weakref.ref(model.model.layers[0].mlp.Wo.weight)]
    with body.in_place():
        hidden(model, case), hidden(model, case)
    assert body.shapes == 1
    del model, body
    gc.collect()
    assert [each() for each in gone] == [None, None]


def test_other_bits_are_not_taken(model, monkeypatch):
    """A recording that computes something else at a shape is not used there."""
    body, case = RecordedBody.of(model), inputs(1, 16, 2)
    monkeypatch.setattr(RecordedBody, "_recording", lambda *_: lambda *inputs: torch.zeros(1, 16, 192))
    expected = hidden(model, case)
    with body.in_place():
        assert torch.equal(hidden(model, case), expected) and torch.equal(hidden(model, case), expected)
    assert body.shapes == 0


def test_what_cannot_be_recorded_runs_eagerly(model, monkeypatch, caplog):
    body, case = RecordedBody.of(model), inputs(1, 16, 2)
    monkeypatch.setattr(torch.jit, "trace", lambda *args, **kwargs: 1 / 0)
    with body.in_place():
        got = hidden(model, case)
    assert torch.equal(got, hidden(model, case))
    assert body.why_not == "it cannot be recorded: ZeroDivisionError" and body.why_not in caplog.text


def test_who_is_recorded(model):
    """Nothing but bodies that are known, without hooks; and no forward that records gradients."""
    assert "none of the bodies" in RecordedBody.of(tiny("bert")).why_not
    hooked = load_shipped()[0]
    hooked.model.layers[1].register_forward_hook(lambda *_: None)
    assert RecordedBody.of(hooked).why_not.endswith("has hooks or a forward of its own")
    case = inputs(1, 16)
    hidden(model, case)  # the first forward of ModernBERT in transformers 4.57 writes into its configuration
    changed = RecordedBody.of(model)
    with changed.in_place():
        whole = [hidden(model, case) for _ in range(2)][1]
        with replaced_forward(model.model.layers[5].mlp, lambda original, x: 0 * x):
            assert not torch.equal(hidden(model, case), whole)  # also where a recording is there
        assert torch.equal(hidden(model, case), whole)
    learning = load_shipped()[0].requires_grad_(True)
    assert RecordedBody.of(learning).why_not == "its weights may learn"
    body, shapes = RecordedBody.of(model), RecordedBody.of(model).shapes
    with body.in_place():
        model.model(**inputs(2, 16))
    assert body.why_not is None and body.shapes == shapes == 1
    assert recorded.RECORDABLE == ("ModernBertModel",)
