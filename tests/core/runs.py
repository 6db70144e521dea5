"""Tiny runs of the trainer: models, data and arguments that every test of it shares."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import BertForMaskedLM, ModernBertForMaskedLM, TrainerCallback

from dllm.core.schedulers import make_alpha_scheduler
from dllm.core.trainers import BD3LMConfig, BD3LMTrainer, DreamTrainer, DreamTrainerConfig, MDLMConfig, MDLMTrainer
from tests.core.reference import Objective
from tests.models import FIRST_WORD, MASK_ID, PAD_ID, tiny

SEED = 11
PLAIN = Objective()
VOCABULARY = 131


class _Strict:
    """A forward without **kwargs and without labels."""

    def forward(self, input_ids, attention_mask=None):
        return super().forward(input_ids=input_ids, attention_mask=attention_mask)


class _Loose:
    """A forward with **kwargs, which transformers takes as the promise to normalise a loss."""

    def forward(self, input_ids, attention_mask=None, **kwargs):
        return super().forward(input_ids=input_ids, attention_mask=attention_mask)


class Strict(_Strict, BertForMaskedLM):
    family = "bert"


class Loose(_Loose, BertForMaskedLM):
    family = "bert"


class StrictModern(_Strict, ModernBertForMaskedLM):
    family = "modernbert"


class LooseModern(_Loose, ModernBertForMaskedLM):
    family = "modernbert"


class Whole(BertForMaskedLM):
    """A forward that takes positions too."""

    family = "bert"


# the arguments of each trainer, subclasses first
CONFIGS = {BD3LMTrainer: BD3LMConfig, DreamTrainer: DreamTrainerConfig, MDLMTrainer: MDLMConfig}
KINDS = {kind.__name__: kind for kind in (Strict, Loose, StrictModern, LooseModern, Whole)}


def model_of(kind: type[nn.Module] = Loose, dropout: float = 0.0, **options: Any) -> nn.Module:
    if kind.family == "bert":
        options |= dict(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    model = tiny(kind.family, vocab_size=VOCABULARY, **options)
    model.__class__ = kind
    model.config.mask_token_id = MASK_ID
    return model


def samples_of(count: int, seed: int = 0, longest: int = 12) -> list[dict[str, list[int]]]:
    """Different lengths; a prompt without labels before an answer with them."""
    draw = random.Random(seed)
    samples = []
    for _ in range(count):
        length = draw.randint(3, longest)
        tokens = [draw.randrange(FIRST_WORD, VOCABULARY) for _ in range(length)]
        prompt = draw.randint(0, length - 2)
        samples.append({"input_ids": tokens, "labels": [-100] * prompt + tokens[prompt:]})
    return samples


def samples_for(kind: type[MDLMTrainer], count: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Samples of a trainer. Those of Dream have one length, as padding is visible to its weights, and prompts."""
    if not issubclass(kind, DreamTrainer):
        return samples_of(count, seed)
    samples = [sample for sample in samples_of(60 * count, seed) if len(sample["input_ids"]) == 9]
    return [sample for sample in samples if sample["labels"][0] == -100][:count]


def objective_of(kind: type[MDLMTrainer], norm: str) -> Objective:
    """How a trainer trains unless told otherwise."""
    own = dict(weight="cart[geo_p:0.3]", right_shift=True) if issubclass(kind, DreamTrainer) else {}
    return Objective(norm=norm, **own)


def pad_right(samples: list[dict[str, list[int]]], width: int | None = None) -> dict[str, torch.Tensor]:
    """A collator: padding on the right with an attention mask."""
    width = width or max(len(sample["input_ids"]) for sample in samples)

    def padded(name: str, filler: int) -> torch.Tensor:
        return torch.tensor([list(sample[name]) + [filler] * (width - len(sample[name])) for sample in samples])

    ids, labels = padded("input_ids", PAD_ID), padded("labels", -100)
    real = [[1] * len(sample["input_ids"]) + [0] * (width - len(sample["input_ids"])) for sample in samples]
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.tensor(real)}


def config_of(folder: Any, kind: type[MDLMConfig] = MDLMConfig, **options: Any) -> MDLMConfig:
    quiet = dict(report_to="none", disable_tqdm=True, eval_strategy="no", save_strategy="no", logging_steps=1)
    exact = dict(use_cpu=True, bf16=False, max_grad_norm=0.0, warmup_ratio=0.0, lr_scheduler_type="constant")
    return kind(**(dict(output_dir=str(folder), seed=SEED) | quiet | exact | options))


def trainer_of(
    folder: Any,
    model: nn.Module,
    samples: list,
    objective: Objective = PLAIN,
    kind: type[MDLMTrainer] = MDLMTrainer,
    **options: Any,
) -> MDLMTrainer:
    callbacks, evaluated = options.pop("callbacks", None), options.pop("eval_dataset", None)
    config = config_of(
        folder,
        next(config for trainer, config in CONFIGS.items() if issubclass(kind, trainer)),
        loss_norm_type=objective.norm,
        loss_weight_type=objective.weight,
        right_shift_logits=objective.right_shift,
        time_epsilon=objective.low,
        time_max=objective.high,
        **options,
    )
    return kind(
        config,
        make_alpha_scheduler(objective.alpha),
        model=model,
        train_dataset=samples,
        eval_dataset=evaluated,
        data_collator=pad_right,
        callbacks=callbacks,
    )


class Gradients(TrainerCallback):
    """Keeps the gradients of every optimizer step, gathered where ranks share a weight."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        grads = [whole(p.grad).double().flatten() for p in model.parameters() if p.grad is not None]
        self.seen.append(torch.cat(grads))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def losses(trainer: MDLMTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


class Killed(Exception):
    pass


class KillAt(TrainerCallback):
    """Ends the process, as it were, in the middle of a step."""

    def __init__(self, step):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed
