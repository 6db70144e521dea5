"""Special tokens of a family's tokenizer: found or added, and checked against the configuration of its model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import transformers

from dllm.models.families import Family

_log = logging.getLogger("dllm")

_ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")

Tokenizer = transformers.PreTrainedTokenizerBase


def complete(tokenizer: Tokenizer, family: Family | None, config: Mapping[str, Any], source: str) -> None:
    """Give a tokenizer the special tokens that it lacks, in place, and check all of them.

    It then has tokens for mask, padding, end and beginning of sequence; `eot_token`, the text that ends an answer; and
    `eot_token_id`, None if that text is not one token. Families of uniform diffusion need no mask.

    Args:
        tokenizer: of transformers.
        family: of the model, if it has one.
        config: the content of the model's config.json; empty if there is none.
        source: where it was found, for errors.

    Raises:
        ValueError: there is no mask token, or no token for padding, end or beginning of sequence; or the tokenizer does
            not fit the model: a token outside the embedding, another mask token, no special token in common.
    """
    vocabulary = tokenizer.get_vocab()
    gains_row = family is not None and family.gains_mask_row and tokenizer.mask_token_id is not None
    if family is not None:
        for name in ("bos", "eos", "pad"):
            token = getattr(family, name)
            if token in vocabulary and getattr(tokenizer, f"{name}_token") is None:
                setattr(tokenizer, f"{name}_token", token)
    if family is None or family.masks:
        _set_mask(tokenizer, family, config, source)
    _fill_in(tokenizer)
    if family is not None:
        tokenizer.eot_token = family.end_of_turn
        tokenizer.eot_token_id = vocabulary.get(family.end_of_turn)
        if family.unknown_to_transformers:
            _check_ends(tokenizer, config, source)
            _warn_of_missing_headers(tokenizer, family, source)
    _check_range(tokenizer, config, source, except_mask=gains_row)


def _set_mask(tokenizer: Tokenizer, family: Family | None, config: Mapping[str, Any], source: str) -> None:
    """Set the mask token: the declared one, else the one that the model names, else that of the family."""
    wanted = config.get("mask_token_id")
    wanted = wanted if isinstance(wanted, int) else None
    if tokenizer.mask_token_id is None and family is not None and family.mask_token is not None:
        tokenizer.mask_token = _mask_of(tokenizer, family, wanted, _rows(config))
    if tokenizer.mask_token_id is None:
        raise ValueError(f"the tokenizer must have a mask token, got none at {source}")
    if wanted is not None and tokenizer.mask_token_id != wanted:
        raise ValueError(
            f"tokenizer and model at {source} disagree: the mask token {tokenizer.mask_token!r} of the tokenizer is "
            f"{tokenizer.mask_token_id}, mask_token_id of the model is {wanted}"
        )


def _mask_of(tokenizer: Tokenizer, family: Family, wanted: int | None, rows: int | None) -> str:
    """The mask token of a tokenizer that declares none; it is added if the vocabulary does not have it."""
    vocabulary = tokenizer.get_vocab()
    if family.mask_token in vocabulary:
        return family.mask_token
    added = tokenizer.added_tokens_decoder
    if wanted in added:
        return added[wanted].content
    if rows is not None and len(tokenizer) >= rows and family.reserved_token in vocabulary:
        return family.reserved_token
    tokenizer.add_tokens([transformers.AddedToken(family.mask_token, special=True, normalized=False)])
    return family.mask_token


def _fill_in(tokenizer: Tokenizer) -> None:
    known = next((t for t in (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token) if t is not None), None)
    if known is None:
        raise ValueError("the tokenizer must have a token for padding, or for a sequence's end or beginning; got none")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or known
    tokenizer.eos_token = tokenizer.eos_token or tokenizer.pad_token
    tokenizer.bos_token = tokenizer.bos_token or tokenizer.pad_token


def _rows(config: Mapping[str, Any]) -> int | None:
    """Rows of the model's embedding. LLaDA's has more than its `vocab_size` says, and a model of texts and images has
    them in the configuration of its text part."""
    part = config.get("text_config")
    config = part if isinstance(part, Mapping) else config
    rows = config.get("embedding_size") or config.get("vocab_size")
    return rows if isinstance(rows, int) else None


def _check_range(tokenizer: Tokenizer, config: Mapping[str, Any], source: str, *, except_mask: bool) -> None:
    """Check that the model has a row for every token, except for the mask; special ones are named first."""
    rows, excepted = _rows(config), tokenizer.mask_token_id if except_mask else None
    if rows is None:
        return
    special = {name: getattr(tokenizer, f"{name}_token_id", None) for name in ("mask", "eos", "pad", "bos", "eot")}
    for name, token in special.items():
        if token is not None and token >= rows and token != excepted:
            text = getattr(tokenizer, f"{name}_token")
            raise ValueError(
                f"tokenizer and model at {source} disagree: the {name} token {text!r} is {token}, and the model's "
                f"embedding has {rows} rows: resize the embedding, or declare a token that it has"
            )
    token, text = max((token, text) for text, token in tokenizer.get_vocab().items() if token != excepted)
    if token >= rows:
        raise ValueError(
            f"tokenizer and model at {source} disagree: the tokenizer's last token {text!r} is {token}, and the "
            f"model's embedding has {rows} rows"
        )


def _check_ends(tokenizer: Tokenizer, config: Mapping[str, Any], source: str) -> None:
    """Check that the model names a special token that the tokenizer has, where it names any."""
    named = {name: config[name] for name in _ENDS if isinstance(config.get(name), int)}
    own = {name: getattr(tokenizer, name) for name in _ENDS}
    if named and not set(named.values()) & {*own.values(), tokenizer.eot_token_id}:
        raise ValueError(
            f"tokenizer and model at {source} disagree: the model has {_listed(named)}, the tokenizer {_listed(own)}"
        )


def _listed(tokens: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {token}" for name, token in tokens.items())


def _warn_of_missing_headers(tokenizer: Tokenizer, family: Family, source: str) -> None:
    """Warn if tokens of the chat template, the tokenizer's own or else the family's, would be split into pieces, as by
    the tokenizer of LLaDA-8B-Base."""
    vocabulary, own = tokenizer.get_vocab(), tokenizer.chat_template
    used = [token for token in family.header_tokens if own is None or token in str(own)]
    if missing := [token for token in used if token not in vocabulary]:
        _log.warning(
            "the tokenizer at %s has no token for %s, so chats would split them into pieces that the model has not "
            "learnt: use the tokenizer of the Instruct model, or call tokenizer.add_tokens(%r, special_tokens=True) "
            "before training on chats; texts without a chat template are not affected",
            source,
            ", ".join(missing),
            missing,
        )
