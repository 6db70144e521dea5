"""Chat with DiffusionGemma in the terminal, and watch its answers being denoised.

    python -u examples/diffusiongemma/chat.py --model_name_or_path google/diffusiongemma-26B-A4B-it

An answer is written in canvases of 256 tokens. What is shown of a canvas are its likeliest tokens, none of which is
final before all stay the same. Settings that are not given are those of the model's generation_config;
--max_denoising_steps 16 and --entropy_bound 1 are faster. transformers 5.12 or later is needed.

--chat_template False continues every line as it stands. Lines can be piped in and answers out; on a terminal /help
lists the commands. On a cluster:

    srun --gres=gpu:1 --pty python -u examples/diffusiongemma/chat.py --model_name_or_path NAME

Every field of the classes below and of dllm.core.samplers.DiffusionGemmaSamplerConfig is an option; --help lists them.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass

from dllm.chat import script
from dllm.core.samplers import DiffusionGemmaSampler, DiffusionGemmaSamplerConfig
from dllm.exits import exit_code


@dataclass
class ScriptArguments(script.ChatArguments):
    model_name_or_path: str = "google/diffusiongemma-26B-A4B-it"


if __name__ == "__main__":
    run = functools.partial(script.chat, DiffusionGemmaSampler, ScriptArguments, DiffusionGemmaSamplerConfig)
    sys.exit(exit_code("chat.py", run))
