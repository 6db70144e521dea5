"""Tiny runs of diffu-GRPO: a model, a tokenizer of words "w7", a reward, and arguments that its tests share.

`python -m tests.core.rl.grpo_runs OUT RUNS` is one of two ranks: RUNS are keyword arguments of :func:`run`, or of
:func:`error_of`, as a JSON list. Writes OUT/rank{r}.pt, what each found.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dllm.core.rl import DiffuGRPOConfig, DiffuGRPOTrainer
from dllm.core.trainers.batches import CORRUPTION
from dllm.fast.training.loss import MaskedLoss
from tests import launch
from tests.core.rl import plain_rewards
from tests.core.rl.plain_rewards import spread
from tests.core.runs import Gradients, LooseModern, config_of, model_of, whole
from tests.core.sharded import sharded
from tests.models import MASK_ID, PAD_ID, favour

EOS = 2
WANTED = 9  # the token that the reward counts
ROWS = [{"prompt": text, "wanted": WANTED} for text in ("w5 w6", "w7 w8 w20 w21", "w30", "w40 w41 w42")]


class Words:
    """A text is words "w7", each a token."""

    mask_token_id, eos_token_id, pad_token_id = MASK_ID, EOS, PAD_ID

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [int(word[1:]) for word in text.split()]}

    def decode(self, tokens: Any, skip_special_tokens: bool = False) -> str:
        return " ".join(f"w{token}" for token in tokens if not (skip_special_tokens and token == EOS))

    def save_pretrained(self, folder: str) -> None:
        """A tokenizer of one line has nothing to save."""


RUN = dict(
    per_device_train_batch_size=8,
    num_generations=4,
    max_completion_length=6,
    steps=6,
    block_size=6,
    p_mask_prompt=0.5,
    max_steps=1,
    learning_rate=0.0,
)


def trainer_of(folder: Any, rewards: Any = spread, model: nn.Module | None = None, **options: Any) -> DiffuGRPOTrainer:
    given = {name: options.pop(name) for name in ("callbacks", "eval_dataset", "peft_config") if name in options}
    kind = options.pop("kind", DiffuGRPOTrainer)
    config = config_of(folder, DiffuGRPOConfig, **(RUN | options))
    model = model_of() if model is None else model
    return kind(config, model, rewards, train_dataset=ROWS, tokenizer=Words(), **given)


class PlainTrainer(DiffuGRPOTrainer):
    """Its log-probabilities are those of full logits in plain PyTorch, in the dtype of the model."""

    def _loss_of_nll(self, model, inputs, objective):
        corruption = inputs[CORRUPTION]
        logits = model(**self._model_inputs(model, inputs)).logits.flatten(0, 1)[corruption["rows"]]
        nll = F.cross_entropy(logits, corruption["targets"], reduction="none")
        return MaskedLoss(objective(nll), nll.detach().float())


def run(
    folder: str,
    *,
    fsdp: bool = False,
    adapter: bool = False,
    plain: str | None = None,
    reward: str = "spread",
    saved: str | None = None,
    resume: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """A run in this process, one rank or the only one, and what it found.

    `plain`: the dtype of a :class:`PlainTrainer`. `reward` names one of :mod:`~tests.core.rl.plain_rewards`, `saved`
    the folder of the model after the run, `resume` a checkpoint. Some completions end early. By DDP only the first rank
    is given weights.
    """
    model, watch = favour(model_of(LooseModern), EOS, 5.0), Gradients()
    if adapter:
        torch.manual_seed(0)
        options |= dict(peft_config=LoraConfig(r=2, target_modules=["Wqkv"], init_lora_weights=False))
    if os.environ.get("RANK") == "1" and not fsdp:
        model.load_state_dict({name: torch.full_like(weight, torch.nan) for name, weight in model.state_dict().items()})
    trainer = trainer_of(
        folder,
        getattr(plain_rewards, reward),
        model.to(getattr(torch, plain or "float32")),
        kind=sharded(DiffuGRPOTrainer) if fsdp else PlainTrainer if plain else DiffuGRPOTrainer,
        callbacks=[watch],
        eval_dataset=ROWS[:3],
        **options,
    )
    trainer.curves = ()  # drawing takes longer than the run
    trainer.train(resume_from_checkpoint=resume)
    if saved:
        trainer.save_model(saved)
    own_reference = trainer.reference is not None and trainer.reference.is_copy
    return dict(
        gradients=watch.seen,
        weights=flat(trainer.model),
        reference=flat(trainer.reference._copy) if own_reference else None,
        sharded=any(isinstance(weight, DTensor) for weight in trainer.model.parameters()),
        places=trainer._places(len(trainer._rollouts.prompts), trainer.args.process_index),
        rollouts=vars(trainer._rollouts),
        logs=trainer.state.log_history,
        evaluation=trainer.evaluate(),
    )


def error_of(folder: str, task: str, reward: str) -> str:
    """What a trainer says whose reward fails in its `task`, "train" or "evaluate"."""
    trainer = trainer_of(folder, getattr(plain_rewards, reward), eval_dataset=ROWS, per_device_eval_batch_size=2)
    try:
        getattr(trainer, task)()
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def flat(model: nn.Module) -> Tensor:
    """All weights of a model, sharded or not, float64 [n]."""
    return torch.cat([whole(weight.detach()).double().flatten() for weight in model.parameters()])


if __name__ == "__main__":
    torch.set_num_threads(1)
    gc.freeze()
    runs = json.loads(sys.argv[2])
    found = [(error_of if "task" in settings else run)(sys.argv[1], **settings) for settings in runs]
    torch.save(found, f"{sys.argv[1]}/rank{os.environ['RANK']}.pt")
    launch.leave()
