"""The arguments of a training run as dataclasses: model, data, and training on every supported transformers."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import logging
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any

import torch
import transformers

_log = logging.getLogger("dllm")

# stands for the value of the dropped field itself
_SAME = object()
# Fields of transformers 4 that transformers 5 has dropped: type, default, and the successor that a value other than the
# default sets, as {name: value}; None if there is no successor.
_DROPPED: dict[str, tuple[Any, Any, dict[str, Any] | None]] = {
    "adafactor": (bool, False, {"optim": "adafactor"}),
    "group_by_length": (bool, False, {"train_sampling_strategy": "group_by_length"}),
    "no_cuda": (bool, False, {"use_cpu": True}),
    "use_mps_device": (bool, False, None),
    "fp16_backend": (str, "auto", None),
    "fp16_opt_level": (str, "O1", None),
    "fsdp_min_num_params": (int, 0, None),
    "fsdp_transformer_layer_cls_to_wrap": (str | None, None, None),
    "half_precision_backend": (str, "auto", None),
    "include_inputs_for_metrics": (bool, False, None),
    "include_tokens_per_second": (bool, False, None),
    "jit_mode_eval": (bool, False, None),
    "logging_dir": (str | None, None, None),
    "overwrite_output_dir": (bool, True, None),
    "mp_parameters": (str, "", None),
    "past_index": (int, -1, None),
    "per_gpu_eval_batch_size": (int | None, None, {"per_device_eval_batch_size": _SAME}),
    "per_gpu_train_batch_size": (int | None, None, {"per_device_train_batch_size": _SAME}),
    "push_to_hub_model_id": (str | None, None, {"hub_model_id": _SAME}),
    "push_to_hub_organization": (str | None, None, None),
    "push_to_hub_token": (str | None, None, {"hub_token": _SAME}),
    "ray_scope": (str | None, "last", None),
    "save_safetensors": (bool, True, {}),  # handled by __post_init__
    "torchdynamo": (str | None, None, {"torch_compile_backend": _SAME}),
    "tpu_metrics_debug": (bool, False, None),
    "tpu_num_cores": (int | None, None, None),
    "use_legacy_prediction_loop": (bool, False, None),
    "warmup_ratio": (float, 0.0, None),  # used by get_warmup_steps below
}
_PRESENT = {known.name for known in fields(transformers.TrainingArguments)}
_MISSING = {name: entry for name, entry in _DROPPED.items() if name not in _PRESENT}

_AnyTransformers = make_dataclass(
    "_AnyTransformers",
    [(name, kind, field(default=default)) for name, (kind, default, _) in _MISSING.items()],
    bases=(transformers.TrainingArguments,),
)


@dataclass
class ModelArguments:
    """The model, and how to load it.

    Raises:
        ValueError: `model_name_or_path` is empty, `bias` is unknown to LoRA, or `quantize` is unknown or stands beside
            `load_in_4bit` or `lora`.

    Example:
        >>> ModelArguments(model_name_or_path="answerdotai/ModernBERT-base").dtype
        'bfloat16'
    """

    model_name_or_path: str = field(default="", metadata={"help": "A folder, or a name on the Hugging Face Hub."})
    dtype: str = field(default="bfloat16", metadata={"help": "Dtype of the weights: float32, bfloat16 or float16."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Quantise the weights (needs bitsandbytes)."})
    quantize: str | None = field(
        default=None, metadata={"help": "int8: weights and products of 8 bits, approximate; not for training."}
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "eager, sdpa, flex_attention, flash_attention_2, ..."}
    )
    device_map: str | None = field(
        default=None, metadata={"help": "Where layers are put: auto, balanced, sequential, or one device for all."}
    )
    lora: bool = field(default=False, metadata={"help": "Train a LoRA adapter only (needs peft)."})
    target_modules: str = field(default="all-linear", metadata={"help": "Modules that get an adapter."})
    r: int = field(default=32, metadata={"help": "Rank of the adapter."})
    lora_alpha: int = field(default=64, metadata={"help": "LoRA alpha: adapters are scaled by lora_alpha / r."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout on the adapter's input."})
    bias: str = field(default="none", metadata={"help": "Biases to train: none, all or lora_only."})
    modules_to_save: str | None = field(
        default=None, metadata={"help": "Modules to train in full, separated by commas."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run Python code that comes with the model."})

    def __post_init__(self):
        if not self.model_name_or_path:
            raise ValueError("model_name_or_path must name a folder or a model on the Hub, got nothing")
        self.model_name_or_path = resolve_with_base_env(str(self.model_name_or_path), "BASE_MODELS_DIR")
        if self.bias not in ("none", "all", "lora_only"):
            raise ValueError(f"bias must be one of none, all, lora_only, got {self.bias!r}")
        if self.quantize not in (None, "int8"):
            raise ValueError(f"quantize must be int8 or nothing, got {self.quantize!r}")
        if self.quantize and (self.load_in_4bit or self.lora):
            other = "load_in_4bit" if self.load_in_4bit else "lora"
            raise ValueError(f"quantize={self.quantize} must not be given beside {other}")


@dataclass
class DataArguments:
    """The data, and the maximum length of a sample.

    Raises:
        ValueError: `num_proc` or `max_length` is below 1, or `truncation` is unknown.

    Example:
        >>> DataArguments(dataset_args="data/dialogues[train:1000]").max_length
        1024
    """

    dataset_args: str | None = field(
        default=None, metadata={"help": "Data sets as name[split:count,...], joined by + or |."}
    )
    num_proc: int = field(default=8, metadata={"help": "Number of processes that prepare the data."})
    disable_caching: bool = field(default=False, metadata={"help": "Do not cache prepared data."})
    max_length: int = field(default=1024, metadata={"help": "Maximum number of tokens of a sample."})
    truncation: str = field(default="right", metadata={"help": "Longer samples: right cuts them, filter drops them."})

    def __post_init__(self):
        for name in ("num_proc", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.truncation not in ("right", "filter"):
            raise ValueError(f"truncation must be right or filter, got {self.truncation!r}")


@dataclass
class TrainingArguments(_AnyTransformers):
    """`transformers.TrainingArguments` with the defaults of dLLM 0.1.

    Fields that the installed transformers has dropped are still accepted. A field with a successor sets that one:
    `group_by_length`, `no_cuda`, `adafactor` and others; `warmup_ratio` works as before. A field without a successor
    has no effect, and a warning says so.
    Without an accelerator the run uses the CPU, in the same precision. If wandb is not installed, it is removed from
    `report_to`, with a warning.

    Raises:
        ValueError: a number is out of range, or transformers rejects a value.

    Example:
        >>> arguments = TrainingArguments(output_dir="out", report_to="none", use_cpu=True)
        >>> arguments.learning_rate, arguments.get_warmup_steps(1000)
        (2e-05, 100)
    """

    report_to: None | str | list[str] = field(  # noqa: RUF036 (HfArgumentParser needs None first)
        default="wandb", metadata={"help": "Where to report to, or none."}
    )
    overwrite_output_dir: bool = field(default=True, metadata={"help": "Has no effect; older scripts set it."})
    seed: int = field(default=42, metadata={"help": "Seed of all random numbers, masks included."})
    num_train_epochs: float = field(default=10, metadata={"help": "Passes over the data."})
    learning_rate: float = field(default=2e-5, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    per_device_train_batch_size: int = field(default=4, metadata={"help": "Samples per device and forward pass."})
    per_device_eval_batch_size: int = field(default=4, metadata={"help": "The same for evaluation."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Forward passes per optimizer step."})
    warmup_ratio: float = field(default=0.1, metadata={"help": "Fraction of all steps used for warm-up."})
    bf16: bool = field(default=True, metadata={"help": "Train under bfloat16 autocast."})
    logging_steps: float = field(
        default=10, metadata={"help": "Steps between log entries; below 1: as a fraction of all."}
    )
    # the filter reports a loss of NaN as 0, and waits for the device at every step to detect it
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Leave NaN out of the logged loss."})
    eval_on_start: bool = field(default=False, metadata={"help": "Evaluate before the first step."})
    eval_strategy: str = field(default="steps", metadata={"help": "When to evaluate: no, steps or epoch."})
    eval_steps: float | None = field(
        default=0.1, metadata={"help": "Steps between evaluations; below 1: as a fraction of all."}
    )
    save_steps: float = field(
        default=0.1, metadata={"help": "Steps between checkpoints; below 1: as a fraction of all."}
    )
    save_only_model: bool = field(
        default=True, metadata={"help": "Save no optimizer state: smaller checkpoints, which cannot be resumed."}
    )

    def __post_init__(self):
        if not 0 <= self.warmup_ratio <= 1:
            raise ValueError(f"warmup_ratio must lie in [0, 1], got {self.warmup_ratio}")
        self._check_numbers()
        self._apply_dropped()
        if not self.save_safetensors:  # loading pickled weights can run code
            _warn_once("save_safetensors no longer acts: weights are always written as safetensors")
            self.save_safetensors = True
        if not torch.accelerator.is_available():
            # otherwise transformers rejects bfloat16, and several processes would not train together
            self.use_cpu = True
        self.report_to = _without_missing_wandb(self.report_to)
        super().__post_init__()

    @property
    def device(self) -> torch.device:
        """The device of this process. A CPU has no index: accelerate gives ranks "cpu:0", and torch cannot load the
        optimizer of a checkpoint to that, which transformers 4 asks for."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Number of warm-up steps: `warmup_steps` if it is above 0, else ceil(`warmup_ratio` * num_training_steps)."""
        if self.warmup_steps > 0:
            return super().get_warmup_steps(num_training_steps)
        return math.ceil(num_training_steps * self.warmup_ratio)

    def _check_numbers(self) -> None:
        """Check numbers that transformers checks late or with an unclear message."""
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate >= 0):
            raise ValueError(f"learning_rate must be finite and at least 0, got {self.learning_rate}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must lie in [0, 2^32), got {self.seed}")
        if self.dataloader_num_workers < 0:
            raise ValueError(f"dataloader_num_workers must be at least 0, got {self.dataloader_num_workers}")

    def _apply_dropped(self) -> None:
        """Set the successors of dropped fields that differ from their default."""
        default = {known.name: known.default for known in fields(self)}
        for name, (_, _, successor) in _MISSING.items():
            if name == "warmup_ratio" or getattr(self, name) == default[name]:
                continue
            if successor is None or not _PRESENT.issuperset(successor):
                _warn_once(f"{name} no longer acts: transformers {transformers.__version__} has dropped it")
                continue
            for new_name, value in successor.items():
                setattr(self, new_name, getattr(self, name) if value is _SAME else value)


