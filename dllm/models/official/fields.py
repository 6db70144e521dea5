"""Fields of official configurations: what cannot be mapped, rotary embeddings, and what passes unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers

# Fields that name files, code and classes: no family hands them on.
NO_HYPERPARAMETERS = (
    "_name_or_path",
    "_commit_hash",
    "architectures",
    "auto_map",
    "model_type",
    "transformers_version",
    "use_cache",
)
# Of every family: the weights are stored in a floating-point dtype, which quantised ones are not.
ALLOWED: dict[str, tuple[Any, ...]] = {"quantization_config": (None,)}
ROTARY = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor")
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def refuse(family: str, config: Mapping[str, Any], allowed: Mapping[str, tuple[Any, ...]]) -> None:
    """Check that every field has a value that transformers' class can represent.

    Args:
        family: for the error.
        config: the official configuration.
        allowed: values of each field; an absent field counts as the first. What no family allows is checked besides.

    Raises:
        ValueError: a field has another value.

    Example:
        >>> refuse("llada", {"alibi": True}, {"alibi": (False,)})
        Traceback (most recent call last):
        ...
        ValueError: a llada checkpoint with alibi=True cannot be mapped to a class of transformers: expected False
    """
    for name, values in (ALLOWED | dict(allowed)).items():
        got = config.get(name, values[0])
        if got is None or isinstance(got, str):
            fits = got in values
        else:
            fits = any(got == value and isinstance(got, bool) == isinstance(value, bool) for value in values)
        if not fits:
            raise ValueError(
                f"a {family} checkpoint with {name}={got!r} cannot be mapped to a class of transformers: "
                f"expected {' or '.join(map(repr, values))}"
            )


def needed(family: str, config: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Check that the configuration has these fields.

    Raises:
        ValueError: it lacks one.
    """
    missing = [name for name in names if config.get(name) is None]
    if missing:
        raise ValueError(f"the config.json of a {family} checkpoint must have {', '.join(missing)}")


def unchanged(config: Mapping[str, Any], *without: str) -> dict[str, Any]:
    """The fields that transformers' configuration has by the same name and meaning.

    Args:
        config: the official configuration.
        without: fields to leave out, besides those of files, code and rotary embeddings.
    """
    left_out = (*NO_HYPERPARAMETERS, *ROTARY, *without)
    kept = {name: value for name, value in config.items() if name not in left_out}
    if kept.get("head_dim", 0) is None:  # transformers computes it only where there is none
        del kept["head_dim"]
    return kept


def present(config: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """These fields, as far as the configuration has them."""
    return {name: config[name] for name in names if config.get(name) is not None}


def rotary(config: Mapping[str, Any], *, partial: float | None = None) -> dict[str, Any]:
    """The fields of rotary embeddings, as the installed transformers expects them.

    transformers 5 has one field `rope_parameters`, transformers 4 has `rope_theta`, `rope_scaling` and
    `partial_rotary_factor`. The official configuration may have either form.

    Args:
        config: the official configuration.
        partial: the share of each head that is rotated; None for all.
    """
    given = dict(config.get("rope_parameters") or {})
    theta = given.pop("rope_theta", None) or config.get("rope_theta") or 10000.0
    given.pop("partial_rotary_factor", None)
    scaling = given | dict(config.get("rope_scaling") or {})  # RND1 says False where others say null
    scaling = {("rope_type" if name == "type" else name): value for name, value in scaling.items()}
    if scaling.get("rope_type", "default") == "default":
        scaling = {}
    share = {} if partial is None else {"partial_rotary_factor": partial}
    if int(transformers.__version__.split(".")[0]) >= 5:
        return {"rope_parameters": {"rope_type": "default", "rope_theta": float(theta)} | scaling | share}
    return {"rope_theta": float(theta)} | ({"rope_scaling": scaling} if scaling else {}) | share
