"""Sample from RND1: continue texts in one batch, and play the steps.

    python -u examples/rnd1/sample.py --model_name_or_path radicalnumerics/RND1-Base-0910

It is a base model without a chat template, so it continues texts; its authors ask "Question: ...\nAnswer:".

--prompt "..." "..." continues something else, --gif steps.gif writes the steps to a file (pip install 'dllm[chat]'),
--visualize False plays nothing. On a cluster:

    srun --gres=gpu:1 python -u examples/rnd1/sample.py --model_name_or_path NAME

Every field of the classes below and of dllm.pipelines.rnd1.RND1SamplerConfig is an option; --help lists them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from dllm.chat import script
from dllm.exits import exit_code
from dllm.pipelines import rnd1


@dataclass
class ScriptArguments(script.SampleArguments):
    model_name_or_path: str = "radicalnumerics/RND1-Base-0910"
    chat_template: bool = False


@dataclass
class SamplerConfig(rnd1.RND1SamplerConfig):
    max_new_tokens: int | None = 128
    steps: int = 128


if __name__ == "__main__":
    sys.exit(exit_code("sample.py", lambda: script.sample(rnd1.RND1Sampler, ScriptArguments, SamplerConfig)))
