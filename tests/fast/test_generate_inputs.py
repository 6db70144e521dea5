"""What `dllm.fast.generate` refuses: every bad input, before the model has run, naming the rule and what it got."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dllm.fast import generate
from dllm_kernels import _impl
from tests.models import MASK_ID, POSITIONS, make_prompt, shared, tiny

pytestmark = pytest.mark.usefixtures("one_thread")
GOOD = dict(steps=4, gen_length=8, block_length=4, mask_id=MASK_ID)


@pytest.fixture
def refuse(device):
    """refuse(error, pattern, **arguments): the call raises so, and the model has not run."""
    forwards = []

    def check(error, pattern, model=None, prompt=None, **arguments):
        model = model if model is not None else shared("bert", device)
        if prompt is None:
            prompt = make_prompt(shared("modernbert", device), 2, 5)
        hooks = [module.register_forward_pre_hook(lambda *_: forwards.append(1)) for module in model.modules()]
        try:
            with pytest.raises(error, match=pattern):
                generate(model, prompt, **(GOOD | arguments))
        finally:
            for hook in hooks:
                hook.remove()
        assert not forwards, "the model ran before the input was refused"

    return check


def test_the_good_call_is_good(device):
    prompt = make_prompt(shared("bert", device), 2, 5)
    assert generate(shared("bert", device), prompt, **GOOD).shape == (2, 13)


@pytest.mark.parametrize(
    "pattern, arguments",
    [
        (r"gen_length.*multiple of block_length.*8.*3", dict(block_length=3)),
        (r"gen_length.*multiple of block_length.*8.*16", dict(block_length=16)),
        (r"steps.*multiple.*2 blocks.*5", dict(steps=5)),
        (r"steps.*multiple.*2 blocks.*1", dict(steps=1)),
        (r"steps.*at least 1.*0", dict(steps=0)),
        (r"steps.*at least 1.*-4", dict(steps=-4)),
        (r"gen_length.*at least 1.*0", dict(gen_length=0)),
        (r"gen_length.*at least 1.*-8", dict(gen_length=-8)),
        (r"block_length.*at least 1.*0", dict(block_length=0)),
        (r"block_length.*at least 1.*-4", dict(block_length=-4)),
        (r"temperature.*at least 0.*-0\.5", dict(temperature=-0.5)),
        (r"temperature.*finite.*nan", dict(temperature=float("nan"))),
        (r"temperature.*finite.*inf", dict(temperature=float("inf"))),
        (r"cfg_scale.*at least 0.*-1", dict(cfg_scale=-1.0)),
        (r"cfg_scale.*finite.*nan", dict(cfg_scale=float("nan"))),
        (r"cfg_scale.*finite.*inf", dict(cfg_scale=float("inf"))),
        (r"remasking.*low_confidence.*'surest'", dict(remasking="surest")),
        (r"remasking.*None", dict(remasking=None)),
        (r"mask.*vocabulary.*131.*got 131", dict(mask_id=131)),
        (r"mask.*vocabulary.*-1", dict(mask_id=-1)),
        (r"eos_token_id.*131", dict(eos_token_id=131)),
        (r"eos_token_id.*-1", dict(eos_token_id=-1)),
        (r"eos_token_id.*mask", dict(eos_token_id=MASK_ID)),
        (r"seed.*64 bits", dict(seed=2**64)),
        (r"seed.*per row.*3.*2", dict(seed=[1, 2, 3])),
        (r"seed.*per row.*1.*2", dict(seed=[1])),
        (r"impl.*one of.*'fast'", dict(impl="fast")),
    ],
)
def test_values(pattern, arguments, refuse):
    refuse(ValueError, pattern, **arguments)


@pytest.mark.parametrize(
    "pattern, arguments",
    [
        (r"steps.*integer.*float", dict(steps=4.0)),
        (r"gen_length.*integer.*str", dict(gen_length="8")),
        (r"block_length.*integer.*NoneType", dict(block_length=None)),
        (r"steps.*integer.*bool", dict(steps=True)),
        (r"temperature.*number.*str", dict(temperature="hot")),
        (r"temperature.*number.*NoneType", dict(temperature=None)),
        (r"cfg_scale.*number.*list", dict(cfg_scale=[1.0])),
        (r"mask_id.*integer.*float", dict(mask_id=3.0)),
        (r"mask_id.*integer.*bool", dict(mask_id=True)),
        (r"eos_token_id.*integer.*float", dict(eos_token_id=2.0)),
        (r"eos_token_id.*integer.*list", dict(eos_token_id=[2])),
        (r"seed.*integer.*float", dict(seed=1.5)),
        (r"seed.*integer.*bool", dict(seed=True)),
        (r"seed.*integer.*float", dict(seed=torch.zeros(2))),
        (r"seed.*integer.*str", dict(seed="7")),
        (r"on_step", dict(on_step="print")),
        (r"remasking_strategy", dict(remasking_strategy="random")),
        (r"max_new_tokens", dict(max_new_tokens=8)),
    ],
)
def test_types_and_unknown_keywords(pattern, arguments, refuse):
    refuse(TypeError, pattern, **arguments)


def test_prompt(refuse, device):
    good = make_prompt(shared("bert", device), 2, 5)
    refuse(TypeError, r"prompt.*tensor.*list", prompt=good.tolist())
    refuse(TypeError, r"prompt.*int64.*int32", prompt=good.int())
    refuse(TypeError, r"prompt.*int64.*float32", prompt=good.float())
    refuse(TypeError, r"prompt.*dense.*sparse", prompt=good.to_sparse())
    refuse(ValueError, r"prompt.*\[B, P\].*\[5\]", prompt=good[0])
    refuse(ValueError, r"prompt.*\[B, P\].*\[1, 2, 5\]", prompt=good[None])
    refuse(ValueError, r"prompt.*device.*meta", prompt=good.to("meta"))
    for token in (131, -1, -100, 2**40):
        refuse(ValueError, rf"prompt.*131.*{token}", prompt=good.index_fill(1, torch.tensor([2], device=device), token))
    refuse(ValueError, r"mask token.*infill", prompt=good.index_fill(1, torch.tensor([4], device=device), MASK_ID))


@pytest.mark.gpu
def test_prompt_on_another_device(refuse, device):
    refuse(ValueError, r"prompt.*device.*cpu", prompt=make_prompt(shared("bert", device), 2, 5).cpu())


def test_attention_mask(refuse, device):
    good = torch.ones(2, 5, dtype=torch.long, device=device)
    refuse(TypeError, r"attention_mask.*tensor.*list", attention_mask=good.tolist())
    refuse(ValueError, r"attention_mask.*\[2, 5\].*\[2, 6\]", attention_mask=torch.ones(2, 6, device=device).long())
    refuse(ValueError, r"attention_mask.*\[2, 5\].*\[5\]", attention_mask=good[0])
    refuse(ValueError, r"attention_mask.*0 and 1", attention_mask=good * 2)
    refuse(ValueError, r"attention_mask.*0 and 1", attention_mask=good.float().masked_fill(good == 1, float("nan")))
    right, hole = good.clone(), good.clone()
    right[1, 3:] = 0
    hole[0, 2] = 0
    refuse(ValueError, r"attention_mask.*left", attention_mask=right)
    refuse(ValueError, r"attention_mask.*left", attention_mask=hole)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_canvas_longer_than_the_model(family, refuse, device):
    """96 positions each; RoBERTa's table has 98 rows of which two are never reached."""
    model = shared(family, device)
    fits = POSITIONS - 8
    refuse(ValueError, rf"{POSITIONS} positions.*{POSITIONS + 1}", model=model, prompt=make_prompt(model, 1, fits + 1))
    assert generate(model, make_prompt(model, 1, fits), **GOOD).shape == (1, POSITIONS)


