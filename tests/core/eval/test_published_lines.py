"""The 23 lines by which dLLM 0.1 evaluated Dream, and those of LLaDA and BERT, up to the model call."""

from __future__ import annotations

import importlib.util
import operator
from typing import NamedTuple

import pytest

from dllm.core.eval.generation import GenerationRequest
from dllm.core.eval.settings import settings_table, task_settings
from dllm.core.eval.settings.command import arguments_of, settings_arguments
from dllm.core.likelihood import Target
from tests.core.eval.lines import Asked, Recorder, record, up_to_the_model
from tests.families import folders

pytestmark = pytest.mark.usefixtures("one_thread")

ARGS = operator.attrgetter("args")

NEEDS = {"minerva_math": ("math_verify", "antlr4"), "ifeval": ("langdetect", "immutabledict", "nltk")}


class Line(NamedTuple):
    """A line as published, and how its prompts look.

    beginning: with what the question and each shot begin; end: with what the prompt ends; until: the stop strings.
    """

    instruct: bool
    task: str
    shots: int
    tokens: int | None
    temperature: float | None
    top_p: float | None
    mc_num: int | None
    beginning: str
    end: str
    until: tuple[str, ...] = ()


CODE = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
LETTER = ("</s>", "\n")
SEED = [
    Line(False, "humaneval_dream", 0, 512, 0.2, 0.95, None, "def plus_", '"""\n', CODE),
    Line(False, "gsm8k_cot", 8, 256, 0.0, 0.95, None, "Q: ", "\nA:", ("Q:", "</s>", "<|im_end|>")),
    Line(False, "mbpp", 3, 512, 0.2, 0.95, None, "You are an expert", "[BEGIN]\n", ("[DONE]",)),
    Line(False, "minerva_math", 4, 512, 0.0, 0.95, None, "Problem:\n", "\n\nSolution:", ("Problem:",)),
    Line(False, "bbh", 3, 512, 0.0, 0.95, None, "Q: ", "\nA: Let's think step by step.\n", ("</s>", "Q", "\n\n")),
    Line(False, "mmlu", 5, None, None, None, 128, "\nA. ", "\nAnswer:"),
    Line(False, "arc_easy", 0, None, None, None, 128, "Question: ", "\nAnswer:"),
    Line(False, "arc_challenge", 0, None, None, None, 128, "Question: ", "\nAnswer:"),
    Line(False, "hellaswag", 0, None, None, None, 128, "Washing hands: ", " He"),
    Line(False, "piqa", 0, None, None, None, 128, "Question: ", "\nAnswer:"),
    Line(False, "gpqa_main_n_shot", 5, None, None, None, 128, "Question: ", "\nAnswer:"),
    Line(False, "winogrande", 5, None, None, None, 128, "Cup ", ("cup", "box")),
    Line(False, "race", 0, None, None, None, 128, "Article: ", "The cat is  _  ."),
    Line(True, "mmlu_generative", 4, 128, 0.1, 0.9, None, "There is a single choice question about ", "\nA:", LETTER),
    Line(True, "mmlu_generative_dream", 4, 128, 0.1, 0.9, None, "\nA. ", "\nAnswer:", LETTER),
    Line(
        True,
        *("mmlu_pro", 4, 128, 0.1, 0.9, None, "Question:\n", "Answer: Let's think step by step."),
        ("Question:", "</s>", "Q:", "<|im_end|>"),
    ),
    Line(True, "gsm8k_cot", 0, 256, 0.1, 0.9, None, "Q: ", "\nA:", ("Q:", "</s>", "<|im_end|>")),
    Line(True, "minerva_math", 0, 512, 0.1, 0.9, None, "Problem:\n", "\n\nSolution:", ("Problem:",)),
    Line(True, "gpqa_main_n_shot", 5, 128, 0.0, 1.0, 1, "Question: ", "\nAnswer:"),
    Line(True, "humaneval_instruct", 0, 768, 0.1, 0.9, None, "Write a solution", '"""\n\n', CODE),
    Line(True, "mbpp_instruct", 0, 1024, 0.1, 0.9, None, "You are an expert", "\n```python\n", ()),
    Line(
        True,
        *("mbpp_instruct_dream", 0, 1024, 0.1, 0.9, None, "You are an expert"),
        *("Here is the completed function:\n```python\n", ("```",)),
    ),
    Line(True, "ifeval", 0, 1280, 0.1, 0.9, None, "", " comma.", ()),
]
# ends of prompts that begin the answer themselves
OPENED = ("humaneval_instruct", "mbpp_instruct", "mbpp_instruct_dream")


def skip_without(task: str) -> None:
    missing = [package for package in NEEDS.get(task, ()) if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f"{task} needs {', '.join(missing)}")


def test_the_table_has_the_lines_and_no_others():
    for instruct in (False, True):
        names = {line.task for line in SEED if line.instruct is instruct}
        assert set(settings_table("dream").lines(instruct)) == names
    assert len(SEED) == 23


