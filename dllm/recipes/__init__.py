"""Complete training runs, from arguments to a trained model in a folder. The examples and `dllm train` use them."""

from dllm.recipes.diffusion_gemma import DIFFUSION_GEMMA_SFT, DiffusionGemmaModelArguments
from dllm.recipes.dream import DREAM_SFT, DreamSFTData
from dllm.recipes.editflow import (
    EDIT_FLOW_PRETRAINING,
    EDIT_FLOW_SFT,
    EditFlowPretrainingData,
    EditFlowSFTData,
)
from dllm.recipes.grpo import GRPO, PromptData
from dllm.recipes.pretraining import PRETRAINING, PretrainingData, PretrainingModel
from dllm.recipes.run import Recipe, prepared, run
from dllm.recipes.sft import SFT, SFTData

_FINE_TUNING = (SFT, DREAM_SFT, DIFFUSION_GEMMA_SFT, EDIT_FLOW_SFT)
RECIPES = {recipe.name: recipe for recipe in (*_FINE_TUNING, PRETRAINING, EDIT_FLOW_PRETRAINING, GRPO)}

__all__ = [
    "DIFFUSION_GEMMA_SFT",
    "DREAM_SFT",
    "EDIT_FLOW_PRETRAINING",
    "EDIT_FLOW_SFT",
    "GRPO",
    "PRETRAINING",
    "RECIPES",
    "SFT",
    "DiffusionGemmaModelArguments",
    "DreamSFTData",
    "EditFlowPretrainingData",
    "EditFlowSFTData",
    "PretrainingData",
    "PretrainingModel",
    "PromptData",
    "Recipe",
    "SFTData",
    "prepared",
    "run",
]
