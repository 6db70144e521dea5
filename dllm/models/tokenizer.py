"""Loading of tokenizers, completed with the special tokens and the chat template of their family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from dllm.configs import resolve_with_base_env
from dllm.models.families import family_of
from dllm.models.sources import adapter_at, base_of, check_source, file_at, model_type_at, reading

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


def get_tokenizer(model_args: Any = None, **options: Any) -> transformers.PreTrainedTokenizerBase:
    """Load the tokenizer of a model, ready for training and chat.

    - It pads on the right and has a mask token.
    - A missing padding, end-of-sequence or beginning-of-sequence token is taken from the others. BERT has no end of
      sequence, so its padding token serves as one.
    - `eot_token`, the text that ends an answer, is that of its family, and so is the chat template unless the tokenizer
      has its own.

    Args:
        model_args: names the tokenizer by `model_name_or_path`, a folder or a name on the Hub.
        options: of `AutoTokenizer.from_pretrained`; or `model_name_or_path` in place of `model_args`.

    Raises:
        OSError: the folder or the name does not exist, or holds no tokenizer.
        ValueError: the tokenizer has no mask token, or no padding, end-of-sequence and beginning-of-sequence token.

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
    family, files = family_of(model_type_at(source)), _files_of(source)
    with reading("tokenizer", files):
        tokenizer = transformers.AutoTokenizer.from_pretrained(files, padding_side="right", **options)
    if tokenizer.mask_token_id is None and family is not None and family.mask_token is not None:
        tokenizer.add_special_tokens({"mask_token": family.mask_token})
    if tokenizer.mask_token_id is None:
        raise ValueError(f"the tokenizer must have a mask token, got none at {source}")
    _fill_in(tokenizer)
    if family is not None:
        tokenizer.eot_token = family.end_of_turn
        tokenizer.chat_template = tokenizer.chat_template or family.chat_template
    return tokenizer


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


def _fill_in(tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    known = next((t for t in (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token) if t is not None), None)
    if known is None:
        raise ValueError("the tokenizer must have a token for padding, or for a sequence's end or beginning; got none")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or known
    tokenizer.eos_token = tokenizer.eos_token or tokenizer.pad_token
    tokenizer.bos_token = tokenizer.bos_token or tokenizer.pad_token
