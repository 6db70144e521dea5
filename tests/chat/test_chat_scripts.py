"""The examples as their headers run them, and scripts written for dLLM 0.1, unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest

from dllm.chat import text
from dllm.demo.shipped import SHIPPED
from tests import programs

ROOT = Path(__file__).parents[2]
# what such scripts consist of: dataclasses, get_model and get_tokenizer by them, a sampler, the chat
SCRIPT = """
from dataclasses import dataclass
import transformers
import dllm

@dataclass
class ScriptArguments:
    model_name_or_path: str = "none"
    seed: int = 42
    chat: bool = True
    visualize: bool = True

@dataclass
class SamplerConfig(dllm.core.samplers.MDLMSamplerConfig):
    steps: int = 8
    max_new_tokens: int = 8
    block_size: int = 8
    temperature: float = 0.0
    remasking: str = "low_confidence"

parser = transformers.HfArgumentParser((ScriptArguments, SamplerConfig))
script_args, sampler_config = parser.parse_args_into_dataclasses()
transformers.set_seed(script_args.seed)
model = dllm.utils.get_model(model_args=script_args).eval()
tokenizer = dllm.utils.get_tokenizer(model_args=script_args)
sampler = dllm.core.samplers.MDLMSampler(model=model, tokenizer=tokenizer)
run = dllm.utils.multi_turn_chat if script_args.chat else dllm.utils.single_turn_sampling
run(sampler=sampler, sampler_config=sampler_config, visualize=script_args.visualize)
prompts = dllm.utils.build_chat_inputs(tokenizer, [[{"role": "user", "content": "What is 8 - 4?"}]], True)
outputs = sampler.sample(prompts, sampler_config, return_dict=True)
print(dllm.utils.sample_trim(tokenizer, outputs.sequences.tolist(), prompts))
dllm.utils.TerminalVisualizer(tokenizer=tokenizer).visualize(outputs.histories, rich=True)
"""


def run(script: Path, *words: str, lines: str = "", cwd: Path, code: int = 0) -> tuple[str, str]:
    """What a script prints to stdout and to stderr."""
    done = programs.run(script, *words, lines=lines, cwd=cwd, environment={"OMP_NUM_THREADS": "1"})
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout, done.stderr


@pytest.mark.parametrize("flag", ["--chat", "--chat_template"])
def test_chat(tmp_path, flag):
    words = ("--model_name_or_path", str(SHIPPED), flag, "True", "--max_new_tokens", "8", "--visualize", "False")
    out, _ = run(ROOT / "examples/bert/chat.py", *words, lines="What is 8 * 4?\n", cwd=tmp_path)
    assert out == "8 * 4 = 32.\n"


def test_chat_without_a_template(tmp_path):
    words = ("--chat_template", "False", "--max_new_tokens", "8")
    out, err = run(ROOT / "examples/bert/chat.py", *words, lines="She runs [MASK] kilometers.\n", cwd=tmp_path)
    assert out.startswith("She runs") and "[MASK]" not in out and "step 1 of 1" in err


def test_chat_with_no_such_model(tmp_path):
    _, err = run(ROOT / "examples/bert/chat.py", "--model_name_or_path", "/no/such/folder", cwd=tmp_path, code=1)
    assert "/no/such/folder" in err.splitlines()[-1] or "chat.py: " in err


def test_sample(tmp_path):
    pytest.importorskip("PIL")
    out, _ = run(ROOT / "examples/bert/sample.py", "--gif", "steps.gif", "--steps", "64", cwd=tmp_path)
    assert "The answer is 72." in " ".join(out.split()) and "-> 54 + 72 = 126." in out
    assert "What is 8 - 4? 8 - 4 =_. -> 4" in out and "step 64 of 64" in out
    assert (tmp_path / "steps.gif").read_bytes().startswith(b"GIF89a")


def test_a_script_for_dllm_0_1(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    words = ("--model_name_or_path", str(SHIPPED), "--chat", "True")
    out, _ = run(script, *words, lines="What is 8 * 4?\n", cwd=tmp_path)
    assert out.startswith("8 * 4 = 32.\n['") and "step 8 of 8" in out


def test_names_of_scripts():
    import dllm

    for part in ("chat", "sampling", "visualizers"):
        module = getattr(dllm.utils, part)
        assert all(getattr(dllm.utils, name) is getattr(module, name) for name in module.__all__)


class TestText:
    def test_wrapping_keeps_lines_and_indents(self):
        assert text.wrapped("def f():\n    return 1\n\none two three", 10) == [
            "def f():",
            "    return",
            "1",
            "",
            "one two",
            "three",
        ]

    def test_boxes(self):
        box = text.boxed("one two three\nfour", width=13).splitlines()
        assert box[1:-1] == ["│ one two │", "│ three   │", "│ four    │"] and {len(line) for line in box} == {11}

    def test_banner(self):
        assert text.banner_line("<x>", fill=" ") == " " * 38 + "<x>" + " " * 39

    def test_menu(self, monkeypatch, capsys):
        assert "Go on (round 3)" in text.render_menu(2) and "Go on" not in text.render_menu(0)
        answers = iter(["x", " 2 "])
        monkeypatch.setattr("builtins.input", lambda prompt: next(answers))
        assert text.prompt_choice() == "2"
        assert "expected 1, 2 or 3, got 'x'" in capsys.readouterr().out
