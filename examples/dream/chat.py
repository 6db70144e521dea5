"""Chat with Dream in the terminal, and watch its answers being denoised.

    python -u examples/dream/chat.py --model_name_or_path Dream-org/Dream-v0-Instruct-7B

The settings are those that its authors published; --alg origin, maskgit_plus and topk_margin commit other tokens.

--chat_template False continues every line as it stands. Lines can be piped in and answers out; on a terminal /help
lists the commands. On a cluster:

    srun --gres=gpu:1 --pty python -u examples/dream/chat.py --model_name_or_path NAME

Every field of the classes below and of dllm.pipelines.dream.DreamSamplerConfig is an option; --help lists them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from dllm.chat import script
from dllm.exits import exit_code
from dllm.pipelines import dream


@dataclass
class ScriptArguments(script.ChatArguments):
    model_name_or_path: str = "Dream-org/Dream-v0-Instruct-7B"


@dataclass
class SamplerConfig(dream.DreamSamplerConfig):
    max_new_tokens: int | None = 128
    steps: int = 128
    temperature: float = 0.2
    top_p: float | None = 0.95
    top_k: int | None = None
    alg: str = "entropy"
    alg_temp: float | None = 0.0
    schedule: str = "time"


if __name__ == "__main__":
    sys.exit(exit_code("chat.py", lambda: script.chat(dream.DreamSampler, ScriptArguments, SamplerConfig)))
