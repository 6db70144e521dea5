"""Chat with LLaDA 2.1 in the terminal, and watch its answers being denoised.

    python -u examples/llada21/chat.py --model_name_or_path inclusionAI/LLaDA2.1-mini

A step may also replace tokens of its block; --threshold 0.7 --editing_threshold 0.5 is faster.

--chat_template False continues every line as it stands. Lines can be piped in and answers out; on a terminal /help
lists the commands. On a cluster:

    srun --gres=gpu:1 --pty python -u examples/llada21/chat.py --model_name_or_path NAME

Every field of the classes below and of dllm.pipelines.llada21.LLaDA21SamplerConfig is an option; --help lists them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from dllm.chat import script
from dllm.exits import exit_code
from dllm.pipelines import llada21


@dataclass
class ScriptArguments(script.ChatArguments):
    model_name_or_path: str = "inclusionAI/LLaDA2.1-mini"


@dataclass
class SamplerConfig(llada21.LLaDA21SamplerConfig):
    max_new_tokens: int | None = 128


if __name__ == "__main__":
    sys.exit(exit_code("chat.py", lambda: script.chat(llada21.LLaDA21Sampler, ScriptArguments, SamplerConfig)))
