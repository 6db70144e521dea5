"""Runs whose body is compiled against eager ones; a cheap compiler stands in for inductor."""

from __future__ import annotations

import logging

import pytest
import torch
from accelerate import DistributedType
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from torch._dynamo.utils import counters
from transformers import HfArgumentParser

from dllm.core.rl import DiffuGRPOConfig
from dllm.core.trainers import BD3LMTrainer, DreamTrainer, MDLMConfig, MDLMTrainer
from dllm.core.trainers.base import compiled_steps
from dllm.fast.compiled import body
from tests.core import edit_runs
from tests.core.runs import (
    KillAt,
    Killed,
    Whole,
    config_of,
    losses,
    model_of,
    objective_of,
    samples_for,
    samples_of,
    trainer_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")

RUN = dict(per_device_train_batch_size=2, num_train_epochs=2, learning_rate=1e-3, max_grad_norm=0.5)


@pytest.fixture(autouse=True)
def cheap_compiler(monkeypatch):
    """The graph as it was traced, run eagerly. Counts start at 0."""
    monkeypatch.setattr(body, "_BACKEND", "eager")
    torch._dynamo.reset()
    counters.clear()


def samples():
    """Of one length, so that one graph serves all batches."""
    return samples_for(DreamTrainer, 6)


def run(folder, *callbacks, kind=MDLMTrainer, dropout=0.1, resume=None, adapt=lambda model: model, **options):
    torch.manual_seed(0)
    model = adapt(model_of(Whole, dropout, num_hidden_layers=1))
    given = dict(callbacks=list(callbacks), kind=kind) | RUN | options
    trainer = trainer_of(folder, model.train(), samples(), objective_of(kind, "token"), **given)
    try:
        trainer.train(resume_from_checkpoint=resume)
    except Killed:
        pass
    return trainer


def entries(trainer):
    told = ("loss", "nll", "grad_norm", "eval_nll", "eval_loss")
    return [{name: entry[name] for name in told if name in entry} for entry in trainer.state.log_history]


def with_adapter(model):
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(r=2, target_modules=["query", "value"], lora_dropout=0.1))


