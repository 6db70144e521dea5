"""TrainingArguments: the defaults of dLLM 0.1, on every transformers, from code and from a command line."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch
import transformers
from transformers import HfArgumentParser

from dllm import configs
from dllm.configs import TrainingArguments
from dllm.core.trainers import MDLMConfig

IN_TRANSFORMERS = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}


@pytest.fixture(autouse=True)
def say_again():
    configs._warn_once.cache_clear()


def test_defaults():
    arguments = TrainingArguments(output_dir="out")
    expected = dict(
        overwrite_output_dir=True,
        seed=42,
        num_train_epochs=10,
        learning_rate=2e-5,
        lr_scheduler_type="cosine",
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        gradient_accumulation_steps=1,
        warmup_ratio=0.1,
        bf16=True,
        logging_steps=10,
        eval_on_start=False,
        eval_strategy="steps",
        eval_steps=0.1,
        save_steps=0.1,
        save_only_model=True,
    )
    assert {name: getattr(arguments, name) for name in expected} == expected
    default = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    assert default["report_to"] == "wandb"


def test_the_face_for_old_scripts():
    import dllm

    assert dllm.utils.TrainingArguments is dllm.utils.configs.TrainingArguments is TrainingArguments
    assert dllm.core.trainers.MDLMConfig is MDLMConfig
    assert "TrainingArguments" in dir(dllm.utils) and "trainers" in dir(dllm.core)
    for module in (dllm, dllm.core, dllm.utils):
        with pytest.raises(AttributeError, match="nothing_of_the_kind"):
            module.nothing_of_the_kind  # noqa: B018


@pytest.mark.parametrize("config", [TrainingArguments, MDLMConfig])
def test_a_command_line(config):
    words = "--output_dir out --warmup_ratio 0.2 --overwrite_output_dir false --report_to none --group_by_length true"
    (arguments,) = HfArgumentParser(config).parse_args_into_dataclasses(words.split())
    assert arguments.get_warmup_steps(100) == 20 and arguments.group_by_length
    assert arguments.report_to == []


def test_copies_keep_everything():
    arguments = MDLMConfig(output_dir="out", loss_norm_type="batch", warmup_ratio=0.3, report_to="none")
    again = dataclasses.replace(arguments, seed=5)
    assert (again.seed, again.loss_norm_type, again.get_warmup_steps(10)) == (5, "batch", 3)


@pytest.mark.parametrize(
    "options, steps",
    [
        ({}, 10),
        (dict(warmup_ratio=0.0), 0),
        (dict(warmup_ratio=1.0), 100),
        (dict(warmup_ratio=0.001), 1),
        (dict(warmup_steps=7), 7),
        (dict(warmup_steps=7, warmup_ratio=0.5), 7),
    ],
)
def test_warmup(options, steps):
    assert TrainingArguments(output_dir="out", report_to="none", **options).get_warmup_steps(100) == steps


@pytest.mark.parametrize("ratio", [-0.1, 1.5, float("nan")])
def test_warmup_outside(ratio):
    with pytest.raises(ValueError, match=r"warmup_ratio must lie in \[0, 1\]"):
        TrainingArguments(output_dir="out", warmup_ratio=ratio)


def test_unknown_fields():
    with pytest.raises(TypeError, match="block_sizes"):
        MDLMConfig(output_dir="out", block_sizes=3)


def test_dropped_fields_that_have_a_successor():
    arguments = TrainingArguments(
        output_dir="out", report_to="none", group_by_length=True, no_cuda=True, adafactor=True
    )
    if "group_by_length" not in IN_TRANSFORMERS:
        assert arguments.train_sampling_strategy == "group_by_length" and arguments.optim == "adafactor"
    assert arguments.use_cpu


# every field that transformers 4.57 has and 5 has not
DROPPED = """
    adafactor fp16_backend fp16_opt_level fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap group_by_length
    half_precision_backend include_inputs_for_metrics include_tokens_per_second jit_mode_eval logging_dir
    mp_parameters no_cuda overwrite_output_dir past_index per_gpu_eval_batch_size per_gpu_train_batch_size
    push_to_hub_model_id push_to_hub_organization push_to_hub_token ray_scope save_safetensors torchdynamo
    tpu_metrics_debug tpu_num_cores use_legacy_prediction_loop use_mps_device warmup_ratio
""".split()


def test_every_field_of_transformers_4_is_there():
    assert set(DROPPED) <= {field.name for field in dataclasses.fields(TrainingArguments)}


@pytest.mark.skipif("per_gpu_train_batch_size" in IN_TRANSFORMERS, reason="transformers 4 acts on it itself")
def test_a_successor_takes_the_value():
    arguments = TrainingArguments(
        output_dir="out", report_to="none", per_gpu_train_batch_size=3, push_to_hub_token="t", torchdynamo="eager"
    )
    assert arguments.per_device_train_batch_size == 3 and arguments.hub_token == "t"
    assert arguments.torch_compile_backend == "eager" and arguments.torch_compile


def test_dropped_fields_without_one_are_said_once(caplog):
    gone = sorted({"save_safetensors", "overwrite_output_dir", "logging_dir"} - IN_TRANSFORMERS)
    with caplog.at_level(logging.WARNING, "dllm"):
        for _ in range(2):
            TrainingArguments(
                output_dir="out", report_to="none", save_safetensors=False, overwrite_output_dir=False, logging_dir="l"
            )
    assert [caplog.text.count(f"{name} no longer acts") for name in gone] == [1] * len(gone)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "dllm"):
        TrainingArguments(output_dir="out", report_to="none")
    assert "no longer acts" not in caplog.text


@pytest.mark.parametrize("report_to, kept", [("wandb", []), (["tensorboard", "wandb"], ["tensorboard"])])
def test_wandb_is_missing(report_to, kept, monkeypatch, caplog):
    found = configs.importlib.util.find_spec
    monkeypatch.setattr(configs.importlib.util, "find_spec", lambda name: None if name == "wandb" else found(name))
    with caplog.at_level(logging.WARNING, "dllm"):
        for _ in range(2):
            assert TrainingArguments(output_dir="out", report_to=report_to).report_to == kept
    assert caplog.text.count("wandb is not installed") == 1


def test_wandb_is_there(monkeypatch):
    monkeypatch.setattr(configs.importlib.util, "find_spec", lambda name: object())
    assert configs._without_missing_wandb("wandb") == "wandb"


@pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine without an accelerator")
def test_without_an_accelerator_bfloat16_runs_on_the_cpu():
    arguments = TrainingArguments(output_dir="out", report_to="none")
    assert arguments.bf16 and arguments.use_cpu and arguments.device.type == "cpu"
