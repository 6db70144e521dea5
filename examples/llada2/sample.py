"""Sample from LLaDA 2.0: answer questions in one batch, and play the steps.

    python -u examples/llada2/sample.py --model_name_or_path inclusionAI/LLaDA2.0-mini

Finished blocks stay in a KV cache; --threshold 0.8 is faster.

--prompt "..." "..." asks something else, --chat_template False continues texts, --visualize False plays nothing, and
--gif steps.gif writes the steps to a file (pip install 'dllm[chat]'). On a cluster:

    srun --gres=gpu:1 python -u examples/llada2/sample.py --model_name_or_path NAME

Every field of the classes below and of dllm.pipelines.llada2.LLaDA2SamplerConfig is an option; --help lists them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from dllm.chat import script
from dllm.exits import exit_code
from dllm.pipelines import llada2


@dataclass
class ScriptArguments(script.SampleArguments):
    model_name_or_path: str = "inclusionAI/LLaDA2.0-mini"


@dataclass
class SamplerConfig(llada2.LLaDA2SamplerConfig):
    max_new_tokens: int | None = 128


if __name__ == "__main__":
    sys.exit(exit_code("sample.py", lambda: script.sample(llada2.LLaDA2Sampler, ScriptArguments, SamplerConfig)))
