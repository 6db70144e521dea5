"""DiffusionGemmaTrainer against the objective in plain PyTorch, with transformers' own passes and full logits."""

from __future__ import annotations

import copy
import itertools
import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dllm.fast.uniform.model import DiffusionGemma
from dllm.fast.uniform.training import Canvases, Targets, canvas_loss
from dllm_kernels.testing import assert_no_worse, assert_sum_no_worse
from tests.core.canvas_reference import Example, Rules, exact, plain_loss
from tests.core.canvas_runs import (
    END,
    GOOD,
    ONE_STEP,
    NamedGradients,
    check,
    check_one_step,
    examples_of,
    gradients_of,
    model_of,
    samples_of,
    trainer_of,
)
from tests.core.runs import Gradients, losses, pad_right
from tests.diffusion_gemma_models import CANVAS, VOCAB, WINDOW, needs_diffusion_gemma, tiny_diffusion_gemma
from tests.launch import two_ranks

pytestmark = [needs_diffusion_gemma, pytest.mark.usefixtures("one_thread")]

GRID = [
    Rules(),
    Rules(twice=0.0, norm="sequence"),
    Rules(twice=1.0, encoder=0.5, norm="batch"),
    Rules(encoder=0.0, corrupted_only=True),
    Rules(reweighted=True, corrupted_only=True, norm="sequence", twice=1.0),
    Rules(low=0.9, twice=1.0, encoder=0.0, norm="batch"),
]


@pytest.mark.parametrize("rules", GRID)
def test_losses_and_gradients_of_a_step(rules, tmp_path):
    check_one_step(tmp_path, rules)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_and_several_experts(attention, tmp_path):
    model = model_of(num_experts=2, top_k_experts=1)
    model.set_attn_implementation(attention)
    check_one_step(tmp_path, Rules(twice=1.0), model, freeze_router=attention == "eager")


def test_the_grid_has_what_it_should():
    """Several canvases, contexts beyond the window, answers that end in their canvas and that were cut, two answers."""
    samples, rules = samples_of(6), Rules()
    examples = examples_of(samples, rules)
    assert max(example.begin for example in examples) > WINDOW
    assert any(len(example.losses) < CANVAS for example in examples)
    assert any(example.clean[-2:] == [END, END] and len(example.losses) == CANVAS for example in examples)
    assert {example.twice for example in examples} == {True, False}
    firsts = [next(p for p, label in enumerate(s["labels"]) if label != -100) for s in samples]
    assert any(example.begin != first for example, first in zip(examples, firsts, strict=True))
    assert len({len(sample["input_ids"]) for sample in samples}) > 1  # padding


def test_another_epoch_draws_anew(tmp_path):
    """Two epochs of one step: the second has draws of its own. The weights do not move."""
    samples, rules, model = samples_of(6), Rules(), model_of()
    run = trainer_of(tmp_path, model, samples, rules, learning_rate=0.0, **ONE_STEP | {"num_train_epochs": 2})
    run.train()
    wanted = [
        float(plain_loss(exact(model), examples_of(samples, rules, epoch), rules).loss.detach()) for epoch in (0, 1)
    ]
    assert losses(run) == pytest.approx(wanted, abs=2e-4)
    assert abs(wanted[0] - wanted[1]) > 0.01


def test_evaluation_has_the_loss_of_the_whole_data_set(tmp_path):
    for norm in ("token", "sequence"):
        rules, model, samples = Rules(norm=norm, encoder=0.5), model_of(), samples_of(7)
        run = trainer_of(tmp_path, model, samples, rules, eval_dataset=samples, per_device_eval_batch_size=3)
        found = plain_loss(exact(model), examples_of(samples, rules), rules)
        logs = run.evaluate()
        assert logs["eval_loss"] == pytest.approx(float(found.loss.detach()), rel=1e-5)
        assert logs["eval_nll"] == pytest.approx(float(found.nll), rel=1e-5)
        assert logs["eval_encoder_nll"] == pytest.approx(float(found.next_nll), rel=1e-5)


def test_the_signal_is_exactly_zero_when_off(tmp_path, monkeypatch):
    """In one batch the rows that are not conditioned are told zero, bit for bit, and the others are not."""
    model, seen = model_of(), []
    model.model.decoder.self_conditioning.register_forward_hook(lambda module, args, out: seen.append(args[1].detach()))
    samples = samples_of(6)
    trainer_of(tmp_path, model, samples, Rules(), max_steps=1, per_device_train_batch_size=6).train()
    first, second = seen  # the first pass runs the rows that need it alone
    twice = [example.twice for example in examples_of(samples, Rules())]
    assert first.shape[0] == sum(twice) and not first.any()
    assert sorted(bool(row.any()) for row in second) == sorted(twice)


