"""Chat with a model of Edit Flows in the terminal, and watch its answers grow, shrink and change.

    python -u examples/editflow/chat.py --model_name_or_path models/EditFlow-ModernBERT-large-sft/checkpoint-final

--chat_template False continues every line as it stands. Lines can be piped in and answers out; on a terminal /help
lists commands. --mask_length is what an answer begins with, as the model was trained.

Every field of the classes below and of dllm.pipelines.editflow.EditFlowSamplerConfig is an option; --help lists them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from dllm.chat import script
from dllm.exits import exit_code
from dllm.pipelines import editflow


@dataclass
class ScriptArguments(script.ChatArguments):
    model_name_or_path: str = "models/EditFlow-ModernBERT-large-sft/checkpoint-final"


@dataclass
class SamplerConfig(editflow.EditFlowSamplerConfig):
    mask_length: int = 64
    temperature: float = 0.7


if __name__ == "__main__":
    sys.exit(exit_code("chat.py", lambda: script.chat(editflow.EditFlowSampler, ScriptArguments, SamplerConfig)))
