"""Settings of the published evaluations, task by task, as data: shots, length, temperature, and what lm-eval is told.

A file FAMILY-ERA.yaml holds the lines of a family. An era is the way in which numbers were published: "slurm" is the
`scripts/eval.slurm.sh` of dLLM 0.1. Its later `examples/*/eval.sh` had other settings, which are not known here.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dllm.core.eval.settings.tables import Table, tables

ERA = "slurm"
SEED = 1234


@dataclass(frozen=True, slots=True)
class Settings:
    """How a task is run in an era.

    family, era, task, instruct: what was asked for.
    runs: the task's name for lm-eval. It differs from `task` where the published run had changed a task of lm-eval:
        here the changed task has a name of its own, and lm-eval's stays what it is.
    model: the model's name for lm-eval.
    num_fewshot: number of shots.
    model_args: arguments of the model besides `pretrained`. They go over the generation settings of the task, which the
        published runs ignored.
    apply_chat_template: whether prompts are conversations: for instruct models.
    fewshot_as_multiturn: False, one user message with all shots, as published; lm-eval 0.4.13 would default to True.
    seed: of Python, numpy, torch and the shots.
    source: where the settings were read.
    """

    family: str
    era: str
    task: str
    instruct: bool
    runs: str
    model: str
    num_fewshot: int
    model_args: Mapping[str, Any]
    apply_chat_template: bool
    source: str
    fewshot_as_multiturn: bool = False
    seed: int = SEED


def task_settings(family: str, task: str, *, instruct: bool, era: str = ERA) -> Settings:
    """The settings of `task` for a model of `family`.

    Args:
        family: "bert", "dream" or "llada".
        task: the task's name in the published runs.
        instruct: whether the model is an instruct model, which has other lines and a chat template.
        era: "slurm".

    Raises:
        ValueError: an unknown family, era or task. The message lists what there is, and names the nearest.

    Example:
        >>> settings = task_settings("dream", "gsm8k_cot", instruct=False)
        >>> settings.num_fewshot, settings.model_args["max_new_tokens"], settings.model_args["top_p"]
        (8, 256, 0.95)
        >>> task_settings("llada", "mmlu_generative", instruct=True).runs
        'mmlu_generative_dllm'
    """
    table = settings_table(family, era)
    lines = table.lines(instruct)
    if task not in lines:
        kind = f"{family} instruct" if instruct else f"{family} base"
        raise ValueError(f"the settings of {kind} models ({era}) {_not_among(task, lines, 'task')}")
    line = lines[task]
    return Settings(
        family=family,
        era=era,
        task=task,
        instruct=instruct,
        runs=line.get("runs", task),
        model=table.model,
        num_fewshot=line["shots"],
        model_args=_model_args(line) | table.model_args,
        apply_chat_template=instruct,
        source=table.source,
    )


def settings_table(family: str, era: str = ERA) -> Table:
    """The lines of a family in an era.

    Raises:
        ValueError: an unknown family or era.

    Example:
        >>> len(settings_table("dream").lines(instruct=False)), len(settings_table("dream").lines(instruct=True))
        (13, 10)
    """
    known = tables()
    families = sorted({name for name, _ in known})
    if family not in families:
        raise ValueError(f"the settings {_not_among(family, families, 'family')}")
    eras = [name for of, name in known if of == family]
    if era not in eras:
        raise ValueError(f"the settings of {family} {_not_among(era, eras, 'era')}")
    return known[family, era]


def _not_among(name: str, known: Mapping[str, Any] | list[str], kind: str) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" (nearest: {near[0]})" if near else ""
    return f"have no {kind} {name!r}{hint}; there are: {', '.join(known)}"


def _model_args(line: Mapping[str, Any]) -> dict[str, Any]:
    args = {name: line[name] for name in ("mc_num", "check_greedy", "block_size", "cfg_scale") if name in line}
    if "new_tokens" in line:
        args |= {"max_new_tokens": line["new_tokens"], "steps": line.get("steps", line["new_tokens"])}
    return args | {name: line[name] for name in ("temperature", "top_p") if name in line}
