"""What is told of a run beforehand is what the run takes."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM

from dllm.configs import ModelArguments
from dllm.core.trainers import MDLMConfig
from dllm.estimates.training import estimate, kept_for_backward, optimizer_steps
from tests.core.runs import Loose, config_of, model_of, samples_of, trainer_of

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=131)
KINDS = {
    "bert": (BertForMaskedLM, BertConfig(**SIZE, pad_token_id=1)),
    "modernbert": (ModernBertForMaskedLM, ModernBertConfig(**SIZE, pad_token_id=1)),
}


def arguments(**options) -> MDLMConfig:
    return MDLMConfig(output_dir="out", report_to="none", **options)


def told(name: str, args: MDLMConfig, **model):
    chosen = ModelArguments(**dict(model_name_or_path="m", dtype="float32", attn_implementation="eager") | model)
    return estimate(KINDS[name][1], chosen, max_length=16, args=args)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_gradients_and_optimizer(name, dtype):
    kind, config = KINDS[name]
    found = told(name, arguments(per_device_train_batch_size=3), dtype=dtype)
    model = kind(config).to(getattr(torch, dtype))
    assert found.parameters == found.trained == model.num_parameters()
    optimizer = torch.optim.AdamW(model.parameters())
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    kept = [v for state in optimizer.state.values() for v in state.values() if v.dim()]  # step counts are numbers
    sizes = [sum(t.numel() * t.element_size() for t in tensors) for tensors in (list(model.parameters()), kept)]
    assert [found.memory.weights, found.memory.gradients, found.memory.optimizer] == [sizes[0], *sizes]


def test_the_head_needs_a_float32_gradient_with_several_chunks_only():
    """132 samples of 16 tokens are one chunk of bfloat16, 2048 + 2 x 32 rows; one sample more makes several."""
    one, several, single = (
        told("bert", arguments(per_device_train_batch_size=samples, bf16=half)).memory.head
        for samples, half in ((132, True), (133, True), (133, False))
    )
    assert one == 2 * 2112 * (131 + 3 * 32)
    assert several == 2 * 2048 * (131 + 3 * 32) + 4 * 131 * 32
    assert single == 4 * 2048 * (131 + 3 * 32)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("half", [False, True])
def test_activations_are_those_of_a_forward(name, half):
    found = told(name, arguments(per_device_train_batch_size=3, bf16=half))
    model = KINDS[name][0]._from_config(KINDS[name][1], attn_implementation="eager").train()
    assert found.memory.activations == kept_for_backward(model, 3, 16, torch.bfloat16 if half else None) > 0
    twice = told(name, arguments(per_device_train_batch_size=6, bf16=half)).memory.activations
    assert found.memory.activations < twice <= 2 * found.memory.activations


def test_attention_in_one_kernel_keeps_less():
    eager, fused = (told("modernbert", arguments(), attn_implementation=kind) for kind in ("eager", "sdpa"))
    assert fused.memory.activations < eager.memory.activations


def test_a_forward_that_asks_for_values_is_not_known(monkeypatch):
    def forward(self, input_ids, **_):
        return self.embeddings(input_ids[:, : int(input_ids.sum())])

    monkeypatch.setattr("transformers.BertModel.forward", forward)
    assert told("bert", arguments()).memory.activations is None


def test_activations_counted_by_hand():
    """Of a linear layer and a product with itself: the layer's input, and the product's factors, which are one."""

    class Body(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.layer = torch.nn.Embedding(10, 4), torch.nn.Linear(4, 8)
            self.base_model = self

        def forward(self, input_ids):
            hidden = self.layer(self.table(input_ids))
            return hidden * hidden

    tokens = 3 * 5
    # token ids for the embedding's backward, its output, the layer's output
    assert kept_for_backward(Body(), 3, 5) == tokens * (8 + 4 * 4 + 8 * 4)


def test_adapters_and_other_optimizers():
    pytest.importorskip("peft")
    whole, adapter = told("bert", arguments()), told("bert", arguments(ema_decay=0.9), lora=True, r=2)
    assert 0 < adapter.trained < whole.trained < adapter.parameters == whole.parameters + adapter.trained
    assert adapter.memory.gradients == 4 * adapter.trained
    assert adapter.memory.optimizer == 2 * 4 * adapter.trained + 4 * adapter.trained  # and the averaged weights
    small = told("bert", arguments(), lora=True, r=2, load_in_4bit=True)
    assert small.memory.weights < adapter.memory.weights and small.parameters == adapter.parameters
    assert told("bert", arguments(optim="sgd")).memory.optimizer == 0
    assert told("bert", arguments(optim="adafactor")).memory.optimizer is None


@pytest.mark.parametrize("size, accumulation, epochs", [(2, 1, 1), (3, 2, 2), (4, 3, 1.5), (16, 1, 2), (2, 1, 0.3)])
def test_steps_are_those_of_the_trainer(size, accumulation, epochs, tmp_path):
    options = dict(per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, num_train_epochs=epochs)
    trainer = trainer_of(tmp_path, model_of(Loose), samples_of(10), **options)
    trainer.train()
    assert trainer.state.max_steps == optimizer_steps(10, 1, config_of(tmp_path, **options))


def test_a_given_number_of_steps():
    assert optimizer_steps(10, 1, arguments(max_steps=7)) == 7
    assert optimizer_steps(10, 2, arguments(dataloader_drop_last=True, num_train_epochs=1)) == 1
