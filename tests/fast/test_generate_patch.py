"""`dllm.fast.patch` of a DiffusionGemma: its own `generate`, with steps whose logits are never stored."""

from __future__ import annotations

import copy
import logging
import pickle

import pytest
import torch

import dllm.fast
from tests.diffusion_gemma_models import CANVAS, VOCAB, needs_diffusion_gemma, tiny_diffusion_gemma

pytestmark = [needs_diffusion_gemma, pytest.mark.usefixtures("one_thread")]

LENGTHS = (5, 12, 9)
STOPPING = dict(max_denoising_steps=16, confidence_threshold=1.4, max_new_tokens=3 * CANVAS)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return tiny_diffusion_gemma()


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    draw, most = torch.Generator().manual_seed(3), max(LENGTHS)
    rows = [torch.randint(5, VOCAB - 5, (length,), generator=draw).tolist() for length in LENGTHS]
    return {
        "input_ids": torch.tensor([[0] * (most - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (most - len(row)) + [1] * len(row) for row in rows]),
    }


def bound(value: float) -> object:
    from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSamplerConfig

    return EntropyBoundSamplerConfig(entropy_bound=value)


def ask(model: torch.nn.Module, inputs: dict, **settings: object) -> object:
    torch.manual_seed(5)
    return model.generate(**inputs, **STOPPING | {"sampler_config": bound(2.0)} | settings)


def drawn_seed() -> int:
    torch.manual_seed(5)
    return int(torch.randint(2**63 - 1, ()))


def test_the_rows_of_the_sampler(model, inputs):
    from dllm.core.samplers import DiffusionGemmaSampler

    with dllm.fast.patch(model):
        found = ask(model, inputs)
        with dllm.fast.patch(model):  # a patched model stays as it is
            pass
        assert torch.equal(ask(model, inputs).sequences, found.sequences)
    prompts = [ids[mask > 0] for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
    sampled = DiffusionGemmaSampler(model).sample(
        prompts, seed=drawn_seed(), entropy_bound=2.0, return_dict=True, **STOPPING
    )
    for number, length in enumerate(LENGTHS):
        rest = sampled.sequences[number, length : length + 3 * CANVAS]
        assert torch.equal(found.sequences[number, max(LENGTHS) :], rest)
    forwards = 3 * CANVAS / found.tokens_per_forward
    assert forwards.round().int().tolist() == sampled.stats.row_forwards


def test_the_same_law_as_before(model, inputs):
    """Steps of one canvas at one prompt: how often each token stands at the first position, before and after."""
    one = {name: tensor[:1].repeat(200, 1) for name, tensor in inputs.items()}
    settings = dict(max_denoising_steps=2, max_new_tokens=CANVAS, sampler_config=bound(3.0))
    before = ask(model, one, **settings).sequences[:, -CANVAS:]
    with dllm.fast.patch(model):
        after = ask(model, one, **settings).sequences[:, -CANVAS:]
    assert not torch.equal(before, after)
    for column in range(CANVAS):
        counts = torch.stack([torch.bincount(x[:, column], minlength=VOCAB) for x in (before, after)]).double()
        seen = counts.sum(0) >= 10
        grouped = torch.cat([counts[:, seen], counts[:, ~seen].sum(1, keepdim=True)], 1)
        grouped = grouped[:, grouped.sum(0) > 0]
        expected = grouped.sum(0) / 2
        chi = float(((grouped - expected) ** 2 / expected).sum())
        degrees = grouped.shape[1] - 1
        assert chi < degrees + 5 * (2 * max(degrees, 1)) ** 0.5 + 10, (column, chi, degrees)


def test_drafts_are_streamed(model, inputs):
    class Streamer:
        def __init__(self):
            self.puts, self.drafts, self.ended = [], [], False

        def put(self, value: torch.Tensor) -> None:
            self.puts.append(value)

        def put_draft(self, value: torch.Tensor) -> None:
            self.drafts.append(value)

        def end(self) -> None:
            self.ended = True

    streamer = Streamer()
    with dllm.fast.patch(model):
        found = ask(model, inputs, streamer=streamer)
    assert streamer.ended and torch.equal(torch.cat(streamer.puts, 1), found.sequences)
    assert streamer.drafts[0].shape == (3, CANVAS) and torch.equal(streamer.drafts[-1], streamer.puts[-1])


def test_a_canvas_that_is_given_is_read_first(model, inputs):
    given = torch.full((3, CANVAS), 7)
    seen = []
    hook = model.model.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["decoder_input_ids"].clone()), with_kwargs=True
    )
    try:
        with dllm.fast.patch(model):
            ask(model, inputs, decoder_input_ids=given, max_denoising_steps=2)
    finally:
        hook.remove()
    assert torch.equal(seen[0], given) and not any(torch.equal(canvas, given) for canvas in seen[1:])


