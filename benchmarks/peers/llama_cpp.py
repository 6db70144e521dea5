"""llama.cpp: models as GGUF files of its Dream and LLaDA architectures, and its diffusion example run on them.

The example is `llama-diffusion-cli`, built from the sources that are in the source distribution of `llama-cpp-python`:

    pip download --no-binary :all: --no-deps llama-cpp-python && tar xzf llama_cpp_python-*.tar.gz
    cmake -S llama_cpp_python-*/vendor/llama.cpp -B build -DCMAKE_BUILD_TYPE=Release -DLLAMA_BUILD_TESTS=OFF \
        -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_CURL=OFF
    cmake --build build --target llama-diffusion-cli llama-debug
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy
import torch
from torch import Tensor, nn

PRECISIONS = {name: gguf.GGMLQuantizationType[name.upper()] for name in ("f32", "f16", "bf16", "q8_0")}
ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLADA, "qwen2": gguf.MODEL_ARCH.DREAM}  # by transformers' model type
TIMES = re.compile(r"total time: ([\d.]+)ms, .*sampling time per step: ([\d.]+)ms")
TOKEN = re.compile(r"<(\d+)>")


def write_gguf(model: nn.Module, mask_id: int, path: Path, precision: str) -> None:
    """Write a Llama- or Qwen2-shaped model as a GGUF file; token i is the text "<i>", so that prompts are exact.

    Matrices are in `precision`, vectors in float32.

    Raises:
        ValueError: an architecture that llama.cpp's diffusion example does not run, an unknown precision, or rows that
            cannot be quantised (q8_0 needs a multiple of 32 columns).
    """
    config = model.config
    if config.model_type not in ARCHITECTURES:
        raise ValueError(f"the model must be one of {', '.join(ARCHITECTURES)}, got {config.model_type!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    architecture = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_causal_attention(False)
    writer.add_diffusion_shift_logits(architecture is gguf.MODEL_ARCH.DREAM)
    writer.add_tokenizer_model("rwkv")  # the longest match in a list of tokens, nothing else
    writer.add_token_list([f"<{token}>" for token in range(config.vocab_size)])
    writer.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)
    writer.add_mask_token_id(mask_id)
    writer.add_chat_template("{{ messages[0]['content'] }}")  # the example always applies one
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if architecture is gguf.MODEL_ARCH.LLADA and re.search(r"[qk]_proj\.", name):
            tensor = _interleaved(tensor, config.hidden_size // config.num_attention_heads)
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        data, kind = _encoded(tensor.float().numpy(), PRECISIONS[precision])
        writer.add_tensor(own, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _interleaved(tensor: Tensor, head_size: int) -> Tensor:
    """Rows of a query or key projection in the order of llama.cpp's LLaMA: rotary pairs next to each other."""
    halves = tensor.unflatten(0, (-1, 2, head_size // 2))
    return halves.transpose(1, 2).flatten(0, 2).contiguous()


def _encoded(values: numpy.ndarray, kind: gguf.GGMLQuantizationType) -> tuple[numpy.ndarray, gguf.GGMLQuantizationType]:
    """A tensor's bytes and their type; vectors stay float32."""
    if values.ndim == 1:
        kind = gguf.GGMLQuantizationType.F32
    return gguf.quants.quantize(values, kind), kind


class Run(NamedTuple):
    """A run of the example.

    canvas: int64 [L]. forwards: forward passes. seconds: of all steps, without loading. sampling_seconds: of these, the
    choice of tokens. peak_bytes: peak resident memory of the process, weights included.
    """

    canvas: Tensor
    forwards: int
    seconds: float
    sampling_seconds: float
    peak_bytes: int


def complete(
    program: Path, model: Path, prompt: Sequence[int], length: int, steps: int, temperature: float, flash: bool = True
) -> Run:
    """Complete one prompt in one block that reaches to the end of a canvas of `length` tokens.

    The example commits the masks divided evenly over the steps, those of highest confidence first. Its temperature 0 is
    no argmax but a draw at temperature 1, so the argmax is asked for as top-k 1. Every confidence is then 1, and tokens
    are committed from left to right. Above 0 it draws from softmax(l / T), and the confidence is the token's
    probability there.

    Args:
        flash: flash attention, which rounds keys and values to float16.

    Raises:
        RuntimeError: the example failed, or its output cannot be read.
    """
    options = {
        "-m": model,
        "-p": "".join(f"<{token}>" for token in prompt),
        "-c": length,
        "-b": length,
        "-ub": length,  # the length of the canvas
        "-fa": "on" if flash else "off",
        "-t": torch.get_num_threads(),
        "-tb": torch.get_num_threads(),
        "--temp": temperature,
        "--top-k": 0 if temperature else 1,
        "--top-p": 1,
        "--seed": 0,
        "--diffusion-steps": steps,
        "--diffusion-block-length": length,
        "--diffusion-algorithm": 4,  # confidence
        "--load-mode": "none",  # weights are read before the first step, not during it
    }
    output, peak = _run([program, *(text for option in options.items() for text in option)])
    times = TIMES.search(output)
    if times is None:
        raise RuntimeError(f"{program.name} must print its times, got {output[-300:]!r}")
    new = [int(token) for token in TOKEN.findall(output[times.end() :])]
    if len(new) != length - len(prompt):
        raise RuntimeError(f"{program.name} must complete {length - len(prompt)} tokens, got {len(new)}")
    total, sampling = (float(text) / 1000 for text in times.groups())
    return Run(torch.tensor([*prompt, *new]), steps, total, sampling * steps, peak)


def last_logits(program: Path, model: Path, tokens: Sequence[int], folder: Path, flash: bool = True) -> Tensor:
    """Logits [V] of the last of the given tokens, by `llama-debug`, which writes them into `folder`."""
    options = {
        "-m": model,
        "-p": "".join(f"<{token}>" for token in tokens),
        "-c": len(tokens),
        "-b": len(tokens),
        "-ub": len(tokens),
        "-fa": "on" if flash else "off",
        "-t": torch.get_num_threads(),
        "--logits-output-dir": folder,
    }
    _run([program, *(text for option in options.items() for text in option), "--save-logits", "--no-warmup"])
    return torch.from_numpy(numpy.fromfile(folder / f"llamacpp-{model.stem}.bin", dtype=numpy.float32))


# a small process between: a program's peak counts what its parent had in use when it was started
_WITH_PEAK = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:], stderr=subprocess.STDOUT)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""


def _run(command: Sequence[object]) -> tuple[str, int]:
    """Output of a program, and the peak of its resident memory in bytes."""
    measured = [sys.executable, "-c", _WITH_PEAK, *map(str, command)]
    done = subprocess.run(measured, capture_output=True, text=True, errors="replace", check=False)
    output, _, peak = done.stdout.rstrip().rpartition("\n")
    if done.returncode:
        reason = (output or done.stderr)[-300:]
        raise RuntimeError(f"{Path(str(command[0])).name} ended with status {done.returncode}: {reason}")
    return output, int(peak) * 1024
