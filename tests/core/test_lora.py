"""LoRA through peft against full logits of the same adapted model: adapters in the layers, at the head, merged."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode

from dllm_kernels.testing import assert_sum_no_worse
from tests.core.reference import Objective
from tests.core.runs import VOCABULARY, Gradients, Loose, model_of, samples_of, trainer_of
from tests.core.test_mdlm import check, truth
from tests.models import kind_of

pytestmark = pytest.mark.usefixtures("one_thread")

RUN = dict(per_device_train_batch_size=4, gradient_accumulation_steps=2, num_train_epochs=1)
CHECKPOINTED = dict(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False})
LAYERS, WITH_HEAD = ["query", "value"], r".*\.(query|value|decoder)"


def adapted(target_modules, **options):
    """A model with adapters that already change it: peft's own begin at zero, where half of the gradients are zero.

    The head is not tied: an adapter merged into a tied one would change the embedding as well."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=target_modules, init_lora_weights=False, **options)
    return get_peft_model(model_of(tie_word_embeddings=False), config)


# "all-linear" leaves the head out; a regular expression and modules_to_save reach it
@pytest.mark.covering(1)
@pytest.mark.parametrize(
    "kind, target_modules, peft_options, options",
    [
        ("linear", LAYERS, {}, {}),
        ("linear", LAYERS, {}, CHECKPOINTED),
        ("linear", "all-linear", {}, {}),
        ("module", WITH_HEAD, {}, {}),
        ("module", LAYERS, dict(modules_to_save=["decoder"]), {}),
    ],
)
@pytest.mark.parametrize("norm", ["token", "sequence"])
def test_one_step(norm, kind, target_modules, peft_options, options, tmp_path):
    model, samples, objective, watch = (
        adapted(target_modules, **peft_options),
        samples_of(8),
        Objective(norm),
        Gradients(),
    )
    before = copy.deepcopy(model)
    trainer = trainer_of(tmp_path, model, samples, objective, callbacks=[watch], **RUN, **options)
    trainer.train()
    check(trainer, watch.seen, before, samples, objective)
    assert kind_of(model) == kind
    at_head = any(p.requires_grad for p in model.get_output_embeddings().parameters())
    assert at_head == (kind == "module")


class ProductsWithVocabulary(TorchDispatchMode):
    """Counts matrix products of which one side is as long as the vocabulary, by whichever library."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(word in function.name() for word in ("::mm", "::addmm", "::bmm", "linear")):
            self.count += any(VOCABULARY in tensor.shape for tensor in args if isinstance(tensor, torch.Tensor))
        return function(*args, **(kwargs or {}))


def test_a_frozen_head_costs_no_weight_gradient(tmp_path):
    """Logits, and the gradient of the hidden states; a trained head has a third product."""
    counts = []
    for model in (adapted(LAYERS), model_of(tie_word_embeddings=False)):
        trainer = trainer_of(tmp_path, model.train(), samples_of(4), per_device_train_batch_size=4)
        (batch,) = trainer.get_train_dataloader()
        trainer.compute_loss(model, batch)  # the look at the head
        with ProductsWithVocabulary() as products:
            trainer.compute_loss(model, batch).backward()
        counts.append(products.count)
    assert counts == [2, 3]


def test_an_adapter_is_saved_merged_and_reloaded(tmp_path):
    model, samples = adapted(WITH_HEAD), samples_of(8)
    trainer = trainer_of(tmp_path, model, samples, learning_rate=1e-2, max_steps=3, eval_dataset=samples)
    trainer.train()
    nll = trainer.evaluate()["eval_nll"]
    trainer.save_model(str(tmp_path / "adapter"))
    base = model_of(tie_word_embeddings=False)
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter")
    assert trainer_of(tmp_path, again, samples, eval_dataset=samples).evaluate()["eval_nll"] == nll

    again.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = Loose.from_pretrained(tmp_path / "merged")
    adapters = {name: p.detach().double() for name, p in model.named_parameters() if "lora" in name}
    for name, weight in base.named_parameters():
        low = f"base_model.model.{name.removesuffix('.weight')}.lora_{{}}.default.weight"
        change = torch.zeros_like(weight, dtype=torch.float64)
        if low.format("A") in adapters:
            change = 8 / 4 * adapters[low.format("B")] @ adapters[low.format("A")]
        error = (merged.get_parameter(name) - (weight.double() + change)).abs()
        # r = 4 products, their sum, the scale and the sum with the weight, each rounded
        assert bool((error <= 8 * 2**-24 * (weight.abs() + 8 / 4 * _size(adapters, low, change))).all()), name
    loss64, nll64, _ = truth(merged, samples, Objective(), torch.float64)
    loss32, nll32, _ = truth(merged, samples, Objective(), torch.float32)
    found = trainer_of(tmp_path, merged, samples, eval_dataset=samples).evaluate()
    assert_sum_no_worse(found["eval_loss"], loss32, loss64)
    assert_sum_no_worse(found["eval_nll"], nll32, nll64)


def _size(adapters, low, change):
    """|B| |A|, what the rounding of B A is measured by."""
    if low.format("A") not in adapters:
        return change
    return adapters[low.format("B")].abs() @ adapters[low.format("A")].abs()
