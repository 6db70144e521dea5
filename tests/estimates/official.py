"""Official configurations of four models, as config.json alone: no weights, no tokenizer."""

from __future__ import annotations

from pathlib import Path

import transformers

from dllm.configs import ModelArguments
from dllm.models import get_config

CONFIGS = Path(__file__).parent / "configs"
# the sums of the tensors of the published checkpoints
PARAMETERS = {
    "llada-8b": 8_015_581_184,
    "dream-7b": 7_615_616_512,
    "rnd1-30b-a3b": 30_532_122_624,
    "llada2-mini": 16_255_638_528,
}


def arguments(name: str, **options) -> ModelArguments:
    return ModelArguments(model_name_or_path=str(CONFIGS / name), **options)


def config_of(name: str) -> transformers.PretrainedConfig:
    return get_config(arguments(name))
