"""Settings from a file and from flags: names, types, what goes over what."""

from __future__ import annotations

import dataclasses

import pytest

from dllm.core.trainers import MDLMConfig
from dllm.recipes import PRETRAINING, SFT
from dllm.training_command.settings import help_text, known_settings, read_settings, to_yaml
from dllm.values import parse_value

BASE = ["--model_name_or_path", "m", "--dataset_args", "d", "--output_dir", "out", "--report_to", "none"]


def test_a_file_and_flags_over_it(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "task: pt\nmodel_name_or_path: m\ndataset_args: d\noutput_dir: out\nreport_to: none\n"
        "learning_rate: 1e-4\nseed: 1\neval_steps: null\nnum_train_epochs: 3\nlr_scheduler_kwargs: {min_lr: 1.0e-6}\n"
    )
    found = read_settings([str(file), "--seed", "7", "--insert-eos=false", "--lora"])
    assert found.recipe is PRETRAINING and found.training.seed == 7 and found.model.lora
    assert found.training.learning_rate == 1e-4  # for YAML a text
    assert found.training.lr_scheduler_kwargs == {"min_lr": 1e-6} and found.training.num_train_epochs == 3.0
    assert found.data.insert_eos is False and found.data.streaming is False


def test_defaults_are_those_of_the_classes():
    found = read_settings(BASE)
    assert found.recipe is SFT
    own = MDLMConfig(output_dir="out", report_to="none")
    for field in dataclasses.fields(own):
        if field.init and field.name not in ("logging_dir", "run_name"):
            assert getattr(found.training, field.name) == getattr(own, field.name), field.name


@pytest.mark.parametrize("task", ["sft", "pt"])
def test_what_is_written_is_the_same_run_again(task, tmp_path):
    words = ["--task", task, "--learning_rate", "3e-4", "--max_steps", "5", "--optim", "sgd", "--label_names", "a", "b"]
    found = read_settings([*BASE, *words, "--hub_token", "hf_secret"])
    (tmp_path / "again.yaml").write_text(to_yaml(found))
    assert "hf_secret" not in to_yaml(found)
    again = read_settings([str(tmp_path / "again.yaml")])
    assert again[:3] == found[:3] and again.training.label_names == ["a", "b"]
    for name in ("learning_rate", "max_steps", "optim", "warmup_ratio", "bf16", "report_to"):
        assert getattr(again.training, name) == getattr(found.training, name)


@pytest.mark.parametrize("name", ["accelerator_config", "debug", "fsdp", "resume_from_checkpoint"])
def test_what_transformers_makes_of_a_setting_is_not_what_is_written(name, tmp_path):
    """Those that `TrainingArguments` turns into objects of its own when it is made."""
    value = {"accelerator_config": '{"split_batches": true}', "debug": "underflow_overflow", "fsdp": "full_shard"}
    found = read_settings([*BASE, f"--{name}", value.get(name, "true")])
    (tmp_path / "again.yaml").write_text(to_yaml(found))
    again = read_settings([str(tmp_path / "again.yaml")])
    assert getattr(again.training, name) == getattr(found.training, name) != getattr(MDLMConfig("out"), name)


