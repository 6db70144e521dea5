"""transformers' auto classes know the official model types: `AutoModel.from_pretrained(folder)` loads them as we do.

Importing dllm registers them when transformers has its auto classes (:mod:`dllm.after_import`). For the auto classes
of transformers 5 they take precedence over code that comes with a checkpoint. This module imports no more than
transformers has loaded by then; the rest is imported when a model is loaded.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import TYPE_CHECKING, Any

from transformers.configuration_utils import PretrainedConfig

if TYPE_CHECKING:
    from torch import nn

MODEL_TYPES = ("llada", "lladamoe", "Dream", "rnd1", "a2d-qwen2", "a2d-qwen3", "a2d-llama", "llada2_moe")
AUTO_CLASSES = ("AutoModel", "AutoModelForCausalLM", "AutoModelForMaskedLM")
OPTIONS = ("attn_implementation", "device_map", "dtype", "max_memory", "offload_folder", "quantization_config")
# what the auto classes add, or what has no meaning here
UNUSED = ("_commit_hash", "_from_auto", "adapter_kwargs", "low_cpu_mem_usage", "trust_remote_code", "use_safetensors")


class OfficialConfig(PretrainedConfig):
    """The configuration of an official checkpoint, with the official fields. A subclass has the model type."""

    use_cache = False
    rope_scaling = None  # a field of its own: the property of transformers 5 would move it to rope_parameters

    def __init__(self, **fields: Any):
        super().__init__()
        fields = {name: value for name, value in fields.items() if name != "attn_implementation" or value is not None}
        self.given = sorted(fields)
        for name, value in fields.items():
            setattr(self, name, value)

    def official(self) -> dict[str, Any]:
        """The fields as config.json has them."""
        return {name: value for name, value in self.to_dict().items() if name in self.given} | {
            "model_type": self.model_type
        }


class OfficialModel:
    """What the auto classes load for an official checkpoint: a model of transformers' own class. Never an instance."""

    config_class: type = OfficialConfig

    @classmethod
    def from_pretrained(cls, source: str, *arguments: Any, config: Any = None, **options: Any) -> nn.Module:
        """The model of an official checkpoint, bidirectional, without remote code.

        Args:
            source: a folder or a name on the Hub.
            arguments: none.
            config: what AutoConfig has read, perhaps with changes; by default the checkpoint's own.
            options: attn_implementation, device_map, dtype (or torch_dtype), max_memory, offload_folder,
                quantization_config.

        Raises:
            TypeError: another option, or a configuration of another type.
            OSError, ValueError: as :func:`dllm.models.get_model`.
        """
        from dllm.models.bidirectional import bidirectional
        from dllm.models.official import load, recognise
        from dllm.models.official.prepare import prepared
        from dllm.models.sources import check_source, file_at, mapped_config, reading

        if "torch_dtype" in options:
            options["dtype"] = options.pop("torch_dtype")
        given = {name: value for name, value in options.items() if value is not None and name not in UNUSED}
        unknown = [name for name in given if name not in OPTIONS]
        if unknown or arguments:
            raise TypeError(
                f"an official checkpoint takes the options {', '.join(OPTIONS)}; got {unknown or arguments}"
            )
        source = check_source(str(source))
        if config is None:
            config = cls.config_class.from_pretrained(source)
        if not isinstance(config, OfficialConfig):
            raise TypeError(f"config must be one that AutoConfig read at {source}, got a {type(config).__name__}")
        if (attention := config._attn_implementation) is not None:  # where AutoConfig has put the option
            given.setdefault("attn_implementation", attention)
        mapping = recognise(config.official())
        with reading("weights", source):
            mapped = mapped_config(mapping, source)
            model = load.load(mapping, mapped, functools.partial(file_at, source), source, **given)
        return prepared(bidirectional(model))

    @classmethod
    def _from_config(cls, config: OfficialConfig, **options: Any) -> nn.Module:
        """A model with random weights; the name is that of transformers."""
        import transformers

        from dllm.models.bidirectional import bidirectional
        from dllm.models.official import recognise
        from dllm.models.official.prepare import prepared

        mapping = recognise(config.official())
        kind = getattr(transformers, mapping.model_class)
        return prepared(bidirectional(kind._from_config(mapping.config(), **options)))


@functools.cache
def classes() -> dict[str, tuple[type[OfficialConfig], type[OfficialModel]]]:
    """The configuration and the model class of each model type.

    Example:
        >>> config, model = classes()["a2d-qwen3"]
        >>> config.model_type, model.config_class is config
        ('a2d-qwen3', True)
    """
    made = {}
    for model_type in MODEL_TYPES:
        name = "Official" + "".join(part.capitalize() for part in model_type.replace("-", "_").split("_"))
        # transformers 5 makes a dataclass, with another __init__, of every class without an __init__ of its own
        own = {"model_type": model_type, "__init__": OfficialConfig.__init__}
        config = type(f"{name}Config", (OfficialConfig,), own)
        made[model_type] = config, type(name, (OfficialModel,), {"config_class": config})
    return made


def register_configurations(module: ModuleType) -> None:
    """Make the model types known to AutoConfig. Those that transformers has itself are left to it.

    Args:
        module: `transformers.models.auto.configuration_auto`.
    """
    for model_type, (config, _) in classes().items():
        if model_type not in module.CONFIG_MAPPING:
            module.AutoConfig.register(model_type, config)


def register_models(module: ModuleType) -> None:
    """Make the model types known to AutoModel, AutoModelForCausalLM and AutoModelForMaskedLM.

    Args:
        module: `transformers.models.auto.modeling_auto`.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    for model_type, (config, model) in classes().items():
        if CONFIG_MAPPING[model_type] is config:
            for auto_class in AUTO_CLASSES:
                getattr(module, auto_class).register(config, model)
