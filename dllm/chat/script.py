"""Scripts that sample from a model or chat with it, for any sampler: arguments, loading, the run. `examples/` uses it.

An example of a family names the model, the sampler and its settings:

    sys.exit(exit_code("chat.py", lambda: script.chat(LLaDASampler, ScriptArguments, SamplerConfig)))
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import transformers
from torch import nn

from dllm.chat.session import multi_turn_chat, single_turn_sampling
from dllm.chat.talk import build_chat_inputs
from dllm.chat.text import banner_line, print_wrapped
from dllm.chat.trim import sample_trim
from dllm.chat.visualizers import TerminalVisualizer, VideoVisualizer
from dllm.core.samplers import BaseSampler, BaseSamplerConfig
from dllm.models import get_model, get_tokenizer
from dllm.models.sources import device_named

QUESTIONS = (
    "Lily can run 12 kilometers per hour for 4 hours. After that, she runs 6 kilometers per hour. "
    "How many kilometers can she run in 8 hours?",
    "Write a Python function that adds two numbers.",
)
TEXTS = ("The capital of France is", "def add(a, b):")  # for base models


@dataclass
class ChatArguments:
    """What a chat needs besides the sampler's settings."""

    model_name_or_path: str = field(default="", metadata={"help": "A folder, or a name on the Hub."})
    dtype: str | None = field(default=None, metadata={"help": "Of the weights: float32 on a CPU, else bfloat16."})
    quantize: str | None = field(default=None, metadata={"help": "int8: weights of 8 bits, approximate."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code that comes with the model."})
    chat_template: bool = field(
        default=True, metadata={"help": "Chat; False continues each text as it stands.", "aliases": ["--chat"]}
    )
    seed: int = field(default=42, metadata={"help": "Of the noise, where something is drawn."})
    visualize: bool = field(default=True, metadata={"help": "Show the steps of the answers."})


@dataclass
class SampleArguments(ChatArguments):
    """What sampling needs besides the sampler's settings."""

    prompt: list[str] | None = field(
        default=None, metadata={"help": "Questions, or texts to continue; some of our own without it."}
    )
    gif: str | None = field(default=None, metadata={"help": "Write the steps of the answers there."})


def chat(
    sampler: type[BaseSampler], arguments: type[ChatArguments], settings: type[BaseSamplerConfig], words: Any = None
) -> int:
    """Parse the command line, load the model, chat; returns the exit code.

    Args:
        sampler: the sampler.
        arguments: dataclass of the script's arguments.
        settings: dataclass of the sampler's settings.
        words: the command line; None: that of the process.

    Raises:
        SystemExit: the command line is wrong.
        OSError, ValueError: the model cannot be loaded, or a setting breaks a rule.
    """
    options, _ = _parsed(arguments, settings, words)
    loaded = _loaded(sampler, options)
    _, config = _parsed(arguments, settings, words, loaded.model)
    run = multi_turn_chat if options.chat_template else single_turn_sampling
    return run(loaded, config, options.visualize)


def sample(
    sampler: type[BaseSampler], arguments: type[SampleArguments], settings: type[BaseSamplerConfig], words: Any = None
) -> None:
    """Parse the command line, load the model, answer questions or continue texts in one batch, and play the steps.

    Arguments and errors as in :func:`chat`.
    """
    options, _ = _parsed(arguments, settings, words)
    loaded = _loaded(sampler, options)
    _, config = _parsed(arguments, settings, words, loaded.model)
    tokenizer = loaded.tokenizer
    print(banner_line("answers" if options.chat_template else "continuations"))
    texts = options.prompt or (QUESTIONS if options.chat_template else TEXTS)
    if options.chat_template:
        asked = [[{"role": "user", "content": text}] for text in texts]
        prompts = build_chat_inputs(tokenizer, asked, add_generation_prompt=True)
    else:
        prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    output = loaded.sample(prompts, config, return_dict=True)
    for text, answer in zip(texts, sample_trim(tokenizer, output.sequences, prompts), strict=True):
        print_wrapped(f"{text}\n  -> {answer.strip() or '(an empty answer)'}")
    if options.visualize:
        TerminalVisualizer(tokenizer).visualize(output.histories)
    if options.gif:
        print("written:", VideoVisualizer(tokenizer).visualize(output.histories, options.gif))


def _parsed(arguments: type, settings: type, words: Any, model: nn.Module | None = None) -> tuple[Any, Any]:
    """The arguments and the checked settings: first before anything is loaded. Settings that the command line does not
    give are then those that the model states, where the sampler reads them (`of`)."""
    parser = transformers.HfArgumentParser((arguments, settings), allow_abbrev=False)
    if model is not None and hasattr(settings, "of"):
        parser.set_defaults(**dataclasses.asdict(settings.of(model)))
    options, config = parser.parse_args_into_dataclasses(args=words)
    config.check()
    return options, config


def _loaded(sampler: type[BaseSampler], options: ChatArguments) -> BaseSampler:
    """The sampler with the model on the GPU if there is one."""
    transformers.set_seed(options.seed)
    device = device_named(None)
    dtype = options.dtype or ("float32" if device.type == "cpu" else "bfloat16")
    source = dict(model_name_or_path=options.model_name_or_path, trust_remote_code=options.trust_remote_code)
    tokenizer = get_tokenizer(**source)
    model = get_model(**source, dtype=dtype, quantize=options.quantize)
    return sampler(model.eval().requires_grad_(False).to(device), tokenizer)
