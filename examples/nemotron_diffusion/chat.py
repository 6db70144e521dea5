"""Chat with Nemotron-Labs-Diffusion in the terminal, and watch its answers being denoised.

    python -u examples/nemotron_diffusion/chat.py --trust_remote_code True

The model runs by code that comes with it, which needs --trust_remote_code True: read it before. Blocks have the 32
tokens that the model was trained with; --threshold 0.8 is faster, --temperature 0.7 draws.

--chat_template False continues every line as it stands. Lines can be piped in and answers out; on a terminal /help
lists the commands. On a cluster:

    srun --gres=gpu:1 --pty python -u examples/nemotron_diffusion/chat.py --trust_remote_code True

Every field of the classes below and of dllm.pipelines.nemotron_diffusion.NemotronDiffusionSamplerConfig is an option;
--help lists them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from dllm.chat import script
from dllm.exits import exit_code
from dllm.pipelines import nemotron_diffusion


@dataclass
class ScriptArguments(script.ChatArguments):
    model_name_or_path: str = "nvidia/Nemotron-Labs-Diffusion-8B"


@dataclass
class SamplerConfig(nemotron_diffusion.NemotronDiffusionSamplerConfig):
    max_new_tokens: int | None = 128
    block_size: int | None = 32
    max_thinking_tokens: int | None = None


if __name__ == "__main__":
    kind = nemotron_diffusion.NemotronDiffusionSampler
    sys.exit(exit_code("chat.py", lambda: script.chat(kind, ScriptArguments, SamplerConfig)))
