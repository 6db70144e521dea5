"""DiffusionGemma from a folder of the published format: loaded, sampled, chatted with, and refused where it must be."""

from __future__ import annotations

import io
import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import dllm
from dllm import cli
from dllm.chat import script
from dllm.chat.film import film_from_histories
from dllm.chat.replay import Replay
from dllm.chat.screen import Screen
from dllm.chat.session import Session
from dllm.chat.talk import Continuation, Conversation
from dllm.chat.tokens import COMMITTED, GIVEN, MASKED, NEW, NO_TOKEN, TENTATIVE
from dllm.chat.visualizers import PageVisualizer, TerminalVisualizer, VideoVisualizer
from dllm.core.samplers import DiffusionGemmaSampler, DiffusionGemmaSamplerConfig, MDLMSampler, sampler_for
from dllm.models import get_model, get_tokenizer
from dllm.models.families import family_at
from tests import diffusion_gemma_folder
from tests.diffusion_gemma_models import CANVAS, VOCAB, needs_diffusion_gemma

pytestmark = pytest.mark.usefixtures("one_thread")
QUESTION = "What is a model?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return diffusion_gemma_folder.write(tmp_path_factory.mktemp("diffusion") / "gemma-it")


@pytest.fixture(scope="module")
def loaded(folder) -> tuple[torch.nn.Module, transformers.PreTrainedTokenizerBase]:
    return get_model(model_name_or_path=folder, dtype="float32").eval(), get_tokenizer(model_name_or_path=folder)


@pytest.fixture
def talk(loaded) -> Conversation:
    model, _ = loaded
    return Conversation(DiffusionGemmaSampler(*loaded), DiffusionGemmaSamplerConfig.of(model), seed=1)


def test_an_old_transformers_is_named(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "diffusion_gemma"}))
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(transformers, "__version__", "5.11.2")
    rule = r"'diffusion_gemma' needs transformers 5\.12 or later, got 5\.11\.2: pip install -U 'transformers>=5\.12'"
    for load in (get_model, get_tokenizer, lambda model_name_or_path: family_at(model_name_or_path)):
        with pytest.raises(ValueError, match=rule):
            load(model_name_or_path=str(tmp_path))


