"""The examples of the families run as their heads say, on small official checkpoints: sample, chat, sft, pt, GRPO."""

from __future__ import annotations

import io
import json
import runpy
import sys
from pathlib import Path

import pytest

import dllm
from tests.pipelines import official_folders

pytest.importorskip("datasets")
pytestmark = pytest.mark.usefixtures("one_thread")  # models this small gain nothing from two
EXAMPLES = Path(__file__).parents[2] / "examples"
FAMILY = {
    "llada": "llada",
    "dream": "dream",
    "rnd1": "rnd1",
    "llada2": "llada2",
    "llada21": "llada2",
    "a2d/mdlm": "a2d",
    "a2d/bd3lm": "a2d",
    "fastdllm/llada": "llada",
    "fastdllm/dream": "dream",
}
FEW = ("--max_new_tokens", "8")
TRAINED = [("llada", "sft"), ("dream", "pt"), ("rnd1", "sft"), ("a2d/mdlm", "pt"), ("a2d/bd3lm", "sft")]
OTHERS = [("llada", "pt"), ("dream", "sft"), ("rnd1", "pt"), ("a2d/mdlm", "sft"), ("a2d/bd3lm", "pt")]
REWARDED = {"llada": "llada", "a2d": "a2d"}  # by reinforcement learning
TALK = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there"}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The checkpoint of each family."""
    root = tmp_path_factory.mktemp("official")
    return {family: official_folders.write(family, root / family) for family in official_folders.PARTS}


@pytest.fixture
def run(monkeypatch, capsys):
    """What an example prints, run in this process."""

    def run(file: str, *words: object, lines: str = "") -> str:
        monkeypatch.setattr(sys, "argv", [file, *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(EXAMPLES / file), run_name="__main__")
        out, err = capsys.readouterr()
        assert not ended.value.code, err
        return out

    return run


@pytest.mark.parametrize("place", [*FAMILY, "llada llada_moe"])
def test_sample(place, folders, run):
    place, *family = place.split()
    folder = folders[family[0] if family else FAMILY[place]]
    steps = () if place.startswith(("llada2", "fastdllm/llada")) else ("--steps", "8")
    block = ("--block_size", "8") if place in ("llada", "a2d/mdlm") else ()
    words = ("--model_name_or_path", folder, "--visualize", "False", "--prompt", "Hi", "Who are you?")
    said = run(f"{place}/sample.py", *words, *FEW, *steps, *block)
    assert said.count("  -> ") == 2 and "Who are you?" in said


@pytest.mark.parametrize("place", [place for place in FAMILY if place != "rnd1"])
def test_chat(place, folders, run):
    steps = () if place.startswith(("llada2", "fastdllm/llada")) else ("--steps", "8")
    block = ("--block_size", "8") if place in ("llada", "a2d/mdlm") else ()
    words = ("--model_name_or_path", folders[FAMILY[place]], "--visualize", "False")
    raw = ("--chat_template", "False") if place in ("dream", "llada2") else ()
    run(f"{place}/chat.py", *words, *FEW, *steps, *block, *raw, lines="Hi\n")


def test_every_example_is_run():
    scripts = {str(file.relative_to(EXAMPLES).with_suffix("")) for file in EXAMPLES.rglob("*.py")}
    run = {f"{place}/{task}" for place, task in TRAINED + OTHERS} | {f"{place}/sample" for place in FAMILY}
    run |= {f"{place}/chat" for place in FAMILY if place != "rnd1"} | {f"rl/grpo/{place}/train" for place in REWARDED}
    elsewhere = ("bert/", "diffusiongemma/", "dropin/", "editflow/", "nemotron_diffusion/")
    assert {name for name in scripts if not name.startswith(elsewhere)} == run


# each script of a kind is the same but for its model and its arguments: half of them run, all with --exhaustive
@pytest.mark.parametrize(
    "place, task", TRAINED + [pytest.param(*other, marks=pytest.mark.exhaustive) for other in OTHERS]
)
def test_training(place, task, folders, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = (
        [{"messages": TALK}] * 4 if task == "sft" else [{"text": "a b c d e f g h " * 8, "Text": "i j k l " * 16}] * 4
    )
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    length = dict(max_length=96 if task == "sft" else 16, dataset_args="train.jsonl", max_steps=2, num_proc=1)
    some = dict(per_device_train_batch_size=2, bf16=False, dtype="float32", use_cpu=True, save_strategy="no")
    options = length | some | dict(model_name_or_path=folders[FAMILY[place]], output_dir="out", report_to="none")
    options |= dict(gradient_accumulation_steps=1, logging_steps=1)
    run(f"{place}/{task}.py", *(word for name, value in options.items() for word in (f"--{name}", value)))
    final = tmp_path / "out" / "checkpoint-final"
    trained, before = (
        dllm.utils.get_model(model_name_or_path=str(folder), dtype="float32")
        for folder in (final, folders[FAMILY[place]])
    )
    assert type(trained) is type(before)
    changed = [not a.equal(b) for a, b in zip(trained.parameters(), before.parameters(), strict=True)]
    assert any(changed)
    assert dllm.utils.get_tokenizer(model_name_or_path=str(final)).mask_token_id is not None


@pytest.mark.parametrize("place", REWARDED)
def test_reinforcement_learning(place, folders, run, tmp_path, monkeypatch):
    """The llada example trains an adapter."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"prompt": f"What is {n} * 7?", "answer": str(7 * n)} for n in range(2, 6)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = dict(model_name_or_path=folders[REWARDED[place]], dataset_args="prompts.jsonl", output_dir="out")
    options |= dict(num_generations=2, per_device_train_batch_size=2, gradient_accumulation_steps=1, num_iterations=2)
    options |= dict(max_completion_length=4, block_size=4, steps=2, max_prompt_length=96, max_steps=2, logging_steps=1)
    options |= dict(dtype="float32", bf16=False, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True)
    rewards = ("--reward_funcs", "correctness", "int")
    said = run(
        f"rl/grpo/{place}/train.py", *(w for name, value in options.items() for w in (f"--{name}", value)), *rewards
    )
    assert said.count("'rewards/correctness'") == 1 and said.count("'loss'") == 2  # two steps on the same answers
    assert "[correctness 0, int 0]" in said
    saved = "adapter_model.safetensors" if place == "llada" else "model.safetensors"
    assert (tmp_path / "out" / "checkpoint-final" / saved).exists()
