"""The demo's parts on small settings, and the whole of it once, with the real encoder and text."""

from __future__ import annotations

import importlib.util
import io

import pytest
import torch
from rich.console import Console

from dllm.demo import __main__ as demo
from dllm.demo.view import COMMITTED, MASKED, NEW, TENTATIVE, View
from dllm.fast import Step

NOT_INSTALLED = [package for module, package in demo.NEEDED.items() if importlib.util.find_spec(module) is None]
needs_packages = pytest.mark.skipif(bool(NOT_INSTALLED), reason=f"not installed: {', '.join(NOT_INSTALLED)}")

pytestmark = pytest.mark.usefixtures("one_thread")


class Words:
    """A tokenizer of five tokens."""

    mask_token, mask_token_id = "[MASK]", 0
    names = ("[MASK]", "hello", "world", "##ly", "end")

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.names[i] for i in ids]


def steps() -> list[Step]:
    """Two steps on one row: a prompt token, then three to be filled, the last in another block."""
    first = torch.tensor([[1, 2, 0, 0]]), torch.tensor([[1, 2, 3, 0]])
    second = torch.tensor([[1, 2, 3, 0]]), torch.tensor([[1, 2, 3, 0]])
    return [Step(*first, block=0, blocks=1, step=0, steps=2), Step(*second, block=0, blocks=1, step=1, steps=2)]


def shown(terminal: bool) -> tuple[View, str]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=80, color_system=None)
    with View(Words(), ["hello?"], prompt_length=1, console=console) as view:
        for step in steps():
            view.show(step)
    return view, out.getvalue()


class TestView:
    def test_kinds_of_token(self):
        view = View(Words(), ["hello?"], prompt_length=0, console=Console(file=io.StringIO()))
        view.before = torch.tensor([[1, 0, 0, 0]])
        kinds = view._states(torch.tensor([[1, 2, 0, 0]]), torch.tensor([[1, 2, 3, 0]]))
        assert kinds == [[COMMITTED, NEW, TENTATIVE, MASKED]]

    def test_lines(self):
        _, text = shown(terminal=False)
        assert "hello? | world (ly) ·" in text
        assert "hello? | world ly ·" in text
        assert "step 2 of 2" in text

    def test_frames(self):
        _, text = shown(terminal=True)
        assert "worldly ·" in text
        assert "step 2 of 2" in text
        assert text.count("╭") == text.count("╰") >= 2


class TestProgram:
    @needs_packages
    def test_whole_demo(self, tmp_path, capsys):
        plot = tmp_path / "build" / "demo.png"
        small = ["--prompts", "2", "--gen-length", "8", "--steps", "4", "--benchmark-length", "4", "--repeats", "1"]
        assert demo.main([*small, "--plot", str(plot)]) == 0
        out = capsys.readouterr().out
        assert "neither for chat nor for filling masks" in " ".join(out.split())
        assert "step 4 of 4" in out
        assert "16 tokens in 4 forward passes" in out
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
    def test_outside_a_clone(self, monkeypatch, capsys):
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "benchmarks" else find(name))
        assert demo.main([]) == 1
        assert "clone" in capsys.readouterr().err

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
    from dllm.demo.encoder import load_encoder

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
        from dllm.demo.dialogues import questions, running_text

        _, tokenizer = encoder
        prompt = running_text(tokenizer, 64)
        assert prompt.shape == (1, 64)
        assert not (prompt == tokenizer.mask_token_id).any()
        assert questions(3, seed=1) == questions(3, seed=1) != questions(3, seed=2)
        assert all(question.endswith("?") for question in questions(3, seed=1))
