"""Chat with LLaDA in the terminal, and watch its answers being denoised.

    python -u examples/fastdllm/llada/chat.py --model_name_or_path GSAI-ML/LLaDA-8B-Instruct

This is Fast-dLLM: keys and values outside the block are kept, and a step commits all tokens above the threshold. It
is approximate; --use_cache dual is faster still.

--chat_template False continues every line as it stands. Lines can be piped in and answers out; on a terminal /help
lists the commands. On a cluster:

    srun --gres=gpu:1 --pty python -u examples/fastdllm/llada/chat.py --model_name_or_path NAME

Every field of the classes below and of dllm.pipelines.fastdllm.llada.FastdLLMLLaDASamplerConfig is an
option; --help lists them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from dllm.chat import script
from dllm.exits import exit_code
from dllm.pipelines.fastdllm import llada


@dataclass
class ScriptArguments(script.ChatArguments):
    model_name_or_path: str = "GSAI-ML/LLaDA-8B-Instruct"


@dataclass
class SamplerConfig(llada.FastdLLMLLaDASamplerConfig):
    max_new_tokens: int | None = 128
    block_size: int | None = 32
    use_cache: str | None = "prefix"
    threshold: float | None = 0.9


if __name__ == "__main__":
    sys.exit(exit_code("chat.py", lambda: script.chat(llada.FastdLLMLLaDASampler, ScriptArguments, SamplerConfig)))