def test_block_longer_than_a_window(refuse, device):
    """The transfer kernel holds a block of at most 8192 positions; that must not come out after the first forward."""
    model = tiny("modernbert", max_position_embeddings=20_000).to(device)
    refuse(ValueError, r"8192.*9000", model=model, steps=1, gen_length=9000, block_length=9000)


def test_model_without_output_embeddings(refuse, device):
    for model in (shared("bert", device).base_model, nn.Linear(3, 3)):
        refuse((TypeError, ValueError), rf"output embeddings.*{type(model).__name__}", model=model)
    refuse(ValueError, "must have weights, got some on the device meta", model=tiny("bert").to("meta"))


def test_nobody_knows_the_mask_token(refuse, device):
    refuse(ValueError, r"mask.*(mask_id|tokenizer)", mask_id=None)
    refuse(ValueError, r"mask", mask_id=None, tokenizer=SimpleNamespace(mask_token_id=None))
    elsewhere = tiny("bert").to(device)
    elsewhere.config.name_or_path = elsewhere.name_or_path = "/nowhere/to/be/found"
    refuse(ValueError, r"mask.*(mask_id|tokenizer)", model=elsewhere, mask_id=None)


def test_what_cannot_run_here_is_said_and_nothing_falls_back(device, refuse, monkeypatch):
    if device.type == "cpu":
        refuse((ValueError, RuntimeError), r"(?i)cuda", cuda_graph=True)
        monkeypatch.setattr(_impl, "interpreting", lambda: False)
        refuse(ValueError, r"impl='triton'.*cpu", impl="triton")
        monkeypatch.setattr(_impl, "why_not_cpu", lambda: "no compiler")
        refuse(RuntimeError, r"impl='cpu'.*no compiler", impl="cpu")
    else:
        refuse(ValueError, r"impl='cpu'.*cuda", impl="cpu")
    refuse((TypeError, ValueError), r"cuda_graph", cuda_graph="yes")


def test_a_row_without_a_finite_logit_is_reported(device):
    """Seen on the device only: raised at the end, naming the row and the step, never silently committed."""
    model = tiny("bert").to(device)
    prompt = make_prompt(model, 3, 5)
    prompt[1, 0] = 50

    def poison(module, args, output):
        if poison.calls >= 3:  # the head's check and two steps pass
            output[0][(args[0] if args else poison.ids)[:, 0] == 50] = float("nan")
        poison.calls += 1

    poison.calls = 0
    model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: setattr(poison, "ids", kwargs.get("input_ids", args[0] if args else None)),
        with_kwargs=True,
    )
    model.base_model.register_forward_hook(lambda module, args, output: poison(module, (poison.ids,), output))
    with pytest.raises(RuntimeError, match=r"row 1\b.*step \d"):
        generate(model, prompt, 8, 8, 8, remasking="low_confidence", mask_id=MASK_ID, cuda_graph=False)
