"""Chat with LLaDA 2.0 in the terminal, and watch its answers being denoised.

    python -u examples/llada2/chat.py --model_name_or_path inclusionAI/LLaDA2.0-mini

Finished blocks stay in a KV cache; --threshold 0.8 is faster.

--chat_template False continues every line as it stands. Lines can be piped in and answers out; on a terminal /help
lists the commands. On a cluster:

    srun --gres=gpu:1 --pty python -u examples/llada2/chat.py --model_name_or_path NAME

Every field of the classes below and of dllm.pipelines.llada2.LLaDA2SamplerConfig is an option; --help lists them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from dllm.chat import script
from dllm.exits import exit_code
from dllm.pipelines import llada2


@dataclass
class ScriptArguments(script.ChatArguments):
    model_name_or_path: str = "inclusionAI/LLaDA2.0-mini"


@dataclass
class SamplerConfig(llada2.LLaDA2SamplerConfig):
    max_new_tokens: int | None = 128


if __name__ == "__main__":
    sys.exit(exit_code("chat.py", lambda: script.chat(llada2.LLaDA2Sampler, ScriptArguments, SamplerConfig)))
