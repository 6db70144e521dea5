"""The demo's parts on small settings, and the whole of it once, with the real encoder and text."""

from __future__ import annotations

import importlib.util
import runpy
import sys

import pytest
import torch

from benchmarks import demo

NOT_INSTALLED = [package for module, package in demo.NEEDED.items() if importlib.util.find_spec(module) is None]
needs_packages = pytest.mark.skipif(bool(NOT_INSTALLED), reason=f"not installed: {', '.join(NOT_INSTALLED)}")

pytestmark = pytest.mark.usefixtures("one_thread")


class TestProgram:
    @needs_packages
    def test_whole_demo(self, tmp_path, capsys):
        plot = tmp_path / "build" / "demo.png"
        small = ["--problems", "4", "--benchmark-length", "4", "--repeats", "1"]
        assert demo.main([*small, "--plot", str(plot)]) == 0
        out = capsys.readouterr().out
        assert "step 64 of 64" in out
        assert "The answer is 72." in out
        assert "tokens in 64 forward passes" in out
        assert " of 4 " in out
        assert f"plot: {plot}" in out
        assert out.count(" yes ") == 2 * (1 + torch.cuda.is_available())
        assert plot.read_bytes().startswith(b"\x89PNG")

    def test_missing_package(self, monkeypatch, capsys):
        monkeypatch.setitem(demo.NEEDED, "no_such_module", "no-such-package")
        assert demo.main([]) == 1
        error = capsys.readouterr().err
        assert "no-such-package not installed" in error
        assert "make demo" in error
        assert "dllm[demo]" in error

    @needs_packages
    def test_interrupt(self, monkeypatch, capsys):
        def interrupt(options):
            raise KeyboardInterrupt

        monkeypatch.setattr(demo, "_run", interrupt)
        assert demo.main([]) == 130
        assert "interrupted" in capsys.readouterr().err

    def test_unknown_option(self):
        with pytest.raises(SystemExit) as end:
            demo.main(["--stepz", "3"])
        assert end.value.code == 2

    def test_failed_program_in_the_table(self):
        line = demo.table_line("ours-eager", 0.0, {"error": "RuntimeError: no"})
        assert line[0] == "dllm.fast: RuntimeError: no"


@pytest.fixture(scope="module")
def encoder():
    if NOT_INSTALLED:
        pytest.skip(f"not installed: {', '.join(NOT_INSTALLED)}")
    from benchmarks.encoder import load_encoder

    return load_encoder(torch.device("cpu"))


class TestEncoder:
    def test_nothing_is_random(self, encoder):
        model, tokenizer = encoder
        tokens = tokenizer("What is good to eat?", return_tensors="pt")["input_ids"]
        hidden = model.bert(tokens).last_hidden_state
        expected = hidden @ model.get_input_embeddings().weight.T + model.get_output_embeddings().bias
        torch.testing.assert_close(model(tokens).logits, expected)

    def test_special_tokens_are_never_said(self, encoder):
        model, tokenizer = encoder
        tokens = torch.full((1, 8), tokenizer.mask_token_id)
        likeliest = model(tokens).logits.topk(1000).indices
        never = torch.tensor(tokenizer.all_special_ids + tokenizer.convert_tokens_to_ids(["[unused5]"]))
        assert not torch.isin(likeliest, never).any()

    def test_text(self, encoder):
        from dllm.demo.training.dialogues import running_text

        _, tokenizer = encoder
        prompt = running_text(tokenizer, 64)
        assert prompt.shape == (1, 64)
        assert not (prompt == tokenizer.mask_token_id).any()


@needs_packages
class TestDialogues:
    def test_small_talk_is_short_and_has_one_answer_to_a_question(self):
        from dllm.demo.training.dialogues import LONGEST_LINE, canonical, small_talk

        pairs = small_talk()
        assert len(pairs) > 500
        assert max(len(line.split()) for pair in pairs for line in pair) <= LONGEST_LINE
        assert len({canonical(question) for question, _ in pairs}) == len(pairs)
        assert ("Hello", "Hi") in pairs

    def test_what_a_partner_hears(self):
        from dllm.demo.training.dialogues import canonical

        assert canonical("  What's UP,  doc?! ") == "whats up doc"


@pytest.mark.parametrize("name", ["gauge", "train"])
def test_commands_run_under_their_old_path(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.delitem(sys.modules, f"dllm.demo.{name}", raising=False)
    with pytest.raises(SystemExit) as end:
        runpy.run_module(f"dllm.demo.{name}", run_name="__main__")
    assert end.value.code == 0 and "--seed" in capsys.readouterr().out
