"""Sample from an A2D model: answer questions in one batch, and play the steps.

    python -u examples/a2d/bd3lm/sample.py --model_name_or_path dllm-hub/Qwen3-0.6B-diffusion-bd3lm-v0.1

Blocks are generated from left to right, and finished blocks stay in a KV cache.

--prompt "..." "..." asks something else, --chat_template False continues texts, --visualize False plays nothing, and
--gif steps.gif writes the steps to a file (pip install 'dllm[chat]'). On a cluster:

    srun --gres=gpu:1 python -u examples/a2d/bd3lm/sample.py --model_name_or_path NAME

Every field of the classes below and of dllm.pipelines.a2d.BD3LMSamplerConfig is an option; --help lists them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from dllm.chat import script
from dllm.exits import exit_code
from dllm.pipelines import a2d


@dataclass
class ScriptArguments(script.SampleArguments):
    model_name_or_path: str = "dllm-hub/Qwen3-0.6B-diffusion-bd3lm-v0.1"


@dataclass
class SamplerConfig(a2d.BD3LMSamplerConfig):
    max_new_tokens: int | None = 128
    steps: int = 128


if __name__ == "__main__":
    sys.exit(exit_code("sample.py", lambda: script.sample(a2d.BD3LMSampler, ScriptArguments, SamplerConfig)))
