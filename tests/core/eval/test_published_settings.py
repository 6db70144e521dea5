"""The settings of the published evaluations: what is read, what is refused, and the arguments that come of it."""

from __future__ import annotations

import pytest
import yaml

from dllm.core.eval.settings import __main__ as program
from dllm.core.eval.settings import settings_table, task_settings
from dllm.core.eval.settings.command import arguments_of
from dllm.core.eval.settings.tables import read_table, tables

GOOD = dict(family="toy", era="now", source="ours", model="llada", any=dict(task=dict(shots=1, new_tokens=2)))


def changed(**changes) -> dict:
    held = yaml.safe_load(yaml.safe_dump(GOOD))
    line = changes.pop("line", {})
    held["any"]["task"] |= line
    return {name: value for name, value in (held | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (changed(modle="x"), "knows no 'modle'"),
        (changed(line=dict(shot=3)), "any: task knows no 'shot'"),
        (changed(line=dict(shots="3")), "shots must be of type int, got '3'"),
        (changed(line=dict(check_greedy=1)), "check_greedy must be of type bool"),
        (changed(line=dict(temperature=0)), "temperature must be of type float"),
        (changed(line=dict(temperature=-1.0)), "temperature must be at least 0"),
        (changed(line=dict(new_tokens=0)), "new_tokens must be at least 1"),
        (changed(line=dict(top_p=1.5)), "top_p must lie in"),
        (changed(model=None), "must have model"),
        (changed(family="other"), "must be named other-now.yaml"),
        (changed(base={}), "must have the section any, or base and instruct"),
        (changed(any=dict(task=dict(shots=1))), "must have new_tokens or mc_num"),
        ([1], "must be a mapping"),
    ],
)
def test_what_a_file_must_not_hold(tmp_path, held, said):
    path = tmp_path / "toy-now.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    assert read_table(path).lines(instruct=True)["task"]["shots"] == 1
    path.write_text(yaml.safe_dump(held))
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        read_table(path)


def test_every_file_of_the_package_is_read():
    assert {family for family, _ in tables()} == {"bert", "dream", "llada"}
    for table in tables().values():
        for instruct in (False, True):
            for task in table.lines(instruct):
                settings = task_settings(table.family, task, instruct=instruct, era=table.era)
                assert settings.fewshot_as_multiturn is False and settings.apply_chat_template is instruct


@pytest.mark.parametrize(
    ("family", "task", "era", "said"),
    [
        (
            "dream",
            "gsm8k",
            "slurm",
            "have no task 'gsm8k' (nearest: gsm8k_cot); there are: humaneval_dream, gsm8k_cot,",
        ),
        ("dreem", "mmlu", "slurm", "have no family 'dreem' (nearest: dream); there are: bert, dream, llada"),
        ("dream", "mmlu", "examples", "have no era 'examples'; there are: slurm"),
    ],
)
def test_what_is_unknown_is_said_with_what_there_is(family, task, era, said):
    with pytest.raises(ValueError) as raised:
        task_settings(family, task, instruct=False, era=era)
    assert said in str(raised.value)


# as published: LLaDA's and BERT's tables, of which tests/core/eval/test_published_lines.py holds Dream's
LLADA = dict(
    gsm8k=(8, 1024, 32), bbh=(3, 1024, 32), minerva_math=(4, 1024, 32), humaneval=(0, 1024, 32), mbpp=(3, 1024, 32)
)
LLADA_LIKELIHOOD = dict(
    gpqa_main_n_shot=(5, 128, 0.5),
    truthfulqa_mc2=(0, 128, 2.0),
    arc_challenge=(0, 128, 0.5),
    hellaswag=(0, 128, 0.5),
    winogrande=(5, 128, None),
    piqa=(0, 128, 0.5),
    mmlu=(5, 1, None),
    cmmlu=(5, 1, None),
) | {"ceval-valid": (5, 1, None)}
LLADA_INSTRUCT = dict(
    gsm8k_cot=(8, 1024, 32),
    bbh=(3, 1024, 32),
    minerva_math=(4, 1024, 32),
    humaneval_instruct=(0, 1024, 32),
    mbpp_llada_instruct=(3, 1024, 32),
    mmlu_generative=(0, 3, 3),
    mmlu_pro=(0, 256, 256),
    hellaswag_gen=(0, 3, 3),
    arc_challenge_chat=(0, 5, 5),
    gpqa_n_shot_gen=(5, 32, 32),
)
BERT = dict(
    gsm8k_bert=(8, 256, 32),
    minerva_math=(4, 256, 32),
    humaneval=(0, 256, 32),
    bbh=(3, 256, 32),
    hellaswag_gen=(0, 128, 128),
    mmlu_generative=(0, 128, 128),
    arc_challenge_chat=(0, 128, 128),
    mmlu_pro=(0, 256, 256),
)
BERT_LIKELIHOOD = dict(mmlu=5, cmmlu=5, hellaswag=0, winogrande=0, lambada_openai=0, lambada_standard=0) | {
    "ceval-valid": 5
}


