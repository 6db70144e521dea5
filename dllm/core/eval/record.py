"""What is kept of a run beside its scores: versions, settings, data, and what the requests cost."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import re
from collections.abc import Mapping
from typing import Any

import torch
import transformers

_REVISION = re.compile(r"@([0-9a-f]{40})/")
# entries of lm-evaluation-harness's results that have one entry for each task
_BY_TASK = (
    "results",
    "groups",
    "group_subtasks",
    "configs",
    "versions",
    "n-shot",
    "higher_is_better",
    "n-samples",
    "samples",
)


def model_record(lm: Any) -> dict[str, Any]:
    """What is recorded of a :class:`dllm.core.eval.harness.DiffusionLM`, its settings, and its requests so far.

    Every field of every setting is in it, also those that nobody has set, and those of the likelihood as it is used.
    """
    parameters = sum(parameter.numel() for parameter in lm.model.parameters())
    return {
        "model_num_parameters": parameters,
        "model_dtype": str(next(lm.model.parameters()).dtype),
        "dllm": {
            "versions": versions(),
            "device": _device(lm.device),
            "world_size": lm.world_size,
            "model": lm.table.name,
            "sampler": type(lm.sampler).__name__,
            "approximate_sampler": lm.table.sampler.approximate,
            "fingerprint": lm.fingerprint,
            "max_length": lm.max_length,
            "seed": lm.run_seed,
            "settings": lm.settings.as_dict(),
            "given": sorted(lm.settings.given),
            "cut_prompts": lm.framing.cut,
            "cost": {task: usage.as_dict() for task, usage in sorted(lm.totals.items())},
        },
    }


def versions() -> dict[str, str]:
    """The versions of what computes a score.

    Example:
        >>> sorted(versions())
        ['datasets', 'dllm', 'lm_eval', 'python', 'torch', 'transformers']
    """
    named = {name: importlib.metadata.version(name) for name in ("datasets", "dllm", "lm_eval")}
    own = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
    return named | own


def data_record(tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Of each task's data: the name, the revision on the Hub, and the fingerprint of each split.

    Args:
        tasks: lm-evaluation-harness's tasks by name.
    """
    return {name: _data_of(task) for name, task in tasks.items()}


def _data_of(task: Any) -> dict[str, Any]:
    config, splits = task.config, dict(task.dataset or {})
    sources = [url for data in splits.values() for url in (getattr(data.info, "download_checksums", None) or {})]
    revisions = sorted({found for url in sources for found in _REVISION.findall(str(url))})
    return {
        "path": config.dataset_path,
        "name": config.dataset_name,
        "revision": revisions[0] if len(revisions) == 1 else revisions or None,
        "fingerprints": {split: getattr(data, "_fingerprint", None) for split, data in splits.items()},
        "rows": {split: len(data) for split, data in splits.items()},
    }


def merged(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The results of several tasks as those of one run.

    Example:
        >>> merged([{"results": {"a": 1}, "date": 5}, {"results": {"b": 2}, "date": 6}])
        {'results': {'a': 1, 'b': 2}, 'date': 5}
    """
    whole: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if name in _BY_TASK and isinstance(value, Mapping):
                whole[name] = {**whole.get(name, {}), **value}
            else:
                whole.setdefault(name, value)
    return whole


def run_record(lms: Mapping[str, Any], options: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run: of each task the options, of each model what :func:`model_record` says, and the data.

    Args:
        lms: the :class:`dllm.core.eval.harness.DiffusionLM` of each task; tasks with the same settings share one.
        options: of each task, :class:`dllm.core.eval.run.RunOptions`.
        data: of each task, :func:`data_record`.
    """
    tasks_of: dict[int, list[str]] = {}
    for task, lm in lms.items():
        tasks_of.setdefault(id(lm), []).append(task)
    return {
        "models": [{"tasks": tasks, **model_record(lms[tasks[0]])["dllm"]} for tasks in tasks_of.values()],
        "options": {task: dataclasses.asdict(chosen) for task, chosen in options.items()},
        "data": dict(data),
    }


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