def test_merged_entries_of_a_file_come_before_its_own(tmp_path):
    text = "lr_scheduler_kwargs: &more {seed: 1, data_seed: 2}\n<<: *more\nseed: 3\n"
    (tmp_path / "run.yaml").write_text(text)
    found = read_settings([str(tmp_path / "run.yaml"), *BASE])
    assert (found.training.seed, found.training.data_seed) == (3, 2)


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["--learning_rat", "1"], "knows no 'learning_rat': did you mean 'learning_rate'"),
        (["--max-lenght", "9"], "did you mean 'max_length'"),
        (["--Seed", "9"], "did you mean 'seed'"),
        (["--xqzvw", "9"], "knows no 'xqzvw'$"),
        (["--task", "stf"], "did you mean 'sft'"),
        (["--insert_eos", "true"], "knows no 'insert_eos'"),  # of the other task
        (["--learning_rate", "fast"], "learning_rate must be float, got 'fast'"),
        (["--seed", "1.5"], "seed must be int, got '1.5'"),
        (["--bf16", "1"], "bf16 must be bool, got '1'"),
        (["--seed", "1", "2"], r"seed must be int, got \['1', '2'\]"),
        (["--seed", "1", "--seed", "2"], "--seed must be given once"),
        (["--output_dir", ""], "output_dir must name"),
        (["--truncation", "left"], "right or filter"),
        (["--warmup_ratio", "2"], "warmup_ratio must lie in"),
    ],
)
def test_what_makes_no_sense(words, rule):
    base = [word for word in BASE if not (words[0] == "--output_dir" and word in ("--output_dir", "out"))]
    with pytest.raises(ValueError, match=rule):
        read_settings([*base, *words])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_words_of_a_file_are_words_where_a_field_takes_words(encoding, tmp_path):
    """YAML 1.1 reads no as false, 007 as 7, 12:30 as a number, 2026-01-01 as a date; and 1e-5 as a text."""
    base = "model_name_or_path: m\ndataset_args: 2026-01-01\noutput_dir: 12:30\nreport_to: none\n"
    words = "run_name: 007\neval_strategy: no\nsave_strategy: 'no'\noptim: sgd\nlogging_strategy: no\n"
    others = "bf16: off\nlora: yes\nmax_grad_norm: .inf\neval_steps:\nlr_scheduler_kwargs: {min_lr: 1e-6, x: no}\n"
    (tmp_path / "run.yaml").write_text(base + words + others + "label_names: [no, on]\n", encoding=encoding)
    found = read_settings([str(tmp_path / "run.yaml")])
    assert (found.data.dataset_args, found.training.output_dir) == ("2026-01-01", "12:30")
    assert found.training.run_name == "007" and found.training.label_names == ["no", "on"]
    assert [getattr(found.training, f"{name}_strategy") for name in ("eval", "save", "logging")] == ["no"] * 3
    assert found.training.bf16 is False and found.model.lora is True and found.training.eval_steps is None
    assert found.training.max_grad_norm == float("inf")
    assert found.training.lr_scheduler_kwargs == {"min_lr": 1e-6, "x": "no"}
    (tmp_path / "again.yaml").write_text(to_yaml(found))
    assert read_settings([str(tmp_path / "again.yaml")])[:3] == found[:3]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("- a\n- b\n", "got list"),
        ("a: [1", "must be YAML"),
        ("", "got nothing"),
        ("seed: x", r"run\.yaml: seed must be int, got 'x'"),
        ("max_lenght: 9", r"run\.yaml: the configuration knows no 'max_lenght': did you mean 'max_length'"),
        ("1: 2", "lines `name"),
        ("seed: 1\nbf16: true\nseed: 2", "must give seed once, got it twice"),
    ],
)
def test_a_file_that_holds_no_settings(text, rule, tmp_path):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ValueError, match=rule):
        read_settings([str(tmp_path / "run.yaml")])
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_settings([str(tmp_path / "other.yaml")])


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ("none", int | None, None),
        ("none", str, "none"),
        ("no", bool | str, False),
        (3, float, 3.0),
        ("3", str | int, 3),
        ("1_000", int, 1000),
        ('{"a": 1}', dict | str | None, {"a": 1}),
        ('["a", "b"]', list[str] | None, ["a", "b"]),
        ("a, b", list[str], ["a", "b"]),
        (["a"], list[str] | str, ["a"]),
        ("wandb", None | str | list[str], "wandb"),
    ],
)
def test_types(value, kind, expected):
    found = parse_value("name", value, kind)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize("value, kind", [(True, int), (1, bool), (1.5, int), ("{a", dict), ([1], str), (None, int)])
def test_values_of_another_type(value, kind):
    with pytest.raises(ValueError, match="name must be"):
        parse_value("name", value, kind)


@pytest.mark.parametrize("recipe", [SFT, PRETRAINING])
def test_every_setting_is_listed(recipe):
    told = help_text(recipe)
    assert all(name in told for name in known_settings(recipe))
    assert "--max_length int" in told and "--seed int" in told
