"""Tiny runs of diffu-GRPO: a model, a tokenizer of words "w7", a reward, and arguments that its tests share."""

from __future__ import annotations

from typing import Any

from torch import nn

from dllm.core.rl import DiffuGRPOConfig, DiffuGRPOTrainer
from tests.core.rl.plain_rewards import spread
from tests.core.runs import config_of, model_of
from tests.models import MASK_ID, PAD_ID

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
    config = config_of(folder, DiffuGRPOConfig, **(RUN | options))
    model = model_of() if model is None else model
    return DiffuGRPOTrainer(config, model, rewards, train_dataset=ROWS, tokenizer=Words(), **given)