@needs_diffusion_gemma
class TestLoading:
    def test_the_files_are_those_of_the_model(self, folder, loaded):
        model, tokenizer = loaded
        assert (
            type(model) is transformers.DiffusionGemmaForBlockDiffusion and family_at(folder).name == "diffusion_gemma"
        )
        stored = load_file(Path(folder) / "model.safetensors")
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in stored.items())
        config = DiffusionGemmaSamplerConfig.of(model)
        assert config == DiffusionGemmaSamplerConfig(
            max_new_tokens=2 * CANVAS,
            max_denoising_steps=6,
            t_min=0.5,
            t_max=0.7,
            entropy_bound=0.2,
            stability_threshold=2,
            confidence_threshold=0.01,
        )
        sampler = DiffusionGemmaSampler(model, tokenizer)
        assert sampler._ends(config) == [1, 106, 50] and sampler._pad() == 0
        assert sampler_for(model) == (DiffusionGemmaSampler, config)

    def test_the_tokenizer(self, loaded):
        tokenizer = loaded[1]
        assert (tokenizer.eot_token, tokenizer.eot_token_id, tokenizer.padding_side) == ("<turn|>", 106, "right")
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": QUESTION}], add_generation_prompt=True, tokenize=False
        )
        assert text == f"<bos><|turn>user\n{QUESTION}<turn|>\n<|turn>model\n"

    def test_a_tokenizer_without_a_mask_token(self, folder, tmp_path):
        shutil.copytree(folder, tmp_path / "bare")
        settings = tmp_path / "bare" / "tokenizer_config.json"
        content = json.loads(settings.read_text())
        del content["mask_token"]
        settings.write_text(json.dumps(content | {"tokenizer_class": "PreTrainedTokenizerFast"}))
        tokenizer = get_tokenizer(model_name_or_path=str(tmp_path / "bare"))
        assert tokenizer.mask_token_id is None and tokenizer.eos_token_id == 1

    def test_what_does_not_fit(self, folder, tmp_path):
        shutil.copytree(folder, tmp_path / "broken")
        file = tmp_path / "broken" / "model.safetensors"
        tensors = load_file(file)
        lost = next(name for name in tensors if "self_conditioning" in name)
        save_file({name: tensor for name, tensor in tensors.items() if name != lost}, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"tensors are missing: .*self_conditioning"):
            get_model(model_name_or_path=str(tmp_path / "broken"))
        content = json.loads((tmp_path / "broken" / "config.json").read_text())
        content["text_config"]["vocab_size"] = 100
        (tmp_path / "broken" / "config.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match="embedding has 100 rows"):
            get_tokenizer(model_name_or_path=str(tmp_path / "broken"))

    def test_nothing_that_fills_masks_runs_it(self, loaded):
        model, tokenizer = loaded
        with pytest.raises(ValueError, match="DiffusionGemmaForBlockDiffusion has no mask token"):
            MDLMSampler(model, tokenizer).sample([[5, 6]], max_new_tokens=4, steps=4)
        with pytest.raises(ValueError, match="has no mask token"):
            dllm.fast.generate(model, torch.tensor([[5, 6]]), steps=4, gen_length=4, block_length=4, mask_id=4)


@needs_diffusion_gemma
class TestCommands:
    def answer(self, loaded, seed=1, **settings):
        model, tokenizer = loaded
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_dict=False
        )
        row = DiffusionGemmaSampler(model, tokenizer).sample([prompt], seed=seed, **settings)[0]
        return dllm.utils.sample_trim(tokenizer, [row], [prompt])[0].strip()

    def test_generate(self, folder, loaded, capsys):
        words = ["generate", QUESTION, "--model", folder, "--seed", "1", "--device", "cpu"]
        assert cli.main([*words, "--live"]) == 0
        out, err = capsys.readouterr()
        assert out == self.answer(loaded) + "\n" and "step 2 of 12: · masked, (tentative), committed" in err
        chosen = ["--steps", "3", "--gen-length", "5", "--t-max", "0.9", "--t-min", "0.3", "--entropy-bound", "2"]
        assert cli.main([*words, *chosen]) == 0
        settings = dict(max_denoising_steps=3, max_new_tokens=5, t_max=0.9, t_min=0.3, entropy_bound=2.0)
        out, err = capsys.readouterr()
        assert out == self.answer(loaded, **settings) + "\n" and "in 3 forward passes" in err

    @pytest.mark.parametrize(
        ("words", "rule"),
        [
            (["--temperature", "0"], "DiffusionGemmaSampler has no temperature, so --temperature must not be given"),
            (["--block-length", "8"], "DiffusionGemmaSampler has no block_size, so --block-length must not be given"),
            (["--sampler", "mdlm"], "MDLMSampler cannot run a DiffusionGemmaForBlockDiffusion"),
            (["--t-max", "0", "--t-min", "0"], "t_max must be above 0"),
            (["--entropy-bound", "0"], "entropy_bound must be above 0"),
            (["--quantize", "int8"], "the LM head must be a plain nn.Linear, got Int8Linear"),
        ],
    )
    def test_flags_that_make_no_sense(self, folder, words, rule, capsys, monkeypatch):
        monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
        for command in (["generate", "Hello"], ["chat"]):
            assert cli.main([*command, "--model", folder, "--device", "cpu", *words]) == 2
            out, err = capsys.readouterr()
            assert out == "" and rule in err and "Traceback" not in err

    def test_no_estimate_and_no_image(self, folder, capsys):
        assert cli.main(["generate", "--dry-run", "--model", folder]) == 2
        assert "fills masks, and a DiffusionGemmaForBlockDiffusion has none" in capsys.readouterr().err
        assert cli.main(["generate", "What is <|image|>?", "--model", folder, "--device", "cpu"]) == 2
        assert f"row 0 holds the image token {VOCAB - 1}, and this sampler takes no images" in capsys.readouterr().err
        assert cli.main(["generate", QUESTION, "--sampler", "diffusion_gemma", "--device", "cpu"]) == 2
        assert "DiffusionGemmaSampler cannot run a ModernBertForMaskedLM" in capsys.readouterr().err

    def test_chat(self, folder, loaded, capsys, monkeypatch):
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\n"))
        assert cli.main(["chat", "--model", folder, "--seed", "1", "--device", "cpu", "--no-live"]) == 0
        assert capsys.readouterr().out == self.answer(loaded) + "\n"

    def test_the_examples(self, folder, loaded, tmp_path, capsys, monkeypatch):
        """The scripts, in this process: settings that are not given are the model's own."""
        words = ["--model_name_or_path", folder, "--visualize", "False", "--seed", "3"]
        sample, chat = (self.script(name) for name in ("sample.py", "chat.py"))
        script.sample(*sample, [*words, "--prompt", QUESTION, "--gif", str(tmp_path / "a.gif"), "--t_max", "0.6"])
        said = capsys.readouterr().out
        assert (tmp_path / "a.gif").exists() and QUESTION in said
        torch.manual_seed(3)
        assert self.answer(loaded, seed=None, t_max=0.6)[:8] in said
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\n"))
        assert script.chat(*chat, [*words, "--max_new_tokens", "5"]) == 0
        torch.manual_seed(3)
        assert capsys.readouterr().out == self.answer(loaded, seed=None, max_new_tokens=5) + "\n"

    def script(self, name):
        """The sampler, the arguments and the settings of an example."""
        found = runpy.run_path(str(Path(dllm.__file__).parents[1] / "examples/diffusiongemma" / name))
        return [found[part] for part in ("DiffusionGemmaSampler", "ScriptArguments", "DiffusionGemmaSamplerConfig")]


