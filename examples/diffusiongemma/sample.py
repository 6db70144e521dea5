"""Sample from DiffusionGemma: answer questions in one batch, and play the steps.

    python -u examples/diffusiongemma/sample.py --model_name_or_path google/diffusiongemma-26B-A4B-it

An answer is written in canvases of 256 tokens. Settings that are not given are those of the model's generation_config;
--max_denoising_steps 16 and --entropy_bound 1 are faster. transformers 5.12 or later is needed.

--prompt "..." "..." asks something else, --chat_template False continues texts, --visualize False plays nothing, and
--gif steps.gif writes the steps to a file (pip install 'dllm[chat]'). On a cluster:

    srun --gres=gpu:1 python -u examples/diffusiongemma/sample.py --model_name_or_path NAME

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
class ScriptArguments(script.SampleArguments):
    model_name_or_path: str = "google/diffusiongemma-26B-A4B-it"


if __name__ == "__main__":
    run = functools.partial(script.sample, DiffusionGemmaSampler, ScriptArguments, DiffusionGemmaSamplerConfig)
    sys.exit(exit_code("sample.py", run))
