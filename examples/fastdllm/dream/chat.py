"""Chat with Dream in the terminal, and watch its answers being denoised.

    python -u examples/fastdllm/dream/chat.py --model_name_or_path Dream-org/Dream-v0-Instruct-7B

This is Fast-dLLM: keys and values outside the block are kept, and a step commits all tokens above the threshold. It
is approximate; --use_cache dual is faster still.

--chat_template False continues every line as it stands. Lines can be piped in and answers out; on a terminal /help
lists the commands. On a cluster:

    srun --gres=gpu:1 --pty python -u examples/fastdllm/dream/chat.py --model_name_or_path NAME

Every field of the classes below and of dllm.pipelines.fastdllm.dream.FastdLLMDreamSamplerConfig is an
option; --help lists them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from dllm.chat import script
from dllm.exits import exit_code
from dllm.pipelines.fastdllm import dream


@dataclass
class ScriptArguments(script.ChatArguments):
    model_name_or_path: str = "Dream-org/Dream-v0-Instruct-7B"


@dataclass
class SamplerConfig(dream.FastdLLMDreamSamplerConfig):
    max_new_tokens: int | None = 128
    temperature: float = 0.0
    use_cache: str | None = "prefix"
    threshold: float | None = 0.9


if __name__ == "__main__":
    sys.exit(exit_code("chat.py", lambda: script.chat(dream.FastdLLMDreamSampler, ScriptArguments, SamplerConfig)))
