"""`dllm generate` and `dllm chat` with a checkpoint of every family: the sampler and the settings of its card."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest

from dllm import cli
from dllm.chat import Continuation, Conversation
from dllm.chat.options import SETTINGS, chosen_sampler
from dllm.core import samplers
from dllm.core.samplers.families import FAMILIES, SAMPLERS, SamplerChoice, one_token_a_step, sampler_for
from dllm.models import get_model, get_tokenizer
from tests.families import folders, toys
from tests.families.toys import NAMES

pytestmark = pytest.mark.usefixtures("one_thread")

# What each family's card does in a call for 12 tokens, without any flag.
CARDS = {
    "llada": (samplers.LLaDASampler, dict(block_size=32, steps=12)),
    "lladamoe": (samplers.LLaDASampler, dict(block_size=32, steps=12)),
    "dream": (
        samplers.DreamSampler,
        dict(schedule="time", alg="entropy", temperature=0.2, top_p=0.95, top_k=None, steps=12),
    ),
    "rnd1": (samplers.RND1Sampler, dict(steps=12)),
    "a2d-qwen3": (samplers.MDLMSampler, dict(block_size=None, steps=12)),
    "llada2": (samplers.LLaDA2Sampler, dict(block_size=32, steps=12, cache=True)),
}
NO_TEMPLATE = ("rnd1",)  # base models
SHORT = ("--gen-length", "12", "--seed", "3", "--device", "cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return {name: folders.write(tmp_path_factory.mktemp(name) / name, name) for name in NAMES}


def expected(folder: str, name: str, text: str, *, raw: bool) -> str:
    kind, settings = CARDS[name]
    sampler = kind(
        get_model(model_name_or_path=folder, dtype="float32").eval(), get_tokenizer(model_name_or_path=folder)
    )
    config = kind.config_class(max_new_tokens=12, stop_at_eos=True, **settings)
    talk = (Continuation if raw else Conversation)(sampler, config, seed=3)
    return talk.answer(text, talk.prompt(text)).text


@pytest.mark.parametrize("name", NAMES)
def test_generate(name, made, capsys):
    raw = name in NO_TEMPLATE
    assert cli.main(["generate", "Hello there", "--model", made[name], *SHORT, *["--raw"] * raw, "--live"]) == 0
    out, err = capsys.readouterr()
    assert out == expected(made[name], name, "Hello there", raw=raw) + "\n"
    assert "· masked, (tentative), committed" in err and "forward passes" in err


@pytest.mark.parametrize("name", ["dream", "llada2", "rnd1"])
def test_chat(name, made, capsys, monkeypatch):
    raw = name in NO_TEMPLATE
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello there\n"))
    assert cli.main(["chat", "--model", made[name], *SHORT, *["--raw"] * raw]) == 0
    assert capsys.readouterr().out == (expected(made[name], name, "Hello there", raw=raw) or "(an empty answer)") + "\n"


@pytest.mark.parametrize("command", ["generate", "chat"])
@pytest.mark.parametrize(
    ("name", "words", "rule"),
    [
        ("dream", ["--remasking", "random"], "DreamSampler has no remasking, so --remasking must not be given"),
        ("llada2", ["--remasking", "none"], "LLaDA2Sampler has no remasking, so --remasking must not be given"),
        ("llada", ["--sampler", "threshold", "--steps", "4"], "ThresholdSampler has no steps, so --steps must not be"),
        ("llada", ["--sampler", "magic"], "the sampler must be one of mdlm, bd3lm, "),
        ("llada", ["--remasking", "none"], "remasking must be one of low_confidence, random, got 'none'"),
        ("rnd1", [], "got one without, as base models have: they continue texts (--raw"),
    ],
)
def test_flags_that_make_no_sense(command, name, words, rule, made, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    question = ["Hello"] if command == "generate" else []
    assert cli.main([command, *question, "--model", made[name], *SHORT, *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and rule in err and "Traceback" not in err


def test_the_bundled_model_continues_a_text(capsys):
    text = "[Question]\nWhat is 8 * 4?\n[/Question]\n\n[Answer]\n"
    assert cli.main(["generate", text, "--raw", "--gen-length", "8", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.strip() == "8 * 4 = 32."


def test_every_family_has_a_sampler():
    assert {toys.load(name).config.masked_diffusion["family"] for name in NAMES} <= set(FAMILIES)
    for kind, config in FAMILIES.values():
        assert type(config) is kind.config_class and kind in SAMPLERS.values()
        config.check()


def test_llada_2_1_is_told_by_its_name(made):
    model = get_model(model_name_or_path=made["llada2"], dtype="float32")
    assert sampler_for(model).sampler is samplers.LLaDA2Sampler
    for name in ("inclusionAI/LLaDA2.1-mini", "/models/LLaDA2.1-flash"):
        model.name_or_path = name
        assert sampler_for(model).sampler is samplers.LLaDA21Sampler


def test_a_named_sampler():
    model = toys.load("dream")
    assert sampler_for(model, "dream").config.alg == "entropy"  # the family's own, with its settings
    assert sampler_for(model, "mdlm").config == samplers.MDLMSamplerConfig()
    options = dict.fromkeys(SETTINGS)
    chosen = chosen_sampler(SimpleNamespace(sampler=None, gen_length=9, **options | dict(temperature=0.7)), model)
    assert (chosen.config.temperature, chosen.config.steps, chosen.config.alg) == (0.7, 9, "entropy")


@pytest.mark.parametrize(
    ("name", "length", "block", "steps"),
    [
        ("llada", 70, 32, 96),
        ("llada", 20, 32, 20),
        ("llada2", 70, 32, 32),
        ("mdlm", 70, None, 70),
        ("threshold", 9, 4, None),
    ],
)
def test_one_token_a_step(name, length, block, steps):
    kind = SAMPLERS[name]
    config = one_token_a_step(SamplerChoice(kind, kind.config_class(max_new_tokens=length, block_size=block)))
    assert getattr(config, "steps", None) == steps