@needs_diffusion_gemma
class TestLiveView:
    def test_a_draft_is_tentative_until_its_canvas_is_over(self, talk):
        prompt, steps = talk.prompt(QUESTION), []
        film = prompt.film

        def show(step):
            steps.append(step)
            film.add(step.canvas, step.tentative, step.confidence, step.open)

        talk.answer(QUESTION, prompt, show)
        begin = len(prompt.tokens)
        assert len(film.rows[0]) == len(steps) + 1 == 13
        assert film.rows[0][0].tokens == [NO_TOKEN] * 2 * CANVAS
        for number, (frame, step) in enumerate(zip(film.rows[0][1:], steps, strict=True)):
            first, second = frame.states[:CANVAS], frame.states[CANVAS:]
            if number < 5:
                assert set(first) == {TENTATIVE} and set(second) == {MASKED}
                assert frame.tokens == step.tentative[0, begin : begin + CANVAS].tolist() + [NO_TOKEN] * CANVAS
            else:
                assert set(first) == {NEW if number == 5 else COMMITTED}
                assert set(second) == {MASKED if number == 5 else NEW if number == 11 else TENTATIVE}
        assert frame.committed == frame.generated == 2 * CANVAS

    def test_a_session_with_commands_and_files(self, talk, tmp_path):
        out, err = io.StringIO(), io.StringIO()
        lines = ["/steps 3", QUESTION, f"/save {tmp_path / 'a.html'}", f"/save {tmp_path / 'a.gif'}", "/temperature 1"]
        session = Session(talk, show=True, screen=Screen(io.StringIO("\n".join(lines)), out, err))
        assert session.run("chat") == 1  # of the last line alone
        assert talk.config.max_denoising_steps == 3 and (tmp_path / "a.gif").read_bytes()[:3] == b"GIF"
        assert err.getvalue().count("has no setting temperature") == 1 and "steps 3" in err.getvalue()
        replay: Replay = session.replay
        assert replay.ranked_by == "neg_entropy" and "exp(-entropy)" in (tmp_path / "a.html").read_text()
        shown = replay.confidences(replay.frames[1])
        assert all(0 < value <= 1 for value in shown[:CANVAS]) and set(shown[CANVAS:]) == {None}

    def test_a_continuation(self, loaded):
        talk = Continuation(DiffusionGemmaSampler(*loaded), DiffusionGemmaSamplerConfig.of(loaded[0]), seed=1)
        text = "a <mask> of the model"  # an ordinary token here
        assert talk.answer(text, talk.prompt(text)).stats.forwards == 12

    def test_histories_can_be_shown(self, talk, loaded, tmp_path, capsys):
        tokenizer = loaded[1]
        rows = [talk.prompt(text).tokens for text in (QUESTION, "Why?")]
        output = talk.sampler.sample(rows, seed=1, return_dict=True)
        TerminalVisualizer(tokenizer).visualize(output.histories, rich=False)
        text = capsys.readouterr().out
        assert "step 12 of 12" in text and "·" in text.partition("step 4")[0]
        film = film_from_histories(tokenizer, output.histories)
        for number, (row, frames) in enumerate(zip(rows, film.rows, strict=True)):
            assert frames[0].states == [GIVEN] * len(row) + [MASKED] * (len(frames[0].states) - len(row))
            assert frames[-1].tokens == output.sequences[number, : len(frames[-1].tokens)].tolist()
            assert MASKED not in frames[-1].states
        assert VideoVisualizer(tokenizer).visualize(output.histories, tmp_path / "a.gif").exists()
        assert PageVisualizer(tokenizer).visualize(output.histories, tmp_path / "a.html").exists()