@pytest.mark.parametrize(
    ("family", "instruct", "generated", "scored"),
    [
        ("llada", False, LLADA, LLADA_LIKELIHOOD),
        ("llada", True, LLADA_INSTRUCT, {}),
        ("bert", False, BERT, {task: (shots, 128, None) for task, shots in BERT_LIKELIHOOD.items()}),
    ],
)
def test_the_tables_hold_what_was_published(family, instruct, generated, scored):
    lines = settings_table(family).lines(instruct)
    assert set(lines) == {*generated, *scored}
    for task, expected in generated.items():
        settings = task_settings(family, task, instruct=instruct)
        args = settings.model_args
        assert (settings.num_fewshot, args["max_new_tokens"], args["block_size"]) == expected
        assert args["steps"] == args["max_new_tokens"]
    for task, expected in scored.items():
        settings = task_settings(family, task, instruct=instruct)
        assert (settings.num_fewshot, settings.model_args["mc_num"], settings.model_args.get("cfg_scale")) == expected


def test_the_arguments_of_a_line(tmp_path, monkeypatch):
    model = tmp_path / "model"
    model.mkdir()
    monkeypatch.setenv("BASE_MODELS_DIR", str(tmp_path))
    words = arguments_of("llada", "piqa", "model", batch_size=4, log_samples=True, limit=2)
    assert words == [
        *("--model", "llada", "--tasks", "piqa", "--num_fewshot", "0"),
        *("--model_args", f"pretrained={model},mc_num=128,cfg_scale=0.5"),
        *("--fewshot_as_multiturn", "False", "--seed", "1234", "--confirm_run_unsafe_code"),
        *("--batch_size", "4", "--log_samples", "--limit", "2"),
    ]


@pytest.mark.parametrize(
    ("model", "options", "error", "said"),
    [
        ("/no/such/model", {}, FileNotFoundError, "there is no model /no/such/model"),
        ("model", {}, FileNotFoundError, "there is no model model"),
        ("a,b/c", {}, ValueError, "must have no comma"),
        ("a/b", dict(batch_size=0), ValueError, "BATCH must be at least 1"),
        ("a/b", dict(limit="few"), ValueError, "LIMIT must be a number above 0"),
        ("a/b", dict(limit="nan"), ValueError, "LIMIT must be a number above 0"),
    ],
)
def test_arguments_that_are_refused(model, options, error, said, monkeypatch, tmp_path):
    monkeypatch.delenv("BASE_MODELS_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=said):
        arguments_of("bert", "mmlu", model, **options)


def test_a_base_folder_without_the_model(tmp_path, monkeypatch):
    monkeypatch.setenv("BASE_MODELS_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="BASE_MODELS_DIR is set"):
        arguments_of("bert", "mmlu", "a/b")


def test_the_program_prints_a_word_a_line(capsys):
    program.main(["Dream", "gsm8k_cot", "a/b", "True", "8", "false", "0.5"])
    words = capsys.readouterr().out.splitlines()
    assert words == arguments_of("dream", "gsm8k_cot", "a/b", instruct=True, batch_size=8, limit="0.5")
    assert words[words.index("--apply_chat_template") + 1] == "True"
    with pytest.raises(SystemExit):
        program.main(["dream", "gsm8k_cot", "a/b", "yes"])
    assert "must be True or False, got 'yes'" in capsys.readouterr().err
