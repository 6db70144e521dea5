"""Chat with a BERT in the terminal, and watch its answers being denoised.

    python -u examples/bert/chat.py --model_name_or_path models/minilm-chat/checkpoint-final --chat_template True

Without a name the model that comes with dllm answers. `--chat True` is the same as `--chat_template True`; with False
every line is continued as it stands, or, where it has mask tokens, these are filled:

    echo "She runs [MASK] kilometers." | python -u examples/bert/chat.py --chat_template False

Lines can be piped in and answers out; on a terminal /help lists the commands. On a cluster:

    srun --gres=gpu:1 --pty python -u examples/bert/chat.py --model_name_or_path NAME --chat_template True

Every field of the classes below and of dllm.core.samplers.MDLMSamplerConfig is an option; --help lists them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from dllm.chat import script
from dllm.demo.shipped import SHIPPED
from dllm.exits import exit_code
from dllm.pipelines import bert


@dataclass
class ScriptArguments(script.ChatArguments):
    model_name_or_path: str = str(SHIPPED)


@dataclass
class SamplerConfig(bert.MDLMSamplerConfig):
    max_new_tokens: int | None = 64
    steps: int = 64
    block_size: int | None = 64
    stop_at_eos: bool = True


if __name__ == "__main__":
    sys.exit(exit_code("chat.py", lambda: script.chat(bert.MDLMSampler, ScriptArguments, SamplerConfig)))
