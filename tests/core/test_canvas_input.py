"""What DiffusionGemmaTrainer refuses: models, arguments and batches, before anything runs."""

from __future__ import annotations

import pytest
import torch

from dllm.core.trainers import DiffusionGemmaTrainer, DiffusionGemmaTrainerConfig
from tests.core.canvas_runs import END, GOOD, model_of, samples_of, trainer_of
from tests.core.runs import config_of, pad_right
from tests.diffusion_gemma_models import VOCAB, needs_diffusion_gemma

pytestmark = [needs_diffusion_gemma, pytest.mark.usefixtures("one_thread")]


class Sharded(DiffusionGemmaTrainer):
    """A trainer that is told to shard, as by `accelerate launch`."""

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        self.is_fsdp_enabled = True


BAD = [
    ([], "a batch must have at least one sample, got none"),
    ([GOOD, GOOD | {"labels": [-100] * 4}], "each sample must have an answer, .* got none in row 1"),
    ([GOOD | {"input_ids": [5, VOCAB - 1, 7, END]}], f"got the image token {VOCAB - 1} at row 0, position 1"),
    ([GOOD | {"input_ids": [5, VOCAB, 7, END]}], rf"must lie in the vocabulary \[0, {VOCAB}\), got {VOCAB} at row 0"),
    ([GOOD | {"labels": [-100, -100, 8, END]}], "labels must equal input_ids wherever they are not -100"),
]


@pytest.mark.parametrize("samples, message", BAD)
def test_bad_batches(samples, message, tmp_path):
    collator = trainer_of(tmp_path, model_of(), [GOOD])._collators["train"]
    if not samples:
        empty = torch.zeros(0, 4, dtype=torch.int64)
        collator.base = lambda _: {"input_ids": empty, "labels": empty}
    with pytest.raises(ValueError, match=message):
        collator(samples)


@pytest.mark.parametrize("entry, message", [("position_ids", "packed"), ("pixel_values", "images")])
def test_packed_samples_and_images(entry, message, tmp_path):
    collator = trainer_of(tmp_path, model_of(), [GOOD])._collators["train"]
    collator.base = lambda samples: pad_right(samples) | {entry: torch.zeros(1)}
    with pytest.raises(ValueError, match=message):
        collator([GOOD])


def test_bad_models_and_arguments(tmp_path, monkeypatch):
    with pytest.raises(TypeError, match=r"must be a DiffusionGemmaForBlockDiffusion \(transformers 5.12 or later\)"):
        trainer_of(tmp_path, torch.nn.Linear(1, 1), [GOOD])
    with pytest.raises(TypeError, match="model must be a DiffusionGemmaForBlockDiffusion, got None"):
        trainer_of(tmp_path, None, [GOOD])
    with pytest.raises(TypeError, match="args must be a DiffusionGemmaTrainerConfig, got int"):
        DiffusionGemmaTrainer(1, model=model_of())
    model = model_of()
    model.generation_config.eos_token_id = model.config.text_config.eos_token_id = None
    with pytest.raises(ValueError, match="must name an end-of-text token"):
        trainer_of(tmp_path, model, [GOOD])

    class Own(DiffusionGemmaTrainer):
        def compute_loss(self, *args, **options):
            return None

    with pytest.raises(ValueError, match="compute_loss must be this library's own, got another, of Own"):
        Own(config_of(tmp_path, DiffusionGemmaTrainerConfig), model=model_of())
    sharded = dict(model=model_of(), train_dataset=[GOOD])
    with pytest.raises(ValueError, match="each process must hold all weights, got FSDP: encoder and decoder share"):
        Sharded(config_of(tmp_path, DiffusionGemmaTrainerConfig), **sharded)
    old = model_of()
    monkeypatch.setattr(type(old.model.decoder), "forward", lambda self, canvas_ids=None: None)
    with pytest.raises(ValueError, match=r"transformers 5\.12 or later"):
        trainer_of(tmp_path, old, [GOOD])


ARGUMENTS = [
    (dict(loss_positions="some"), "loss_positions must be one of all, corrupted, got 'some'"),
    (dict(loss_weight_type="scheduler"), "loss_weight_type must be one of uniform, reweighted, got 'scheduler'"),
    (dict(encoder_loss_weight=-1.0), "encoder_loss_weight must be at least 0 and finite, got -1.0"),
    (dict(self_conditioning=1.5), r"self_conditioning must lie in \[0, 1\], got 1.5"),
    (dict(compile_body=True), "compile_body must be False for uniform diffusion, got True"),
    (dict(cuda_graph=True), "cuda_graph must be False for uniform diffusion, got True"),
    (dict(right_shift_logits=True), "right_shift_logits must be None for uniform diffusion, got True"),
    (dict(loss_weight_type="reweighted", time_max=1.0), "time_max must be below 1"),
    (dict(time_epsilon=0.5, time_max=0.4), "time_epsilon < time_max"),
]


@pytest.mark.parametrize("options, message", ARGUMENTS)
def test_bad_arguments(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        config_of(tmp_path, DiffusionGemmaTrainerConfig, **options)


def test_checkpoints_that_lose_the_context_are_refused(tmp_path, monkeypatch):
    model = model_of()
    monkeypatch.setattr(type(model.model.decoder.layers[0]), "_can_checkpoint_with_cache", False)
    with pytest.raises(ValueError, match=r"gradient checkpointing must keep the context of a canvas"):
        trainer_of(tmp_path, model, samples_of(3), gradient_checkpointing=True)
    model.gradient_checkpointing_enable()  # behind the trainer's back
    run = trainer_of(tmp_path, model, samples_of(3))
    with pytest.raises(ValueError, match=r"gradient checkpointing must keep the context of a canvas"):
        run.train()
    with pytest.raises(ValueError, match="use_reentrant False"):
        config_of(tmp_path, DiffusionGemmaTrainerConfig, gradient_checkpointing_kwargs={"use_reentrant": True})
