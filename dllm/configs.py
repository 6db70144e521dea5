"""The arguments of a run: which model, which data, and how to train on every supported version of transformers."""

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

# The value that a dropped field has.
_SAME = object()
# Fields of transformers 4 that scripts set and transformers 5 no longer has: type, default, and what they set today
# (the successor's name and value for a value that differs from the default) or None where nothing acts any more.
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
    "save_safetensors": (bool, True, {}),  # seen to by __post_init__
    "torchdynamo": (str | None, None, {"torch_compile_backend": _SAME}),
    "tpu_metrics_debug": (bool, False, None),
    "tpu_num_cores": (int | None, None, None),
    "use_legacy_prediction_loop": (bool, False, None),
    "warmup_ratio": (float, 0.0, None),  # read by get_warmup_steps below
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
    """Which model, and how it is loaded.

    Raises:
        ValueError: no model is named, or `bias` is none of LoRA's.

    Example:
        >>> ModelArguments(model_name_or_path="answerdotai/ModernBERT-base").dtype
        'bfloat16'
    """

    model_name_or_path: str = field(default="", metadata={"help": "A folder, or a name on the Hugging Face Hub."})
    dtype: str = field(default="bfloat16", metadata={"help": "Of the weights: float32, bfloat16 or float16."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Quantise the weights (needs bitsandbytes)."})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "eager, sdpa, flex_attention, flash_attention_2, ..."}
    )
    lora: bool = field(default=False, metadata={"help": "Train a LoRA adapter only (needs peft)."})
    target_modules: str = field(default="all-linear", metadata={"help": "What gets an adapter."})
    r: int = field(default=32, metadata={"help": "Rank of the adapter."})
    lora_alpha: int = field(default=64, metadata={"help": "Scale of the adapter, divided by its rank."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout of the adapter's input."})
    bias: str = field(default="none", metadata={"help": "Which biases are trained: none, all or lora_only."})
    modules_to_save: str | None = field(default=None, metadata={"help": "Modules trained whole, with commas between."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the Python code that comes with the model."})

    def __post_init__(self):
        if not self.model_name_or_path:
            raise ValueError("model_name_or_path must name a folder or a model on the Hub, got nothing")
        self.model_name_or_path = resolve_with_base_env(str(self.model_name_or_path), "BASE_MODELS_DIR")
        if self.bias not in ("none", "all", "lora_only"):
            raise ValueError(f"bias must be one of none, all, lora_only, got {self.bias!r}")


@dataclass
class DataArguments:
    """Which data, and how long a sample may be.

    Raises:
        ValueError: a length or a number of processes below 1, or an unknown way to truncate.

    Example:
        >>> DataArguments(dataset_args="data/dialogues[train:1000]").max_length
        1024
    """

    dataset_args: str | None = field(default=None, metadata={"help": "name[split:count,...], joined by + or |."})
    num_proc: int = field(default=8, metadata={"help": "Processes that prepare the data."})
    disable_caching: bool = field(default=False, metadata={"help": "Prepare the data anew in every run."})
    max_length: int = field(default=1024, metadata={"help": "Most tokens of a sample."})
    truncation: str = field(default="right", metadata={"help": "Longer samples: right, cut; filter, left out."})

    def __post_init__(self):
        for name in ("num_proc", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.truncation not in ("right", "filter"):
            raise ValueError(f"truncation must be right or filter, got {self.truncation!r}")


@dataclass
class TrainingArguments(_AnyTransformers):
    """`transformers.TrainingArguments` with the defaults of dLLM 0.1.

    Fields that the installed transformers has dropped are still taken: `warmup_ratio`, `group_by_length`, `no_cuda`,
    `adafactor` and others that have one act through their successor; where there is none, a log line says that the
    field no longer acts.
    Without any accelerator the run is on the CPU, in the same precision. Where wandb is not installed, reports to it
    are left out, and a log line says so.

    Raises:
        ValueError: what transformers refuses, or a number out of its range, which is named.

    Example:
        >>> arguments = TrainingArguments(output_dir="out", report_to="none", use_cpu=True)
        >>> arguments.learning_rate, arguments.get_warmup_steps(1000)
        (2e-05, 100)
    """

    report_to: None | str | list[str] = field(  # noqa: RUF036 (HfArgumentParser needs None first)
        default="wandb", metadata={"help": "Where to report, or none."}
    )
    overwrite_output_dir: bool = field(default=True, metadata={"help": "Kept for scripts; nothing acts on it."})
    seed: int = field(default=42, metadata={"help": "Of everything random, the masks included."})
    num_train_epochs: float = field(default=10, metadata={"help": "Passes over the data."})
    learning_rate: float = field(default=2e-5, metadata={"help": "The largest learning rate."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "How the learning rate changes."})
    per_device_train_batch_size: int = field(default=4, metadata={"help": "Samples per device and forward."})
    per_device_eval_batch_size: int = field(default=4, metadata={"help": "The same in evaluation."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Forwards per optimizer step."})
    warmup_ratio: float = field(default=0.1, metadata={"help": "Share of steps with rising learning rate."})
    bf16: bool = field(default=True, metadata={"help": "Train under bfloat16 autocast."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between log entries, or their share."})
    # the filter would report a loss of NaN as 0, and read the loss back from the device in every step to find it
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Leave NaN out of the logged loss."})
    eval_on_start: bool = field(default=False, metadata={"help": "Evaluate before the first step."})
    eval_strategy: str = field(default="steps", metadata={"help": "When to evaluate: no, steps or epoch."})
    eval_steps: float | None = field(default=0.1, metadata={"help": "Steps between evaluations, or their share."})
    save_steps: float = field(default=0.1, metadata={"help": "Steps between checkpoints, or their share."})
    save_only_model: bool = field(
        default=True, metadata={"help": "Keep no optimizer state: smaller checkpoints, from which no run resumes."}
    )

    def __post_init__(self):
        if not 0 <= self.warmup_ratio <= 1:
            raise ValueError(f"warmup_ratio must lie in [0, 1], got {self.warmup_ratio}")
        self._check_numbers()
        self._apply_dropped()
        if not self.save_safetensors:  # pickled weights run code when they are loaded
            _say_once("save_safetensors no longer acts: weights are always written as safetensors")
            self.save_safetensors = True
        if not torch.accelerator.is_available():
            # on a CPU that nobody has asked for transformers refuses bfloat16, and several processes would each train
            # for themselves
            self.use_cpu = True
        self.report_to = _without_missing_wandb(self.report_to)
        super().__post_init__()

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Steps of warm-up: `warmup_steps` where it is set, else the share `warmup_ratio` of all, rounded up."""
        if self.warmup_steps > 0:
            return super().get_warmup_steps(num_training_steps)
        return math.ceil(num_training_steps * self.warmup_ratio)

    def _check_numbers(self) -> None:
        """What transformers finds out in the middle of its work, and not always in words."""
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
        default = {known.name: known.default for known in fields(self)}
        for name, (_, _, successor) in _MISSING.items():
            if name == "warmup_ratio" or getattr(self, name) == default[name]:
                continue
            if successor is None or not _PRESENT.issuperset(successor):
                _say_once(f"{name} no longer acts: transformers {transformers.__version__} has dropped it")
                continue
            for heir, value in successor.items():
                setattr(self, heir, getattr(self, name) if value is _SAME else value)


def resolve_with_base_env(path: str, env_name: str) -> str:
    """The path under the folder that an environment variable names; as it is where the variable is not set, and where
    the path is absolute, begins with ~ or exists from here.

    Raises:
        FileNotFoundError: there is nothing of that name under the folder: a run on a machine that keeps its models in a
            folder of its own downloads nothing from the Hub by mistake.

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
    """Check that a name is one of those that are known.

    Raises:
        ValueError: it is not; the nearest one that is known is named.

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
    _say_once("wandb is not installed: nothing is reported to it")
    return [name for name in reports if name != "wandb"] or "none"


@functools.cache
def _say_once(message: str) -> None:
    _log.warning(message)