@pytest.mark.parametrize("why", ["logits processor", "streamer takes logits", "static cache"])
def test_what_needs_logits_runs_the_models_own_steps(model, inputs, caplog, monkeypatch, why):
    from transformers.generation import LogitsProcessorList, SuppressTokensLogitsProcessor

    shapes = []

    class Streamer:
        _takes_logits = True

        def put(self, value: torch.Tensor) -> None: ...

        def put_draft(self, logits: torch.Tensor) -> None:
            shapes.append(logits.shape)

        def end(self) -> None: ...

    monkeypatch.setattr("dllm.fast.uniform.generate._logged", set())
    given = {
        "logits processor": lambda: {"logits_processor": LogitsProcessorList([SuppressTokensLogitsProcessor([9])])},
        "streamer takes logits": lambda: {"streamer": Streamer()},
        "static cache": lambda: {"cache_implementation": "static", "disable_compile": True, "max_new_tokens": CANVAS},
    }[why]
    expected = ask(model, inputs, **given())
    with dllm.fast.patch(model), caplog.at_level(logging.WARNING, logger="dllm.fast"):
        found = ask(model, inputs, **given())
        ask(model, inputs, **given())
    assert torch.equal(found.sequences, expected.sequences)
    assert sum("transformers' own steps" in record.message for record in caplog.records) == 1
    assert all(shape[-1] == VOCAB for shape in shapes)


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"input_ids": [[5, VOCAB]]}, r"input_ids must lie in \[0, 512\), got 512"),
        ({"input_ids": [[5, -1]]}, r"input_ids must lie in \[0, 512\), got -1"),
        ({"input_ids": [[5, VOCAB - 1]]}, "input_ids hold the image token 511, so pixel_values must be given"),
        ({"decoder_input_ids": [[VOCAB] * CANVAS]}, r"decoder_input_ids must lie in \[0, 512\), got 512"),
        ({"decoder_input_ids": [[5] * (CANVAS - 1)]}, r"decoder_input_ids must be \[1, 8\], a canvas for each row"),
        ({"cache_implementation": "static"}, "computes wrong canvases behind 16 columns or more.*got 18"),
        ({"past_key_values": "static"}, "computes wrong canvases behind 16 columns or more.*got 18"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(model, given, rule):
    from transformers import StaticCache

    given = {"input_ids": [[5, 6]]} | given
    given = {name: torch.tensor(value) if isinstance(value, list) else value for name, value in given.items()}
    if "past_key_values" in given:
        given["past_key_values"] = StaticCache(model.config, max_cache_len=64)
    ran = model.model.encoder.register_forward_pre_hook(lambda *_: pytest.fail("the encoder has run"))
    try:
        with dllm.fast.patch(model), pytest.raises(ValueError, match=rule):
            model.generate(**given, max_new_tokens=3 * CANVAS)
    finally:
        ran.remove()


def test_copies_pickles_and_checkpoints_are_of_the_unpatched_model(model, inputs, tmp_path):
    plain = type(model)
    dllm.fast.patch(model)
    try:
        assert type(model) is not plain and type(model).__name__ == plain.__name__
        assert type(copy.deepcopy(model)) is plain
        assert type(pickle.loads(pickle.dumps(model))) is plain
        model.save_pretrained(tmp_path)
        assert plain.__name__ in (tmp_path / "config.json").read_text()
        assert type(plain.from_pretrained(tmp_path)) is plain
    finally:
        dllm.fast.unpatch(model)
    assert type(model) is plain
    dllm.fast.unpatch(model)  # stays as it is


def test_an_interrupted_call_leaves_nothing_behind(model, inputs):
    class Stop:
        def put(self, value: torch.Tensor) -> None: ...

        def put_draft(self, value: torch.Tensor) -> None:
            raise KeyboardInterrupt

        def end(self) -> None: ...

    expected = ask(model, inputs)
    with dllm.fast.patch(model):
        with pytest.raises(KeyboardInterrupt):
            ask(model, inputs, streamer=Stop())
        assert not model.model.decoder.self_conditioning._forward_pre_hooks
    assert torch.equal(ask(model, inputs).sequences, expected.sequences)


def test_a_head_that_is_no_plain_linear_is_refused():
    broken = tiny_diffusion_gemma()
    broken.lm_head = torch.nn.Sequential(broken.lm_head)
    with pytest.raises(TypeError, match=r"plain nn\.Linear"):
        dllm.fast.patch(broken)
