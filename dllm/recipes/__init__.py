"""Complete training runs, from arguments to a trained model in a folder. The examples and `dllm train` use them."""

from dllm.recipes.dream import DREAM_SFT, DreamSFTData
from dllm.recipes.pretraining import PRETRAINING, PretrainingData, PretrainingModel
from dllm.recipes.run import Recipe, prepared, run
from dllm.recipes.sft import SFT, SFTData

RECIPES = {recipe.name: recipe for recipe in (SFT, DREAM_SFT, PRETRAINING)}

__all__ = [
    "DREAM_SFT",
    "PRETRAINING",
    "RECIPES",
    "SFT",
    "DreamSFTData",
    "PretrainingData",
    "PretrainingModel",
    "Recipe",
    "SFTData",
    "prepared",
    "run",
]