@pytest.fixture(scope="module")
def dream(tmp_path_factory) -> str:
    """A small checkpoint of Dream, as its authors write theirs."""
    return folders.write(tmp_path_factory.mktemp("dream"), "dream")


@pytest.mark.parametrize("line", SEED, ids=lambda line: f"{'instruct' if line.instruct else 'base'}-{line.task}")
def test_a_line_of_dream(line, dream, monkeypatch):
    skip_without(line.task)
    asked = up_to_the_model(arguments_of("dream", line.task, dream, instruct=line.instruct, limit=2), monkeypatch)
    sampler, likelihood = asked.lm.settings.sampler, asked.lm.settings.likelihood
    if line.tokens:
        got = (sampler.max_new_tokens, sampler.steps, sampler.temperature, sampler.top_p)
        assert got == (line.tokens, line.tokens, line.temperature, line.top_p) and sampler.alg == "entropy"
    if line.mc_num:
        assert likelihood.mc_num == line.mc_num and likelihood.form == "dream"
    assert asked.lm.settings.eval.add_bos_token and asked.lm.settings.eval.escape_until
    different = {(request.task_name, request.doc_id, str(request.args)) for request in asked.requests}
    assert len(asked.contents) == len(different) > 0
    for request in asked.requests:
        check_prompt(line, *request.args)
    for content in asked.contents:
        check_content(line, content, asked)


def check_prompt(line: Line, prompt: str, other: str | dict) -> None:
    """A prompt has the line's shots, its beginning and its end; the request has the task's stop strings."""
    assert prompt.count(line.beginning) == line.shots + 1 or line.task == "ifeval"
    if line.instruct:
        assert prompt.count("<|im_start|>user\n") == 1  # all shots in one message
        question, turn, answer = prompt.partition("<|im_end|>\n<|im_start|>assistant\n")
        assert turn and bool(answer) == (line.task in OPENED)
        prompt = answer or question
    assert prompt.endswith(line.end), prompt[-200:]
    if not line.mc_num:
        assert other["until"] == list(line.until)


def check_content(line: Line, content: Target | GenerationRequest, asked: Asked) -> None:
    """The model reads the prompt from its BOS on, or the end of it if that is longer than the model's maximum."""
    decode = asked.lm.tokenizer.decode
    ids = content.context if line.mc_num else content.prompt
    cut = len(ids) + (len(content.target) + len(content.after) if line.mc_num else line.tokens) == asked.lm.max_length
    assert cut or ids[0] == asked.lm.tokenizer.bos_token_id
    text = decode(ids[1:])
    assert any(prompt.endswith(text) if cut else prompt.startswith(text) for prompt, *_ in map(ARGS, asked.requests))
    if line.mc_num:
        assert any(decode(content.target) in f"{prompt}{target}" for prompt, target in map(ARGS, asked.requests))
        assert list(content.after) == [asked.lm.tokenizer.eos_token_id]
    else:
        assert content.until == () and content.overrides.get("max_new_tokens", line.tokens) == line.tokens


def test_a_question_of_several_choices_is_asked_for_each(monkeypatch, tmp_path):
    settings = task_settings("dream", "arc_easy", instruct=False)
    results = record(settings_arguments(settings, "some/model"), monkeypatch, tmp_path)
    assert [request.args[1] for request in Recorder.asked] == [" first", " second", " third", " fourth"] * 2
    assert results["results"]["arc_easy"]["acc,none"] == 0.5  # the recorder finds the shortest choice most likely


OTHERS = [
    (family, instruct, task)
    for family, kinds in (("llada", (False, True)), ("bert", (False,)))
    for instruct in kinds
    for task in settings_table(family).lines(instruct)
]
# of each task that Dream's lines do not run
UNSEEN = {task_settings(family, task, instruct=kind).runs: (family, kind, task) for family, kind, task in OTHERS}
for _line in SEED:
    UNSEEN.pop(task_settings("dream", _line.task, instruct=_line.instruct).runs, None)


@pytest.mark.parametrize(("family", "instruct", "task"), UNSEEN.values(), ids=str)
def test_a_line_of_another_family(family, instruct, task, monkeypatch, tmp_path):
    skip_without(task)
    settings = task_settings(family, task, instruct=instruct)
    record(settings_arguments(settings, "some/model"), monkeypatch, tmp_path)
    assert Recorder.asked and Recorder.made_with["pretrained"] == "some/model"
    line = settings_table(family).lines(instruct)[task]
    if "new_tokens" in line:
        lengths = {name: Recorder.made_with[name] for name in ("max_new_tokens", "steps", "block_size")}
        assert lengths == dict(
            max_new_tokens=line["new_tokens"], steps=line["new_tokens"], block_size=line["block_size"]
        )
    else:
        assert Recorder.made_with["mc_num"] == line["mc_num"]
