"""Chat with a BERT in the terminal, and look on as its answers take form.

    python -u examples/bert/chat.py --model_name_or_path models/minilm-chat/checkpoint-final --chat_template True

Without a name the model that comes with dllm answers. `--chat True` is the same as `--chat_template True`; with False
every line is continued as it stands, or, where it has mask tokens, these are filled:

    echo "She runs [MASK] kilometers." | python -u examples/bert/chat.py --chat_template False

Lines can be piped in and answers out; on a terminal /help lists what else can be typed. On a cluster:

    srun --gres=gpu:1 --pty python -u examples/bert/chat.py --model_name_or_path NAME --chat_template True

Every field of the classes below and of dllm.core.samplers.MDLMSamplerConfig is an option; --help lists them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import torch
import transformers

import dllm
from dllm.demo.shipped import SHIPPED
from dllm.exits import exit_code


@dataclass
class ScriptArguments:
    model_name_or_path: str = field(default=str(SHIPPED), metadata={"help": "A folder, or a name on the Hub."})
    dtype: str | None = field(default=None, metadata={"help": "Of the weights: float32 on a CPU, else bfloat16."})
    chat_template: bool = field(
        default=True, metadata={"help": "Chat; False continues each line as it stands.", "aliases": ["--chat"]}
    )
    seed: int = field(default=42, metadata={"help": "Of the noise, where something is drawn."})
    visualize: bool = field(default=True, metadata={"help": "Show the steps of every answer."})


@dataclass
class SamplerConfig(dllm.core.samplers.MDLMSamplerConfig):
    max_new_tokens: int = 64
    steps: int = 64
    block_size: int = 64
    stop_at_eos: bool = True


def chat() -> int:
    """Parse, load, talk; the exit code."""
    parser = transformers.HfArgumentParser((ScriptArguments, SamplerConfig))
    script_args, sampler_config = parser.parse_args_into_dataclasses()
    transformers.set_seed(script_args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = script_args.dtype or ("float32" if device == "cpu" else "bfloat16")
    model = dllm.utils.get_model(model_name_or_path=script_args.model_name_or_path, dtype=dtype).eval().to(device)
    tokenizer = dllm.utils.get_tokenizer(model_name_or_path=script_args.model_name_or_path)
    sampler = dllm.core.samplers.MDLMSampler(model, tokenizer)
    run = dllm.utils.multi_turn_chat if script_args.chat_template else dllm.utils.single_turn_sampling
    return run(sampler, sampler_config, script_args.visualize)


if __name__ == "__main__":
    sys.exit(exit_code("chat.py", chat))
