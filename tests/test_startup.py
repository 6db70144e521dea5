"""What scripts for dLLM 0.1 do before they train, under the names that they use."""

from __future__ import annotations

import logging
import random

import pytest
import torch
import transformers
from transformers import modeling_utils

import dllm
from dllm.configs import DataArguments, ModelArguments, TrainingArguments

NAMES = """
    disable_caching_allocator_warmup disable_dataset_caching disable_dataset_progress_bar_except_main
    get_default_logger init_device_context_manager initial_training_setup parse_spec pprint_main print_args
    print_args_main print_main resolve_with_base_env
""".split()


@pytest.mark.parametrize("name", NAMES)
def test_the_face_for_old_scripts(name):
    assert getattr(dllm.utils, name) is getattr(dllm.utils.utils, name)


@pytest.mark.parametrize("rank, shown", [("0", "once\n"), ("1", "")])
def test_one_process_speaks(rank, shown, monkeypatch, capsys):
    monkeypatch.setenv("RANK", rank)
    dllm.utils.print_main("once")
    assert capsys.readouterr().out == shown
    dllm.utils.pprint_main({"b": 1, "a": 2})
    assert capsys.readouterr().out == ("{'a': 2, 'b': 1}\n" if shown else "")
    dllm.utils.print_args_main(DataArguments(dataset_args="chats"))
    assert ("dataset_args: 'chats'" in capsys.readouterr().out) == bool(shown)


def test_arguments_are_shown_and_tokens_are_not(capsys):
    dllm.utils.print_args(TrainingArguments(output_dir="out", report_to="none", hub_token="hf_secret"))
    told = capsys.readouterr().out
    assert "learning_rate: 2e-05" in told and "hf_secret" not in told and "hub_token: '...'" in told
    for wrong in ({"a": 1}, TrainingArguments):
        with pytest.raises(TypeError, match="expected instances of dataclasses"):
            dllm.utils.print_args(wrong)


@pytest.mark.parametrize("rank, level", [("0", logging.INFO), ("3", logging.WARNING)])
def test_loggers(rank, level, monkeypatch):
    monkeypatch.setenv("RANK", rank)
    logger = dllm.utils.get_default_logger(f"startup.{rank}")
    assert logger.level == level and dllm.utils.get_default_logger(f"startup.{rank}").handlers == logger.handlers
    assert len(logger.handlers) == 1 and not logger.propagate


def test_setup_seeds_everything_and_leaves_caches_as_asked(monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(modeling_utils, "caching_allocator_warmup", print)
    arguments = TrainingArguments(output_dir="out", report_to="none", seed=5)
    drawn = []
    try:
        for off in (False, True):
            dllm.utils.initial_training_setup(
                ModelArguments(model_name_or_path="m"), DataArguments(disable_caching=off), arguments
            )
            assert datasets.is_caching_enabled() != off
            drawn.append((random.random(), float(torch.rand(()))))
    finally:
        datasets.enable_caching()
    assert drawn[0] == drawn[1] and modeling_utils.caching_allocator_warmup is not print


@pytest.mark.parametrize("rank, shown", [("0", True), ("1", False)])
def test_progress_bars(rank, shown, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("RANK", rank)
    try:
        dllm.utils.disable_dataset_progress_bar_except_main()
        assert datasets.are_progress_bars_disabled() != shown
    finally:
        datasets.enable_progress_bars()


def test_where_tensors_are_made(monkeypatch, device):
    with dllm.utils.init_device_context_manager():
        assert torch.empty(1).device.type == device.type
    with pytest.raises(KeyError), dllm.utils.init_device_context_manager("meta"):
        assert torch.empty(1).device.type == "meta"
        raise KeyError
    assert torch.empty(1).device.type == "cpu"
    monkeypatch.setattr(transformers.integrations, "is_deepspeed_zero3_enabled", lambda: True)
    with dllm.utils.init_device_context_manager("meta"):
        assert torch.empty(1).device.type == "cpu"


def test_without_an_accelerator_processes_train_together_in_float32_too(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert TrainingArguments(output_dir="out", report_to="none", bf16=False).use_cpu