@pytest.mark.covering(1)
@pytest.mark.parametrize(
    "kind, options",
    [
        (MDLMTrainer, dict(gradient_accumulation_steps=2, eval_strategy="steps", eval_steps=2, ema_decay=0.9)),
        (MDLMTrainer, dict(bf16=True)),
        (MDLMTrainer, dict(adapt=with_adapter)),
        (BD3LMTrainer, dict(block_size=2)),
        (DreamTrainer, {}),
    ],
)
def test_a_run_equals_the_eager_one(kind, options, tmp_path):
    """Losses, gradients and evaluations are the same, dropout masks included."""
    if "eval_steps" in options:
        options = options | dict(eval_dataset=samples_of(3, seed=1))
    eager = run(tmp_path / "eager", kind=kind, compile_body=False, **options)
    assert eager.compiled is None and not counters["stats"]
    found = run(tmp_path / "compiled", kind=kind, compile_body=True, **options)
    assert found.compiled.why_not is None and found.compiled.graphs > 0
    for ours, theirs in zip(entries(found), entries(eager), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_lengths_share_graphs(tmp_path):
    """One graph for batches with padding and one for those without, whatever their lengths."""
    ragged = samples_of(25, longest=12)
    assert len({len(sample["input_ids"]) for sample in ragged}) > 6
    torch.manual_seed(0)
    trainer = trainer_of(tmp_path, model_of(Whole, 0.1, num_hidden_layers=1), ragged, compile_body=True, **RUN)
    trainer.train()
    assert trainer.state.global_step == 26 and counters["stats"]["unique_graphs"] <= 2


def test_edit_flows(tmp_path):
    found = {}
    for compile_body in (False, True):
        torch.manual_seed(0)
        model = edit_runs.model_of(dropout=0.1, num_hidden_layers=1).train()
        options = dict(compile_body=compile_body, num_train_epochs=1)
        trainer = edit_runs.trainer_of(tmp_path, model, edit_runs.prompted(6), **options)
        trainer.train()
        found[compile_body] = losses(trainer)
    assert found[True] == pytest.approx(found[False], rel=1e-5) and trainer.compiled.graphs > 0


def test_a_resumed_run_and_its_checkpoints(tmp_path):
    """The run continues bit for bit, and files have the names of an eager run."""
    saved = dict(save_strategy="steps", save_steps=2, save_only_model=False, compile_body=True)
    whole = run(tmp_path / "whole", **saved)
    run(tmp_path / "cut", KillAt(3), **saved)
    resumed = run(tmp_path / "cut", resume=True, **saved)
    assert resumed.compiled.graphs > 0
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    with safe_open(tmp_path / "cut" / "checkpoint-6" / "model.safetensors", "pt") as file:
        assert set(file.keys()) <= set(model_of(Whole, num_hidden_layers=1).state_dict())


class TestTransformersArguments:
    @pytest.mark.parametrize(
        "given", [{"torch_compile": True}, {"torch_compile_backend": "inductor"}, {"torch_compile_mode": "default"}]
    )
    def test_become_compile_body(self, given, tmp_path):
        config = config_of(tmp_path, **given)
        assert config.compile_body is True
        assert not config.torch_compile and config.torch_compile_backend is None and config.torch_compile_mode is None
        assert trainer_of(tmp_path, model_of(), samples_of(2), **given).accelerator.state.dynamo_plugin.backend == "NO"

    def test_on_a_command_line(self, tmp_path):
        words = ["--output_dir", str(tmp_path), "--report_to", "none", "--torch_compile", "--use_cpu"]
        (config,) = HfArgumentParser(MDLMConfig).parse_args_into_dataclasses(words)
        assert config.compile_body is True

    def test_that_cannot_be_kept(self, tmp_path):
        with pytest.raises(ValueError, match=r"torch_compile_backend must be inductor, .*got 'aot_eager'"):
            config_of(tmp_path, torch_compile_backend="aot_eager")
        with pytest.raises(ValueError, match=r"torch_compile_mode must be default, .*got 'max-autotune'"):
            config_of(tmp_path, torch_compile_mode="max-autotune")
        with pytest.raises(ValueError, match="exclude each other"):
            config_of(tmp_path, torch_compile=True, compile_body=False)

    def test_wrong_values(self, tmp_path):
        with pytest.raises(TypeError, match="compile_body must be None, True or False, got 'yes'"):
            config_of(tmp_path, compile_body="yes")
        with pytest.raises(ValueError, match="compile_body must be False for diffu-GRPO, got True"):
            config_of(tmp_path, DiffuGRPOConfig, compile_body=True)


class TestDecision:
    def test_a_short_run_is_eager(self, tmp_path, caplog):
        with caplog.at_level(logging.INFO, "dllm"):
            trainer = run(tmp_path)
        assert trainer.compiled is None and "compiling the body pays from" in caplog.text

    def test_a_long_run_is_compiled(self, tmp_path, monkeypatch):
        asked = []
        monkeypatch.setattr(compiled_steps, "why_it_does_not_pay", lambda model, *sizes: asked.append(sizes))
        trainer = run(tmp_path, gradient_accumulation_steps=2)
        longest = len(samples()[0]["input_ids"])
        assert trainer.compiled.graphs > 0 and asked == [(4 * 2 // 2, 2 * longest, torch.device("cpu"))]

    def test_what_stands_in_the_way(self, tmp_path, monkeypatch, caplog):
        trainer = trainer_of(tmp_path, model_of(), samples_of(2), compile_body=False)
        assert not list(compiled_steps.obstacles(trainer))
        trainer.accelerator.state.distributed_type = DistributedType.FSDP
        assert list(compiled_steps.obstacles(trainer)) == [("the whole model in each process", "FSDP")]
        trainer.accelerator.state.distributed_type = DistributedType.NO
        trainer.model.bert.compile()
        ((need, got),) = compiled_steps.obstacles(trainer)
        assert need == "a model that is not compiled" and "bert" in got
        with pytest.raises(ValueError, match="compile_body=True needs no gradient checkpointing"):
            trainer_of(tmp_path, model_of(), samples_of(2), compile_body=True, gradient_checkpointing=True)
        model = model_of()
        model.bert.compile()
        with pytest.raises(ValueError, match="compile_body=True needs a model that is not compiled, got"):
            trainer_of(tmp_path, model, samples_of(2), compile_body=True)

    def test_a_compiler_that_fails(self, tmp_path, monkeypatch, caplog):
        def fails(graph, inputs):
            raise NotImplementedError("no such operation")

        monkeypatch.setattr(body, "_BACKEND", fails)
        monkeypatch.setattr(torch._dynamo, "lookup_backend", lambda backend: backend)
        with pytest.raises(RuntimeError, match="cannot compile it: BackendCompilerFailed"):
            run(tmp_path, compile_body=True)
        eager = run(tmp_path, compile_body=False)
        monkeypatch.setattr(compiled_steps, "why_it_does_not_pay", lambda *sizes: None)
        found = run(tmp_path)
        assert entries(found) == entries(eager) and caplog.text.count("runs eagerly, because") == 1
