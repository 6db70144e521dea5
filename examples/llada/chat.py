"""Chat with LLaDA in the terminal, and watch its answers being denoised.

    python -u examples/llada/chat.py --model_name_or_path GSAI-ML/LLaDA-8B-Instruct

LLaDA-1.5 and the LLaDA-MoE models are options too: --model_name_or_path inclusionAI/LLaDA-MoE-7B-A1B-Instruct.

--chat_template False continues every line as it stands. Lines can be piped in and answers out; on a terminal /help
lists the commands. On a cluster:

    srun --gres=gpu:1 --pty python -u examples/llada/chat.py --model_name_or_path NAME

Every field of the classes below and of dllm.pipelines.llada.LLaDASamplerConfig is an option; --help lists them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from dllm.chat import script
from dllm.exits import exit_code
from dllm.pipelines import llada


@dataclass
class ScriptArguments(script.ChatArguments):
    model_name_or_path: str = "GSAI-ML/LLaDA-8B-Instruct"


@dataclass
class SamplerConfig(llada.LLaDASamplerConfig):
    max_new_tokens: int | None = 128
    steps: int = 128
    block_size: int | None = 32


if __name__ == "__main__":
    sys.exit(exit_code("chat.py", lambda: script.chat(llada.LLaDASampler, ScriptArguments, SamplerConfig)))
