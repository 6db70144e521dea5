"""From the settings of a task to the arguments of `python -m dllm.core.eval`, which are those of lm-eval."""

from __future__ import annotations

import os

from dllm.core.eval.settings import ERA, Settings, task_settings


def arguments_of(
    family: str,
    task: str,
    model: str,
    *,
    instruct: bool = False,
    batch_size: int = 1,
    log_samples: bool = False,
    limit: str | int | float | None = None,
    era: str = ERA,
) -> list[str]:
    """The arguments that run a published evaluation.

    Args:
        family, task, instruct, era: see :func:`task_settings`.
        model: a folder, absolute or under $BASE_MODELS_DIR, or a name on the Hub if that is not set.
        batch_size: requests of a batch.
        log_samples: write every sample.
        limit: only so many documents of each task: a number of at least 1, or a share below 1.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: unknown settings, a batch size or limit that is no number above 0, a comma in the model's path.

    Example:
        >>> words = arguments_of("dream", "mmlu", "Dream-org/Dream-v0-Base-7B")
        >>> words[words.index("--num_fewshot") + 1]
        '5'
    """
    settings = task_settings(family, task, instruct=instruct, era=era)
    if batch_size < 1:
        raise ValueError(f"BATCH must be at least 1, got {batch_size}")
    words = [*settings_arguments(settings, find_model(model)), "--batch_size", str(batch_size)]
    if log_samples:
        words.append("--log_samples")
    return words if limit is None else [*words, "--limit", _checked_limit(limit)]


def settings_arguments(settings: Settings, pretrained: str) -> list[str]:
    """The arguments that stand for `settings`, for the model at `pretrained`.

    Raises:
        ValueError: `pretrained` has a comma, which separates the arguments of a model.
    """
    if "," in pretrained:
        raise ValueError(f"the model's path must have no comma, got {pretrained}")
    words = ["--model", settings.model, "--tasks", settings.runs, "--num_fewshot", str(settings.num_fewshot)]
    pairs = {"pretrained": pretrained, **settings.model_args}
    words += ["--model_args", ",".join(f"{name}={value}" for name, value in pairs.items())]
    if settings.apply_chat_template:
        words += ["--apply_chat_template", "True"]
    words += ["--fewshot_as_multiturn", str(settings.fewshot_as_multiturn), "--seed", str(settings.seed)]
    return [*words, "--confirm_run_unsafe_code"]


def find_model(model: str) -> str:
    """The folder of a model, or its name on the Hub.

    Raises:
        FileNotFoundError: a path that is not there. A name on the Hub is OWNER/NAME, and taken as one only if
            $BASE_MODELS_DIR is not set.
    """
    found = os.path.expanduser(model)
    if os.environ.get("BASE_MODELS_DIR"):
        from dllm.configs import resolve_with_base_env  # not above: it loads transformers, which takes seconds

        found = resolve_with_base_env(found, "BASE_MODELS_DIR")
    on_the_hub = not os.path.isabs(model) and model.count("/") == 1 and not model.startswith((".", "~"))
    if not (on_the_hub or os.path.exists(found)):
        raise FileNotFoundError(f"there is no model {model}: give a folder, one under $BASE_MODELS_DIR, or OWNER/NAME")
    return found


def _checked_limit(limit: str | int | float) -> str:
    try:
        if float(limit) > 0:
            return str(limit)
    except ValueError:
        pass
    raise ValueError(f"LIMIT must be a number above 0, or None, got {limit}")
