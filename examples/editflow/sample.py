"""Sample from a model of Edit Flows: answer questions in one batch, and play the edits.

    python -u examples/editflow/sample.py --model_name_or_path models/EditFlow-ModernBERT-large-sft/checkpoint-final

--prompt "..." "..." asks something else, --chat_template False continues texts, --visualize False plays nothing, and
--gif steps.gif writes the steps to a file (pip install 'dllm[chat]'). --mask_length is what an answer begins with, as
the model was trained. On a cluster:

    srun --gres=gpu:1 python -u examples/editflow/sample.py --model_name_or_path NAME

Every field of the classes below and of dllm.pipelines.editflow.EditFlowSamplerConfig is an option; --help lists them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from dllm.chat import script
from dllm.exits import exit_code
from dllm.pipelines import editflow


@dataclass
class ScriptArguments(script.SampleArguments):
    model_name_or_path: str = "models/EditFlow-ModernBERT-large-sft/checkpoint-final"


@dataclass
class SamplerConfig(editflow.EditFlowSamplerConfig):
    mask_length: int = 64
    temperature: float = 0.7


if __name__ == "__main__":
    sys.exit(exit_code("sample.py", lambda: script.sample(editflow.EditFlowSampler, ScriptArguments, SamplerConfig)))
