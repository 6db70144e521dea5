"""Official names of configurations and models, whose objects are transformers' own.

No modelling file stands behind these names. A configuration has the fields of the official config.json; a model is the
class of transformers that :mod:`dllm.models.official` maps the checkpoint to, made bidirectional.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

import transformers
from torch import nn

from dllm.configs import ModelArguments
from dllm.models import get_config, get_model, new_model
from dllm.models.official import marker_of, recognise


class OfficialConfig(transformers.PretrainedConfig):
    """A configuration with the fields of an official config.json. Subclasses set `model_type` and the others below.

    `AutoConfig.from_pretrained(folder)` returns it as the file is. `from_pretrained` of the class returns the
    configuration of transformers that the file is mapped to, which :func:`dllm.models.get_model` takes.

    Attributes:
        family: the family that a folder must be of.
        model_type: of the official config.json.
        architecture: of the official config.json.
        base_type: transformers' model type, where a family has several names; else None.
    """

    family: ClassVar[str]
    architecture: ClassVar[str]
    base_type: ClassVar[str | None] = None

    def __init__(self, **fields: Any):
        super().__init__(**{"architectures": [self.architecture]} | fields)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, **fields: Any
    ) -> transformers.PretrainedConfig:
        """The configuration of transformers for the checkpoint in a folder or at a name on the Hub.

        Args:
            pretrained_model_name_or_path: the folder or the name.
            fields: of the configuration, which replace those of the file.

        Raises:
            OSError: the folder or the name does not exist, or has no configuration.
            ValueError: it is of another family, or cannot be mapped.
        """
        config = get_config(model_name_or_path=str(pretrained_model_name_or_path), **fields)
        return _of_family(config, cls.family, pretrained_model_name_or_path)

    def mapped(self) -> transformers.PretrainedConfig:
        """The configuration of transformers that this one is mapped to.

        Raises:
            ValueError: a field has a value that no class of transformers can represent, or is missing.
        """
        mapping = recognise(self.to_dict())
        if mapping is None:  # the fields were those of another family
            raise ValueError(f"a {type(self).__name__} must be of model_type {self.model_type!r}, got another")
        return mapping.config()


class _IsOfficial(type):
    """The type of the model names: a model is an instance of the name of its family and architecture."""

    def __instancecheck__(cls, instance: Any) -> bool:
        config, kind = getattr(instance, "config", None), cls.config_class
        if not isinstance(instance, nn.Module) or marker_of(config).get("family") != kind.family:
            return False
        return kind.base_type is None or config.model_type == kind.base_type


class OfficialModel(metaclass=_IsOfficial):
    """A name for the models of a family. Calling it gives a model of transformers with random weights.

    `isinstance(model, Name)` is True for models of the family, however they were loaded.

    Attributes:
        config_class: the configuration with the official fields.
    """

    config_class: ClassVar[type[OfficialConfig]]

    def __new__(cls, config: transformers.PretrainedConfig) -> nn.Module:
        """A model with random weights in float32.

        Args:
            config: the official configuration, or the one that it is mapped to.

        Raises:
            ValueError: it is of another family, or cannot be mapped.
        """
        config = config.mapped() if isinstance(config, OfficialConfig) else config
        _of_family(config, cls.config_class.family, "config")
        return new_model(config, ModelArguments(model_name_or_path=cls.__name__, dtype="float32"))

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, *, config: Any = None, **options: Any
    ) -> nn.Module:
        """The checkpoint in a folder or at a name on the Hub (:func:`dllm.models.get_model`).

        Args:
            pretrained_model_name_or_path: the folder or the name.
            config: a configuration in place of the checkpoint's own; an official one is read from the file again.
            options: of `get_model`. `torch_dtype` is another name of `dtype`; without either, weights are float32.

        Raises:
            OSError: the folder or the name does not exist, or its weights are missing or damaged.
            TypeError: an option is unknown.
            ValueError: it is of another family, or cannot be mapped.
        """
        options.pop("adapter_kwargs", None)  # AutoModel's; adapters are found without it
        source, default = str(pretrained_model_name_or_path), options.pop("torch_dtype", "float32")
        options["dtype"] = str(options.get("dtype", default)).removeprefix("torch.")
        options = {name: value for name, value in options.items() if name not in _HUB or value not in _NOT_GIVEN}
        if config is None or isinstance(config, OfficialConfig):
            config = cls.config_class.from_pretrained(source)
        _of_family(config, cls.config_class.family, source)
        return get_model(model_name_or_path=source, config=config, **options).eval()


# Options of the Hub that AutoModel passes on even where nobody gave them, and the values that they then have.
_HUB = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
_HUB += ("_commit_hash", "code_revision", "proxies", "resume_download", "use_auth_token")
_NOT_GIVEN = (None, False, "", "main", {})


def register(*models: type[OfficialModel]) -> None:
    """Make AutoConfig, AutoModel and AutoModelForCausalLM of transformers know these names. A second call does nothing.

    Official repositories name all three; AutoModelForMaskedLM knows the names, too.

    Example:
        >>> import dllm.pipelines
        >>> transformers.AutoConfig.for_model("Dream").family
        'dream'
    """
    autos = (transformers.AutoModel, transformers.AutoModelForCausalLM, transformers.AutoModelForMaskedLM)
    for model in models:
        kind = model.config_class
        transformers.AutoConfig.register(kind.model_type, kind, exist_ok=True)
        for auto in autos:
            auto.register(kind, model, exist_ok=True)


def _of_family(config: Any, family: str, source: object) -> Any:
    found = marker_of(config).get("family")
    if found != family:
        raise ValueError(f"{source} must be a model of the family {family}, got {found or type(config).__name__}")
    return config
