"""Sample from LLaDA 2.1: answer questions in one batch, and play the steps.

    python -u examples/llada21/sample.py --model_name_or_path inclusionAI/LLaDA2.1-mini

A step may also replace tokens of its block; --threshold 0.7 --editing_threshold 0.5 is faster.

--prompt "..." "..." asks something else, --chat_template False continues texts, --visualize False plays nothing, and
--gif steps.gif writes the steps to a file (pip install 'dllm[chat]'). On a cluster:

    srun --gres=gpu:1 python -u examples/llada21/sample.py --model_name_or_path NAME

Every field of the classes below and of dllm.pipelines.llada21.LLaDA21SamplerConfig is an option; --help lists them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from dllm.chat import script
from dllm.exits import exit_code
from dllm.pipelines import llada21


@dataclass
class ScriptArguments(script.SampleArguments):
    model_name_or_path: str = "inclusionAI/LLaDA2.1-mini"


@dataclass
class SamplerConfig(llada21.LLaDA21SamplerConfig):
    max_new_tokens: int | None = 128


if __name__ == "__main__":
    sys.exit(exit_code("sample.py", lambda: script.sample(llada21.LLaDA21Sampler, ScriptArguments, SamplerConfig)))