def test_gradient_checkpointing_changes_nothing(tmp_path):
    steps = []
    for options in ({}, dict(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False})):
        watch, model, runs = Gradients(), model_of(), []
        model.model.decoder.layers[0].mlp.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        rules = Rules(twice=1.0)
        trainer_of(tmp_path, model, samples_of(6), rules, callbacks=[watch], **ONE_STEP, **options).train()
        steps.append((watch.seen[0], len(runs)))
    (plain, runs), (again, rerun) = steps
    assert torch.equal(plain, again) and (runs, rerun) == (4, 6)


def test_lora(tmp_path):
    """Adapters in the layers, whose gradients equal those of full logits; the base stays as it is."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    targets = ["q_proj", "o_proj", "gate_proj", "down_proj"]
    lora = LoraConfig(r=2, target_modules=targets, init_lora_weights=False, exclude_modules=".*vision.*")
    model, rules, samples, watch = get_peft_model(model_of(), lora), Rules(), samples_of(6), NamedGradients()
    before = copy.deepcopy(model)
    run = trainer_of(tmp_path, model, samples, rules, callbacks=[watch], **ONE_STEP)
    run.train()
    check(run, watch, before, samples, rules)
    after = dict(model.named_parameters())
    moved = {name for name, p in before.named_parameters() if not torch.equal(p, after[name])}
    assert moved and all("lora_" in name for name in moved)


class Widest(TorchDispatchMode):
    """Notes the most rows that a tensor of the vocabulary's width has had."""

    def __init__(self, vocab):
        super().__init__()
        self.vocab, self.rows = vocab, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.dim() and tensor.shape[-1] == self.vocab:
                self.rows = max(self.rows, tensor.numel() // self.vocab)
        return result


def test_logits_of_a_canvas_are_never_stored():
    """No tensor has the logits of all positions, nor of all of a canvas where it has more rows than a chunk."""
    vocab, rows, length = 777, 3, 200
    model = tiny_diffusion_gemma(vocab_size=vocab, max_position_embeddings=512)
    tokens, canvas = torch.randint(vocab, (rows, 300)), torch.randint(vocab, (rows, length))
    everywhere, every = torch.arange(rows * length), torch.arange(rows)
    texts = torch.arange(rows * 300)
    batch = Canvases(tokens=tokens, canvas=canvas, begin=every + 50, conditioned=every)
    targets = (Targets(at, at % vocab, torch.ones(len(at))) for at in (everywhere, texts))
    with Widest(vocab) as ours:
        canvas_loss(model, DiffusionGemma(model), batch, *targets).loss.backward()
    assert 0 < ours.rows <= 256 < rows * length
    with Widest(vocab) as full:
        model(input_ids=tokens, decoder_input_ids=canvas)
    assert full.rows == rows * length


@pytest.mark.parametrize("columns", [WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW])
def test_one_row_at_the_edge_of_the_window(columns):
    """A canvas behind a context as long as the window of sliding layers, one shorter, one longer, and far longer."""
    model, rules = model_of(), Rules(norm="batch")
    text = torch.randint(4, VOCAB - 8, (columns + CANVAS,), generator=torch.Generator().manual_seed(columns)).tolist()
    example = Example(text, columns, text[columns:], text[:CANVAS], list(range(CANVAS)), 1.0, True)
    position, nexts = torch.arange(CANVAS), torch.arange(len(text) - 1)
    found = canvas_loss(
        model,
        DiffusionGemma(model),
        Canvases(
            tokens=torch.tensor([text]),
            canvas=torch.tensor([text[:CANVAS]]),
            begin=torch.tensor([columns]),
            conditioned=torch.tensor([0]),
        ),
        Targets(position, torch.tensor(text[columns:]), torch.ones(CANVAS)),
        Targets(nexts, torch.tensor(text[1:]), torch.ones(len(text) - 1)),
    )
    wanted = plain_loss(exact(model), [example], rules)
    assert float(found.loss.detach()) == pytest.approx(float(wanted.loss.detach()), rel=1e-5)


def test_routers_and_images_are_frozen(tmp_path):
    for frozen, wanted in ((True, {"vision", "router"}), (False, {"vision"})):
        model = model_of()
        trainer_of(tmp_path, model, samples_of(3), freeze_router=frozen)
        names = [name for name, p in model.named_parameters() if not p.requires_grad]
        assert {"router" if "router" in name else "vision" for name in names} == wanted
        assert all("router" in name or "vision" in name for name in names)


def test_given_times_and_seeds(tmp_path):
    """`times` and `seeds` of the data replace the draws; the rest follows from the seeds."""
    collator = trainer_of(tmp_path, model_of(), [GOOD], Rules(twice=1.0))._collators["train"]
    collator.base = lambda samples: pad_right(samples) | {"times": torch.tensor([0.0, 1.0]), "seeds": torch.tensor(s)}
    canvases = {}
    for s in ([3, 4], [3, 5]):
        batch = collator([GOOD, GOOD])
        assert batch["decoder_input_ids"][0].tolist() == [7, END] + [END] * (CANVAS - 2)
        assert batch["corruption"]["conditioned"].tolist() == [0, 1]
        canvases[tuple(s)] = batch["decoder_input_ids"][1].tolist()
    assert canvases[3, 4] != canvases[3, 5]


def test_resumed_run_is_the_run(tmp_path):
    """A run of four steps, and one that is stopped after two and resumed, end in the same weights."""
    ended = []
    for name, stops in (("whole", (4,)), ("halves", (2, 4))):
        for steps in stops:
            model = model_of()
            options = dict(save_strategy="steps", save_steps=2, per_device_train_batch_size=2, max_steps=steps)
            run = trainer_of(tmp_path / name, model, samples_of(6), save_only_model=False, **options)
            run.train(resume_from_checkpoint=steps == 4 and name == "halves")
        ended.append(model)
    for (name, one), other in itertools.zip_longest(ended[0].named_parameters(), ended[1].parameters()):
        assert torch.equal(one, other), name


def test_padding_token_of_the_base_is_not_read(tmp_path):
    """What stands behind a text changes nothing."""
    results, tokens = [], torch.tensor([GOOD["input_ids"] + [9, 9, 9]])
    labels, real = torch.tensor([GOOD["labels"] + [-100] * 3]), torch.tensor([[1] * 4 + [0] * 3])
    for padded in (tokens, tokens.where(real == 1, 11), tokens[:, :4]):
        model, width = model_of(), padded.shape[1]
        run = trainer_of(tmp_path, model, [GOOD], Rules(twice=1.0))
        batch = {"input_ids": padded, "labels": labels[:, :width], "attention_mask": real[:, :width]}
        results.append(float(run.compute_loss(model, batch).detach()))
    assert results[0] == results[1] == pytest.approx(results[2], rel=1e-6)


def test_two_processes_are_one(tmp_path):
    """DDP: each process has half of the samples and the gradient of all, also where one has no row of a first pass."""
    options = dict(per_device_train_batch_size=1, gradient_accumulation_steps=3, num_train_epochs=1)
    runs = [dict(rules=dict(norm=norm, twice=0.3), options=options) for norm in ("token", "sequence")]
    ranks = two_ranks(tmp_path, "tests.core.canvas_rank", json.dumps(runs))
    for number, rules in enumerate(Rules(**run["rules"]) for run in runs):
        model, samples = model_of(), samples_of(6)
        names = {name for name, _ in model.named_parameters() if "router" not in name and "vision" not in name}
        (truth, gradient), (plain, rounded) = (gradients_of(m, samples, rules, names) for m in (exact(model), model))
        for rank in ranks:
            (step,), logs = rank[number]["gradients"], rank[number]["logs"][0]
            assert_no_worse({"gradient": step}, {"gradient": rounded}, {"gradient": gradient}, entries=False)
            assert logs["loss"] == pytest.approx(float(truth.loss.detach()), rel=2e-5, abs=1e-4)
            assert_sum_no_worse(logs["encoder_nll"], plain.next_nll, truth.next_nll)


@pytest.mark.parametrize("encoder", [1.0, 0.0])
def test_a_text_without_a_prompt(encoder, tmp_path):
    """The first canvas of a text that is all answer sees nothing before it."""
    results = []
    for first in (5, 6):  # of another text, whose canvas is put in the place of this one's
        model, tokens = model_of(), [first, 8, 9, END]
        run = trainer_of(tmp_path, model, [GOOD], Rules(encoder=encoder, twice=1.0))
        batch = run._collators["train"]([{"input_ids": tokens, "labels": tokens}])
        assert batch["corruption"]["begin"].tolist() == [0]
        batch["decoder_input_ids"] = torch.arange(CANVAS)[None]
        batch["corruption"]["targets"] = torch.arange(CANVAS)
        _, outputs = run.compute_loss(model, run._prepare_inputs(batch), return_outputs=True)
        results.append(outputs["nll"][0, 0])
    assert results[0].isfinite() and torch.equal(*results)
