"""Sample from a BERT: answer questions in one batch, then fill the blanks of a text, and play the steps.

    python -u examples/bert/sample.py --model_name_or_path models/minilm-chat/checkpoint-final

Without a name the model that comes with dllm answers. `--gif steps.gif` writes the steps of the first batch to a file
(pip install 'dllm[chat]'), `--visualize False` plays nothing. On a cluster:

    srun --gres=gpu:1 python -u examples/bert/sample.py --model_name_or_path NAME

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

QUESTIONS = [
    "Lily can run 12 kilometers per hour for 4 hours. After that, she runs 6 kilometers per hour. "
    "How many kilometers can she run in 8 hours?",
    "What is 54 + 72?",
]
BLANK = "_"  # hides a token
TEXTS = [("What is 12 * 4?", "__ 4 = 48."), ("What is 8 - 4?", "8 - 4 =_.")]


@dataclass
class ScriptArguments:
    model_name_or_path: str = field(default=str(SHIPPED), metadata={"help": "A folder, or a name on the Hub."})
    dtype: str | None = field(default=None, metadata={"help": "Of the weights: float32 on a CPU, else bfloat16."})
    seed: int = field(default=42, metadata={"help": "Of the noise, where something is drawn."})
    visualize: bool = field(default=True, metadata={"help": "Play the steps of the answers."})
    gif: str | None = field(default=None, metadata={"help": "Write the steps of the answers there."})


@dataclass
class SamplerConfig(dllm.core.samplers.MDLMSamplerConfig):
    max_new_tokens: int = 64
    steps: int = 64
    block_size: int = 64


def sample() -> None:
    """Parse, load, answer, fill."""
    parser = transformers.HfArgumentParser((ScriptArguments, SamplerConfig))
    script_args, config = parser.parse_args_into_dataclasses()
    transformers.set_seed(script_args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = script_args.dtype or ("float32" if device == "cpu" else "bfloat16")
    model = dllm.utils.get_model(model_name_or_path=script_args.model_name_or_path, dtype=dtype).eval().to(device)
    tokenizer = dllm.utils.get_tokenizer(model_name_or_path=script_args.model_name_or_path)
    sampler = dllm.core.samplers.MDLMSampler(model, tokenizer)

    print(dllm.utils.banner_line("answers"))
    asked = [[{"role": "user", "content": question}] for question in QUESTIONS]
    prompts = dllm.utils.build_chat_inputs(tokenizer, asked, add_generation_prompt=True)
    output = sampler.sample(prompts, config, return_dict=True)
    answers = dllm.utils.sample_trim(tokenizer, output.sequences, prompts)
    for question, answer in zip(QUESTIONS, answers, strict=True):
        dllm.utils.print_wrapped(f"{question}\n  -> {answer.strip() or '(an empty answer)'}")
    if script_args.visualize:
        dllm.utils.TerminalVisualizer(tokenizer).visualize(output.histories)
    if script_args.gif:
        print("written:", dllm.utils.VideoVisualizer(tokenizer).visualize(output.histories, script_args.gif))

    print(dllm.utils.banner_line("blanks"))
    texts = [
        [
            {"role": "user", "content": question},
            {"role": "assistant", "content": text.replace(BLANK, tokenizer.mask_token)},
        ]
        for question, text in TEXTS
    ]
    inputs = dllm.utils.build_chat_inputs(tokenizer, texts, add_generation_prompt=False)
    output = sampler.infill(inputs, config, return_dict=True)
    filled = dllm.utils.infill_trim(tokenizer, output.sequences, inputs)
    for (question, text), words in zip(TEXTS, filled, strict=True):
        print(f"{question} {text} -> {words.strip()}")


if __name__ == "__main__":
    sys.exit(exit_code("sample.py", sample))
