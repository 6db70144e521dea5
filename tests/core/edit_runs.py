"""Tiny runs of Edit Flows, their objective in plain PyTorch, and runs over two processes.

`python -m tests.core.edit_runs OUT RUNS` is one of two ranks: RUNS are keyword arguments of :func:`run` as a JSON list.
Writes OUT/rank{r}.pt, a dict for every run: gradients, logged entries, the metrics of an evaluation.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dllm.core.trainers import EditFlowCollator, EditFlowTrainer, EditFlowTrainerConfig
from dllm.models import EditFlowModel
from dllm_kernels.testing import assert_no_worse
from tests import launch
from tests.core.reference import gradients
from tests.core.runs import Gradients, config_of, samples_of
from tests.core.sharded import sharded
from tests.models import MASK_ID, PAD_ID, tiny

BOS = 4
TOKENS = SimpleNamespace(
    mask_token_id=MASK_ID,
    bos_token_id=BOS,
    pad_token_id=PAD_ID,
    eos_token_id=2,
    save_pretrained=lambda folder: None,  # transformers saves a collator's tokenizer beside the weights
)


def model_of(dropout: float = 0.0, **options: Any) -> EditFlowModel:
    options = dict.fromkeys(("embedding_dropout", "mlp_dropout", "attention_dropout"), dropout) | options
    backbone = tiny("modernbert", vocab_size=131, **options)
    backbone.config.mask_token_id = MASK_ID
    torch.manual_seed(1)
    return EditFlowModel.from_backbone(backbone)


def prompted(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Samples of which every second has a prompt; the others begin with BOS, or get it from the collator."""
    samples = [dict(input_ids=sample["input_ids"]) for sample in samples_of(count, seed)]
    return [s | dict(prompt_len=number % 2 * 2) for number, s in enumerate(samples)]


def trainer_of(folder: Any, model: nn.Module, samples: list, **options: Any) -> EditFlowTrainer:
    named = ("scheduler", "callbacks", "eval_dataset")
    further = {name: options.pop(name) for name in named if name in options}
    pairs = EditFlowCollator(TOKENS, options.pop("x0_sampler", "masks[length:5]"))
    collator = options.pop("data_collator", pairs)
    kind = options.pop("kind", EditFlowTrainer)
    config = config_of(folder, EditFlowTrainerConfig, **options)
    return kind(config, model=model, train_dataset=samples, data_collator=collator, **further)


def plain_loss(model: EditFlowModel, trainer: EditFlowTrainer, samples: list) -> Tensor:
    """Each sample's weighted loss in epoch 0, one at a time: from rates of all positions and logits of edits, [B]."""
    collate, found = trainer._make_collator(), []
    for sample in samples:
        batch = collate([sample])
        given = batch["corruption"]
        hidden = model.hidden_states(batch["input_ids"])[0]
        rates = F.softplus(model.rate_heads(hidden))
        inside = rates.sum()
        for kind, name in enumerate(("sub", "del", "ins")):
            rows = given[f"{name}_rows"]
            inside = inside - rates[rows, kind].log().sum()
            if name != "del":
                logits = getattr(model, f"{name}_logits")(hidden[rows])
                inside = inside + F.cross_entropy(logits, given[f"{name}_targets"], reduction="sum")
        tokens = given["maskable"][0] if trainer.args.loss_norm_type == "sequence" else 1
        found.append(given["weight"][0].to(inside.dtype) * inside / tokens)
    return torch.stack(found)


def truth(trainer, samples, dtype):
    """Each sample's loss, and the gradient of their mean."""
    model = copy.deepcopy(model_of()).to(dtype)
    loss = plain_loss(model, trainer, samples)
    loss.mean().backward()
    return loss.detach().double(), gradients(model)


def check_step(step, trainer, samples, dtype=torch.float32):
    """The gradient of a step of learning rate 0: its error is at most twice that of plain PyTorch in this dtype."""
    (_, exact), (_, plain) = (truth(trainer, samples, each) for each in (torch.float64, dtype))
    assert_no_worse({"gradient": step}, {"gradient": plain}, {"gradient": exact}, entries=False)


def one_kind_each(answer: list[int]) -> list[int]:
    """What an answer begins from: masks to substitute if its length is even, else nothing, so that all is inserted."""
    return [] if len(answer) % 2 else [MASK_ID] * len(answer)


def run(
    folder: str,
    *,
    size: int,
    accumulation: int,
    x0_sampler: str = "masks[length:5]",
    fsdp: bool = False,
    saved: str | None = None,
    resume: str | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> dict:
    """A run, and what it found. `saved` names the folder of the model after it, `resume` a checkpoint."""
    watch = Gradients()
    trainer = trainer_of(
        folder,
        model_of(dropout),
        prompted(8),
        kind=sharded(EditFlowTrainer) if fsdp else EditFlowTrainer,
        callbacks=[watch],
        eval_dataset=prompted(7, seed=5),
        x0_sampler=one_kind_each if x0_sampler == "one kind each" else x0_sampler,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        per_device_eval_batch_size=2,
        **dict(num_train_epochs=1, learning_rate=0.0) | options,
    )
    trainer.curves = ()  # drawing takes longer than the run
    trainer.train(resume_from_checkpoint=resume)
    if saved:
        trainer.save_model(saved)
    weights = sum(isinstance(weight, DTensor) for weight in trainer.model.parameters())
    found = dict(gradients=watch.seen, logs=trainer.state.log_history, sharded=weights)
    return found | dict(evaluation=trainer.evaluate())


if __name__ == "__main__":
    torch.set_num_threads(1)
    done = [run(sys.argv[1], **settings) for settings in json.loads(sys.argv[2])]
    torch.save(done, f"{sys.argv[1]}/rank{os.environ['RANK']}.pt")
    launch.leave()
