"""Chat with an A2D model in the terminal, and watch its answers being denoised.

    python -u examples/a2d/bd3lm/chat.py --model_name_or_path dllm-hub/Qwen3-0.6B-diffusion-bd3lm-v0.1

Blocks are generated from left to right, and finished blocks stay in a KV cache.

--chat_template False continues every line as it stands. Lines can be piped in and answers out; on a terminal /help
lists the commands. On a cluster:

    srun --gres=gpu:1 --pty python -u examples/a2d/bd3lm/chat.py --model_name_or_path NAME

Every field of the classes below and of dllm.pipelines.a2d.BD3LMSamplerConfig is an option; --help lists them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from dllm.chat import script
from dllm.exits import exit_code
from dllm.pipelines import a2d


@dataclass
class ScriptArguments(script.ChatArguments):
    model_name_or_path: str = "dllm-hub/Qwen3-0.6B-diffusion-bd3lm-v0.1"


@dataclass
class SamplerConfig(a2d.BD3LMSamplerConfig):
    max_new_tokens: int | None = 128
    steps: int = 128


if __name__ == "__main__":
    sys.exit(exit_code("chat.py", lambda: script.chat(a2d.BD3LMSampler, ScriptArguments, SamplerConfig)))