def resolve_with_base_env(path: str, env_name: str) -> str:
    """Look up a path in the base folder that an environment variable names.

    Returns the path unchanged if the variable is not set, or if the path is absolute, begins with ~ or exists in the
    working directory.

    Raises:
        FileNotFoundError: the base folder has no such path. This keeps a run that expects local models from downloading
            them from the Hub by mistake.

    Example:
        >>> resolve_with_base_env("answerdotai/ModernBERT-base", "NO_SUCH_VARIABLE")
        'answerdotai/ModernBERT-base'
    """
    base = os.environ.get(env_name, "").strip()
    if not base or os.path.isabs(path) or path.startswith("~") or os.path.exists(path):
        return path
    inside = os.path.join(base, path)
    if not os.path.exists(inside):
        raise FileNotFoundError(f"Path not found: {inside} ({env_name} is set: there must be a {path} under it)")
    return inside


def check_name(what: str, name: str, known: Iterable[str]) -> None:
    """Check that `name` is one of the known names.

    Raises:
        ValueError: it is not; the message suggests the most similar known name.

    Example:
        >>> check_name("the configuration", "learning_rat", ["learning_rate", "seed"])
        Traceback (most recent call last):
        ...
        ValueError: the configuration knows no 'learning_rat': did you mean 'learning_rate'?
    """
    known = list(known)
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
        raise ValueError(f"{what} knows no {name!r}" + (f": did you mean {near[0]!r}?" if near else ""))


def _without_missing_wandb(report_to: str | list[str] | None) -> str | list[str] | None:
    reports = [report_to] if isinstance(report_to, str) else list(report_to or ())
    if "wandb" not in reports or importlib.util.find_spec("wandb") is not None:
        return report_to
    _warn_once("wandb is not installed: it is removed from report_to")
    return [name for name in reports if name != "wandb"] or "none"


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning(message)
