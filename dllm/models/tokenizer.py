"""Loading of tokenizers, completed with the special tokens and the chat template of their family."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers

from dllm.configs import resolve_with_base_env
from dllm.fast.model import MARKER
from dllm.models.families import Family, family_in
from dllm.models.sources import adapter_at, base_of, check_source, config_at, file_at, reading
from dllm.models.special_tokens import complete
from dllm.models.templates import set_template

# A folder with a tokenizer holds at least one of these.
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
# Dream's class is a copy of Qwen2's in Python.
QWEN_CLASSES = ("Qwen2Tokenizer", "DreamTokenizer")
MODEL_INPUTS = ["input_ids", "attention_mask"]  # transformers 4 would add token_type_ids


def get_tokenizer(model_args: Any = None, **options: Any) -> transformers.PreTrainedTokenizerBase:
    """Load the tokenizer of a model, ready for training and chat.

    - It pads on the right and has a mask token.
    - A missing padding, end-of-sequence or beginning-of-sequence token is taken from the others. BERT has no end of
      sequence, so its padding token serves as one.
    - `eot_token`, the text that ends an answer, is that of its family, and so is the chat template unless the tokenizer
      has its own (:func:`dllm.models.templates.set_template`). `eot_token_id` is its id if it is one token, else None.
    - It fits the model in the same folder: every token has a row in the embedding, and both name the same mask token.

    The tokenizers of LLaDA, LLaDA-MoE, LLaDA2, Dream, RND1 and A2D need no code that comes with them, and none is run:
    their files are read by PreTrainedTokenizerFast and Qwen2TokenizerFast, whose rules they follow. A saved tokenizer
    keeps its family in its tokenizer_config.json.

    Args:
        model_args: names the tokenizer by `model_name_or_path`, a folder or a name on the Hub.
        options: of `AutoTokenizer.from_pretrained`, such as `trust_remote_code` for tokenizers of no known family; or
            `model_name_or_path` in place of `model_args`.

    Raises:
        OSError: the folder or the name does not exist, or holds no tokenizer.
        ValueError: the tokenizer has no mask token, or no padding, end-of-sequence and beginning-of-sequence token; or
            it does not fit the model.

    Example:
        >>> from dllm.demo.shipped import SHIPPED
        >>> get_tokenizer(model_name_or_path=SHIPPED).eot_token
        '[/Answer]'
    """
    source = options.pop("model_name_or_path", None)
    source = getattr(model_args, "model_name_or_path", None) if source is None else source
    if source is None:
        raise ValueError("expected model_args or model_name_or_path, got neither")
    source = check_source(resolve_with_base_env(str(source), "BASE_MODELS_DIR"))
    # always given, because transformers would ask at the terminal otherwise
    options.setdefault("trust_remote_code", getattr(model_args, "trust_remote_code", False))
    files, config = _files_of(source), config_at(source)
    with reading("tokenizer", files):
        settings = _settings_at(files)
    family = family_in(config) or family_in(settings)
    with reading("tokenizer", files):
        tokenizer = _load(files, family, settings, {"padding_side": "right"} | options)
    complete(tokenizer, family, config, source)
    if family is not None:
        set_template(tokenizer, family.chat_template, family.answer_header, thinks=family.thinks)
    return tokenizer


def _load(
    files: str, family: Family | None, settings: dict[str, Any], options: dict[str, Any]
) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer as its files have it. The classes that they name are known to transformers, or stand for these."""
    if family is None or not family.unknown_to_transformers:
        return transformers.AutoTokenizer.from_pretrained(files, **options)
    del options["trust_remote_code"]
    has_json = file_at(files, "tokenizer.json") is not None
    if not has_json and None in (file_at(files, "vocab.json"), file_at(files, "merges.txt")):
        raise OSError("it must have a tokenizer.json, or a vocab.json and a merges.txt, got neither")
    declared = str(settings.get("tokenizer_class")).removesuffix("Fast")
    is_qwen = declared in QWEN_CLASSES or not has_json
    kind = transformers.Qwen2TokenizerFast if is_qwen else transformers.PreTrainedTokenizerFast
    with _without_class_warning():
        tokenizer = kind.from_pretrained(files, **{"model_input_names": MODEL_INPUTS} | options)
    tokenizer.init_kwargs.pop("auto_map", None)  # it names the code that is not needed
    tokenizer.init_kwargs[MARKER] = {"family": family.name}
    return tokenizer


@contextlib.contextmanager
def _without_class_warning() -> Iterator[None]:
    """Drop transformers' warning that the files name another class, inside this context: it is the same tokenizer."""
    log = logging.getLogger("transformers.tokenization_utils_base")

    def keep(record: logging.LogRecord) -> bool:
        return "is not the same type as the class" not in record.getMessage()

    log.addFilter(keep)
    try:
        yield
    finally:
        log.removeFilter(keep)


def _settings_at(source: str) -> dict[str, Any]:
    """The content of tokenizer_config.json; empty if there is none."""
    file = file_at(source, "tokenizer_config.json")
    if file is None:
        return {}
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"tokenizer_config.json must hold a JSON object, got {type(found).__name__}")
    return found


def _files_of(source: str) -> str:
    """The source of the tokenizer's files: the base model if an adapter has none, else the source itself.

    Raises:
        OSError: it is a folder without a tokenizer.
    """
    if adapter_at(source) is not None and not _has_files(source):
        source = base_of(source)
    if Path(source).is_dir() and not _has_files(source):
        raise OSError(f"{source} must hold a tokenizer, got none of {', '.join(FILES)}")
    return source


def _has_files(source: str) -> bool:
    return any(file_at(source, name) for name in FILES)
