"""Edit Flows: models on five backbones, their trainer and their sampler.

`python -m dllm.pipelines.editflow.convert` makes a model of a masked language model's checkpoint.
"""

from dllm.core.samplers import EditFlowSampler, EditFlowSamplerConfig
from dllm.core.trainers import EditFlowTrainer
from dllm.models.editflow import class_of
from dllm.pipelines.editflow import utils

EditFlowModernBertModel = class_of("modernbert")
EditFlowModernBertConfig = EditFlowModernBertModel.config_class
EditFlowLLaDAModel = class_of("llada")
EditFlowLLaDAConfig = EditFlowLLaDAModel.config_class
EditFlowDreamModel = class_of("dream")
EditFlowDreamConfig = EditFlowDreamModel.config_class
EditFlowQwen2Model = class_of("qwen2")
EditFlowQwen2Config = EditFlowQwen2Model.config_class
EditFlowQwen3Model = class_of("qwen3")
EditFlowQwen3Config = EditFlowQwen3Model.config_class

__all__ = [
    "EditFlowDreamConfig",
    "EditFlowDreamModel",
    "EditFlowLLaDAConfig",
    "EditFlowLLaDAModel",
    "EditFlowModernBertConfig",
    "EditFlowModernBertModel",
    "EditFlowQwen2Config",
    "EditFlowQwen2Model",
    "EditFlowQwen3Config",
    "EditFlowQwen3Model",
    "EditFlowSampler",
    "EditFlowSamplerConfig",
    "EditFlowTrainer",
    "utils",
]
