"""Sources of models: a folder, a name on the Hub, or an adapter of peft that names its base model."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import cached_file

from dllm.configs import resolve_with_base_env
from dllm.fast.model import MARKER
from dllm.models.config_rules import check_fields, check_marker
from dllm.models.official import Mapping, is_official, names, recognise
from dllm.models.official.vocabulary import mask_token_at

_ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# the first transformers that has a type of model as it is run here
SINCE = {"diffusion_gemma": (5, 12)}


def check_source(source: str) -> str:
    """Check that a source is an existing folder or may be a name on the Hub, and return it.

    Raises:
        FileNotFoundError: it can only be a folder, and there is none.
        OSError: it is an adapter without safetensors.

    Example:
        >>> check_source("answerdotai/ModernBERT-base")
        'answerdotai/ModernBERT-base'
        >>> check_source("/no/such/model")
        Traceback (most recent call last):
        ...
        FileNotFoundError: there is no folder /no/such/model
    """
    path = Path(source)
    named_as_folder = path.is_absolute() or path.is_file() or source.startswith((".", "~")) or source.count("/") > 1
    if named_as_folder and not path.is_dir():
        raise FileNotFoundError(f"there is no folder {source}")
    if not source:
        raise FileNotFoundError("a model must be named by a folder or a name on the Hub, got an empty text")
    if (path / _ADAPTER).is_file():
        need("peft", "lora")
        if not (path / ADAPTER_WEIGHTS).is_file():
            raise OSError(f"the adapter at {source} must have its weights in {ADAPTER_WEIGHTS}, got none")
    return source


def base_of(source: str | Path) -> str:
    """The source of a model's weights and configuration: the base model of an adapter, else the source itself.

    A folder that holds an adapter and a config.json is its own base model.

    Raises:
        OSError: the adapter's base model does not exist.
        ValueError: the adapter does not name its base model.

    Example:
        >>> from dllm.demo.shipped import SHIPPED
        >>> base_of(SHIPPED) == str(SHIPPED)
        True
    """
    source = str(source)
    adapter = adapter_at(source)
    if adapter is None or (Path(source) / "config.json").is_file():
        return source
    base = adapter.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"the adapter at {source} does not name its base model")
    try:
        return check_source(resolve_with_base_env(base, "BASE_MODELS_DIR"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the base model of the adapter at {source} is not there: {error}") from error


def adapter_at(source: str | Path) -> dict[str, Any] | None:
    """The configuration of a peft adapter in a folder or at a name on the Hub; None if there is no adapter.

    Raises:
        ValueError: its file is not a JSON object.

    Example:
        >>> from dllm.demo.shipped import SHIPPED
        >>> adapter_at(SHIPPED) is None
        True
    """
    file = file_at(source, _ADAPTER)
    if file is None:
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} must be JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} must hold a JSON object, got {type(found).__name__}")
    return found


def file_at(source: str | Path, name: str) -> Path | None:
    """A file in a folder or at a name on the Hub; None if it does not exist or cannot be reached."""
    if Path(source).is_dir():
        file = Path(source) / name
        return file if file.is_file() else None
    return _on_hub(str(source), name)


@functools.lru_cache(maxsize=64)  # ask the Hub once only
def _on_hub(name: str, file: str) -> Path | None:
    lenient = ("gated_repo", "missing_entries", "connection_errors")
    found = cached_file(name, file, **{f"_raise_exceptions_for_{what}": False for what in lenient})
    return None if found is None else Path(found)


def config_at(source: str | Path) -> dict[str, Any]:
    """The content of the config.json of a folder or a name on the Hub; empty if a folder has none.

    Of an adapter it is that of the base model. No code that comes with a model is run.

    Raises:
        OSError: the folder or the name does not exist.
        ValueError: it cannot be read.

    Example:
        >>> from dllm.demo.shipped import SHIPPED
        >>> config_at(SHIPPED)["model_type"]
        'modernbert'
    """
    base = base_of(source)
    if Path(base).is_dir() and not (Path(base) / "config.json").is_file():
        return {}
    with reading("configuration", base):
        return _content_at(base)


def _content_at(base: str) -> dict[str, Any]:
    """The content of config.json, with what a family is recognised by, sizes and other fields checked."""
    content = transformers.PretrainedConfig.get_config_dict(base)[0]
    if not isinstance(content, dict):
        raise ValueError(f"config.json must hold a JSON object, got {type(content).__name__}")
    kind, names, marker = (content.get(name) for name in ("model_type", "architectures", MARKER))
    if kind is not None and not isinstance(kind, str):
        raise ValueError(f"model_type must be a text, got {kind!r}")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"architectures must be a list of class names, got {names!r}")
    if marker is not None and not isinstance(marker, dict):
        raise ValueError(f"{MARKER} must be an object, got {marker!r}")
    check_marker(marker or {})
    check_version(kind)
    if not content.get("auto_map") or kind in CONFIG_MAPPING or is_official(content):  # else its own code knows
        check_fields(content)
    return content


def check_version(kind: str | None) -> None:
    """Check that this transformers has a type of model.

    Raises:
        ValueError: it is too old; the message says which version has it.

    Example:
        >>> check_version("modernbert")
    """
    least = SINCE.get(kind)
    if least is not None and tuple(map(int, transformers.__version__.split(".")[:2])) < least:
        wanted = ".".join(map(str, least))
        raise ValueError(
            f"a model of type {kind!r} needs transformers {wanted} or later, got {transformers.__version__}: "
            f"pip install -U 'transformers>={wanted}'"
        )


def get_config(model_args: Any = None, **options: Any) -> transformers.PretrainedConfig:
    """The configuration of a model; of an adapter, that of its base model.

    Args:
        model_args: any object with `model_name_or_path` and, perhaps, `trust_remote_code`.
        options: these two, which replace those of `model_args`; and fields of the configuration.

    Raises:
        OSError: the folder or the name does not exist, or has no configuration.
        ValueError: the configuration is invalid or needs `trust_remote_code`.

    Example:
        >>> from dllm.demo.shipped import SHIPPED
        >>> get_config(model_name_or_path=SHIPPED).model_type
        'modernbert'
    """
    given = {"trust_remote_code": getattr(model_args, "trust_remote_code", False)} | options
    source = given.pop("model_name_or_path", None) or model_args.model_name_or_path
    base = base_of(check_source(str(source)))
    if Path(base).is_dir() and not (Path(base) / "config.json").is_file():
        raise OSError(f"{base} must hold a model, got no config.json")
    with reading("configuration", base):
        mapping = mapping_at(base, trust_remote_code=given["trust_remote_code"])
        if mapping is not None:
            config = mapped_config(mapping, base)
        elif given["trust_remote_code"] and (own := _own_class(base)) is not None:
            return own.from_pretrained(base, **{k: v for k, v in given.items() if k != "trust_remote_code"})
        elif (config := _of_newer_transformers(base)) is None:
            return transformers.AutoConfig.from_pretrained(base, **given)
        for name in [name for name in given if hasattr(config, name)]:
            setattr(config, name, given[name])
        return config


def _own_class(base: str) -> type[transformers.PretrainedConfig] | None:
    """The configuration class that comes with a checkpoint of a known type, whose code is trusted; None in other cases.

    AutoConfig of transformers 5 would take the class that is registered for the type (:mod:`dllm.auto_classes`).
    """
    content = _content_at(base)
    place = (content.get("auto_map") or {}).get("AutoConfig")
    if place is None or content.get("model_type") not in CONFIG_MAPPING:
        return None
    return get_class_from_dynamic_module(place, base)


def _of_newer_transformers(base: str) -> transformers.PretrainedConfig | None:
    """The configuration of a known family that transformers 5 saved, read by transformers 4; None in any other case."""
    if int(transformers.__version__.split(".")[0]) >= 5:
        return None
    saved = _content_at(base)
    official = (saved.get(MARKER) or {}).get("official")
    mapping = recognise(official) if official and "rope_parameters" in saved else None
    return None if mapping is None else mapping.restored(saved)


def mapped_config(mapping: Mapping, base: str) -> transformers.PretrainedConfig:
    """The configuration of transformers for an official checkpoint, with the mask token that its tokenizer names."""
    config = mapping.config()
    if config.mask_token_id is None:
        config.mask_token_id = mask_token_at(functools.partial(file_at, base))
    return config


def mapping_at(base: str | Path, *, trust_remote_code: bool = False) -> Mapping | None:
    """The mapping of an official checkpoint in a folder or at a name on the Hub; None if it is of no known family.

    Args:
        base: the folder or the name.
        trust_remote_code: if the code that comes with it may run, None also for a checkpoint that cannot be mapped.

    Raises:
        OSError: the name does not exist.
        ValueError: it is of a known family, but cannot be mapped; or it is of none, and needs code that comes with it.

    Example:
        >>> from dllm.demo.shipped import SHIPPED
        >>> mapping_at(SHIPPED) is None
        True
    """
    if Path(base).is_dir() and not (Path(base) / "config.json").is_file():
        return None
    found = _content_at(base)
    found.pop("_commit_hash", None)  # which transformers 4 adds
    own_code = found.get("auto_map")
    try:
        mapping = recognise(found)
    except ValueError as error:
        if not own_code:
            raise
        if trust_remote_code:
            return None
        raise ValueError(f"{error}. trust_remote_code=True would run the code that comes with it instead") from error
    if mapping is None and own_code and not trust_remote_code and found.get("model_type") not in CONFIG_MAPPING:
        known = ", ".join(names())
        raise ValueError(
            f"a model of type {found.get('model_type')!r} is of no known family ({known}) and comes with code of its "
            "own. trust_remote_code=True would run that code, with all rights of this process: read it before"
        )
    return mapping


@contextlib.contextmanager
def reading(what: str, source: str | Path) -> Iterator[None]:
    """Turn errors of transformers inside this context into one OSError or ValueError that names the files.

    Damaged files can cause an error of any type.

    Args:
        what: the files, for the error: "weights", "configuration", "tokenizer".
        source: where they are.

    Raises:
        OSError: the files do not exist, or the weights are damaged.
        ValueError: the files cannot be used.
    """
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"the {what} at {source} are damaged, or were not written to their end: {error}") from error
    except OSError as error:
        raise OSError(f"the {what} at {source} cannot be loaded: {str(error).partition(chr(10))[0]}") from error
    except (ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except ValueError as error:
        raise ValueError(f"the {what} at {source} cannot be used: {error}") from error
    except Exception as error:
        if "mismatch" in str(error):  # transformers' error about shapes, which only refers to its log
            raise ValueError(f"the {what} at {source} do not fit its configuration: shapes differ") from error
        raise ValueError(f"the {what} at {source} cannot be used: {type(error).__name__}: {error}") from error


def dtype_named(name: str | torch.dtype) -> torch.dtype:
    """The floating-point dtype of torch with this name.

    Raises:
        ValueError: there is none.

    Example:
        >>> dtype_named("bfloat16")
        torch.bfloat16
    """
    dtype = getattr(torch, str(name).removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype must name a floating-point dtype of torch, got {name!r}")
    return dtype


def device_named(name: str | torch.device | None) -> torch.device:
    """The torch device with this name, checked to exist on this machine; None: the GPU where there is one, or the CPU.

    Raises:
        ValueError: it does not exist.

    Example:
        >>> device_named("cpu")
        device(type='cpu')
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.zeros(0, device=name).device
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"expected a device of this machine, such as cpu or cuda, got {str(name)!r}") from error


def need(package: str, extra: str) -> None:
    """Check that an optional package is installed.

    Args:
        package: its name.
        extra: the extra of dllm that installs it.

    Raises:
        ImportError: it is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"{package} is not installed: pip install 'dllm[{extra}]'")
