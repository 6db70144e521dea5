"""Scripts as people write them, with the patch and without: Trainer, loops, accelerate, peft, torch.compile."""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import dllm.fast
from dllm.fast import patch
from dllm.fast.deferred import DeferredLogits, tensor
from tests.fast.test_masked_loss import model_of
from tests.models import make_prompt

pytestmark = pytest.mark.usefixtures("one_thread")
FOLDER = Path(__file__).parents[2] / "examples" / "dropin"
BATCH, LENGTH = 3, 9
IDS = make_prompt(model_of("modernbert"), BATCH, LENGTH)
MASK = torch.rand(BATCH, LENGTH, generator=torch.Generator().manual_seed(2)) < 0.4


@pytest.fixture(autouse=True)
def said(caplog):
    """What is said once is said once per test."""
    tensor.log_once.cache_clear()
    caplog.set_level(logging.WARNING, "dllm.fast")
    return lambda: [record.message for record in caplog.records if record.name == "dllm.fast"]


@pytest.fixture
def script(monkeypatch):
    """Run a script of examples/dropin, patched or with that line left out."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "tiny", raising=False)

    def run(name: str, patched: bool, *argv: str):
        monkeypatch.delitem(sys.modules, name, raising=False)
        module = importlib.import_module(name)
        models = []
        with monkeypatch.context() as without:
            without.setattr(dllm.fast, "patch", lambda model: models.append(model) or (patched and patch(model)))
            result = module.main(list(argv))
        (model,) = models
        return result, model

    return run


def test_every_script_has_one_line_of_ours():
    scripts = [path for path in FOLDER.glob("*.py") if path.name != "tiny.py"]
    assert len(scripts) == 5
    for path in scripts:
        code = path.read_text()
        assert (
            code.count("dllm.fast.patch(model)  # the one line") == 1 and f"python examples/dropin/{path.name}" in code
        )


@pytest.mark.parametrize("name", ["trainer_compute_loss", "llada_loop", "accelerate_loop", "peft_lora"])
def test_training_scripts(name, script, said):
    """The same losses step after step, so the same gradients; and nothing asked for real logits."""
    if name == "peft_lora":
        pytest.importorskip("peft")
    expected, _ = script(name, False, "--steps", "4")
    found, model = script(name, True, "--steps", "4")
    assert len(found) == len(expected) == 4 and found == pytest.approx(expected, rel=1e-4)
    assert len({round(loss, 3) for loss in found}) > 1
    assert isinstance(model(IDS).logits, DeferredLogits) and said() == []


def test_sampling_script(script, said, monkeypatch):
    expected, _ = script("model_card_generate", False)
    found, _ = script("model_card_generate", True)
    assert found == expected and said() == []


def test_sampling_script_with_noise(script, said):
    import torch

    script("model_card_generate", True)
    card = sys.modules["model_card_generate"]
    model, prompt = model_of("modernbert").eval(), IDS[:, :4]
    torch.manual_seed(5)
    expected = card.generate(model, prompt, 3, temperature=0.7)
    patch(model)
    torch.manual_seed(5)
    assert card.generate(model, prompt, 3, temperature=0.7).equal(expected)
    assert any("rand_like" in line for line in said())


def test_trainer_evaluates(tmp_path, said):
    """Trainer detaches, gathers and turns into numpy what evaluation returns; or asks a metric first."""
    from transformers import Trainer, TrainingArguments

    rows = [{"input_ids": row, "labels": row} for row in IDS]
    settings = TrainingArguments(
        tmp_path, per_device_eval_batch_size=2, report_to=[], eval_do_concat_batches=True, disable_tqdm=True
    )

    def accuracy(prediction):
        tokens = prediction.predictions
        tokens = tokens.argmax(-1) if tokens.ndim == 3 else tokens
        return {"accuracy": float((tokens == prediction.label_ids).mean())}

    for metric in (None, lambda logits, labels: logits.argmax(-1)):
        found = []
        for patched in (False, True):
            model = model_of("modernbert").eval()
            if patched:
                patch(model)
            trainer = Trainer(
                model,
                settings,
                eval_dataset=rows,
                compute_metrics=accuracy,
                preprocess_logits_for_metrics=metric,
            )
            found.append(trainer.predict(rows))
        plain, ours = found
        assert (plain.predictions == ours.predictions).all()
        assert ours.metrics["test_accuracy"] == plain.metrics["test_accuracy"]
        assert ours.metrics["test_loss"] == pytest.approx(plain.metrics["test_loss"], rel=1e-5)
    assert len(said()) == 1 and "atleast_1d" in said()[0]  # on the way to numpy


def test_trainer_accumulates_and_saves(tmp_path, said):
    from transformers import AutoModelForMaskedLM, Trainer, TrainingArguments

    rows = [{"input_ids": row, "labels": row} for row in IDS]
    finals = []
    for patched in (False, True):
        model = model_of("modernbert")
        if patched:
            patch(model)
        options = dict(per_device_train_batch_size=1, gradient_accumulation_steps=3, max_steps=2, learning_rate=1e-3)
        settings = TrainingArguments(tmp_path / str(patched), report_to=[], disable_tqdm=True, bf16=False, **options)
        trainer = Trainer(model, settings, train_dataset=rows)
        trainer.train()
        trainer.save_model(tmp_path / f"{patched}-model")
        finals.append(AutoModelForMaskedLM.from_pretrained(tmp_path / f"{patched}-model").state_dict())
    plain, ours = finals
    assert plain.keys() == ours.keys() and said() == []
    # Adam divides a gradient by its size: where that is rounding alone, two steps differ by what a step is
    assert all(float((ours[name] - plain[name]).abs().mean()) < 1e-4 for name in plain)


def test_lora():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["Wqkv"])
    model = peft.get_peft_model(model_of("modernbert"), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))

    def gradients():
        model.zero_grad()
        F.cross_entropy(model(input_ids=IDS).logits[MASK], IDS[MASK]).backward()
        return torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.requires_grad])

    expected = gradients()
    with patch(model):
        assert isinstance(model(input_ids=IDS).logits, DeferredLogits)
        found = gradients()
        assert model.get_base_model().get_output_embeddings().weight.grad is None
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())


def test_lora_on_the_head(said):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["Wqkv", "decoder"])
    with pytest.raises(ValueError, match=r"must be an nn.Linear, got peft.*Linear"):
        patch(peft.get_peft_model(model_of("modernbert", tie_word_embeddings=False), config))
    model = model_of("modernbert", tie_word_embeddings=False)
    expected = model(IDS).logits
    patch(model)
    after = peft.get_peft_model(model, config)  # an adapter that comes later asks for real logits to add to
    assert after(input_ids=IDS).logits.equal(expected) and len(said()) == 1 and "add" in said()[0]


@pytest.mark.covering(1)
@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("first", ["patch", "compile"])
def test_compiled_models(first, labels, said):
    def loss(model):
        if labels:
            return model(IDS, labels=IDS.masked_fill(~MASK, -100)).loss
        return F.cross_entropy(model(IDS).logits[MASK], IDS[MASK])

    def gradients(model):
        loss(model).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    expected = gradients(model_of("modernbert"))
    torch._dynamo.reset()
    model = model_of("modernbert")
    if first == "patch":
        patch(model)
    compiled = torch.compile(model, backend="aot_eager")
    if first == "compile":
        loss(compiled)
        patch(compiled)
    found = gradients(compiled)
    assert isinstance(compiled(IDS).logits, DeferredLogits) and said() == []
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())


def test_a_compiled_loss():
    model = model_of("modernbert")

    @torch.compile(backend="aot_eager")
    def loss(logits):
        return (F.cross_entropy(logits.transpose(1, 2), IDS, reduction="none") * MASK).sum()

    expected = loss(model(IDS).logits)
    (plain,) = torch.autograd.grad(expected, model.get_output_embeddings().weight)
    with patch(model):
        found = loss(model(IDS).logits)
        (ours,) = torch.autograd.grad(found, model.get_output_embeddings().weight)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float((ours - plain).norm()) <= 1e-5 * float(plain.norm())
