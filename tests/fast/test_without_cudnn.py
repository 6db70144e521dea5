"""Bodies of few columns run without cuDNN's attention, and torch's switch is afterwards as it was before."""

import threading

import pytest
import torch
import torch.nn.functional as F

from dllm.fast import attention, generate
from dllm.fast.attention import without_cudnn
from tests.models import MASK_ID, tiny


def enabled():
    return torch.backends.cuda.cudnn_sdp_enabled()


@pytest.fixture(params=[True, False], ids=["on", "off"])
def before(request):
    """What the caller has set."""
    found = enabled()
    torch.backends.cuda.enable_cudnn_sdp(request.param)
    yield request.param
    torch.backends.cuda.enable_cudnn_sdp(found)


def test_within_bodies_only(before, monkeypatch):
    seen, original = [], F.scaled_dot_product_attention

    def noted(query, *args, **options):
        seen.append((query.shape[2], enabled()))
        return original(query, *args, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    prompt = torch.arange(5, 25)[None]  # longer than what a model is tried on
    options = dict(steps=2, gen_length=4, block_length=4, mask_id=MASK_ID)
    after_steps = []
    generate(tiny("bert"), prompt, on_step=lambda step: after_steps.append(enabled()), **options)
    assert {on for columns, on in seen if columns == 24} == {False} and after_steps == [before] * 2
    monkeypatch.setattr(attention, "COLUMNS_WITHOUT_CUDNN", 23)
    seen.clear()
    generate(tiny("bert"), prompt, **options)
    assert {on for columns, on in seen if columns == 24} == {before} and enabled() == before


def test_restored_after_an_error(before):
    model = tiny("bert")

    def fails(module, args, options):
        assert options["input_ids"].shape[1] != 8, "a body, not the example"

    model.register_forward_pre_hook(fails, with_kwargs=True)
    with pytest.raises(AssertionError, match="a body"):
        generate(model, torch.arange(5, 9)[None], steps=2, gen_length=4, block_length=4, mask_id=MASK_ID)
    with pytest.raises(KeyError), without_cudnn(8):
        raise KeyError
    assert enabled() == before


def test_the_last_thread_restores(before):
    inside, leave = threading.Event(), threading.Event()

    def other():
        with without_cudnn(8):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with without_cudnn(8):
        thread.start()
        assert inside.wait(10)
    assert not enabled()
    leave.set()
    thread.join()
    assert enabled() == before
