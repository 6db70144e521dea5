"""Official names of configurations and models, whose objects are transformers' own.

No modelling file stands behind these names. A configuration has the fields of the official config.json; a model is the
class of transformers that :mod:`dllm.models.official` maps the checkpoint to, made bidirectional.
"""

from __future__ import annotations

from typing import Any, ClassVar

import transformers
from torch import nn

from dllm import auto_classes
from dllm.configs import ModelArguments
from dllm.models import get_config, new_model
from dllm.models.official import marker_of, recognise


class OfficialConfig(auto_classes.OfficialConfig):
    """A configuration with the fields of an official config.json. Subclasses set `model_type` and the others below.

    `from_pretrained` does not return one of these, but the configuration of transformers that the file is mapped to,
    which :func:`dllm.models.get_model` takes.

    Attributes:
        family: the family that a folder must be of.
        model_type: of the official config.json.
        base_type: transformers' model type, where a family has several names; else None.
    """

    family: ClassVar[str]
    base_type: ClassVar[str | None] = None

    def __init_subclass__(cls, **options: Any):
        if "__init__" not in vars(cls):  # transformers 5 would make a dataclass, with another __init__
            cls.__init__ = auto_classes.OfficialConfig.__init__
        super().__init_subclass__(**options)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **fields: Any) -> transformers.PretrainedConfig:
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
        return recognise(self.official()).config()


class _IsOfficial(type):
    """The type of the model names: a model is an instance of the name of its family and architecture."""

    def __instancecheck__(cls, instance: Any) -> bool:
        config, kind = getattr(instance, "config", None), cls.config_class
        if not isinstance(instance, nn.Module) or marker_of(config).get("family") != kind.family:
            return False
        return kind.base_type is None or config.model_type == kind.base_type


class OfficialModel(auto_classes.OfficialModel, metaclass=_IsOfficial):
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
    def from_pretrained(cls, source: str, *arguments: Any, config: Any = None, **options: Any) -> nn.Module:
        """The checkpoint in a folder or at a name on the Hub, without remote code.

        Args:
            source: the folder or the name.
            arguments: none.
            config: what `AutoConfig.from_pretrained` has read there, perhaps with changes.
            options: of :meth:`dllm.auto_classes.OfficialModel.from_pretrained`, such as dtype and device_map.

        Raises:
            OSError: the folder or the name does not exist, or its weights are missing or damaged.
            TypeError: an option is unknown, or `config` is of another type.
            ValueError: it is of another family, or cannot be mapped.
        """
        cls.config_class.from_pretrained(source)
        if config is None:
            config = transformers.AutoConfig.from_pretrained(source)
        return super().from_pretrained(source, *arguments, config=config, **options)


def _of_family(config: Any, family: str, source: object) -> Any:
    found = marker_of(config).get("family")
    if found != family:
        raise ValueError(f"{source} must be a model of the family {family}, got {found or type(config).__name__}")
    return config
