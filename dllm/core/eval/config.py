"""The settings of an evaluation: read from model_args, checked by name and by type."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from dllm.configs import ModelArguments, check_name
from dllm.core.eval.models import ALIASES, EvalModel
from dllm.core.likelihood import LikelihoodConfig
from dllm.core.likelihood.config import ORDERS
from dllm.core.samplers import BaseSamplerConfig
from dllm.core.samplers.config import at_least, one_of
from dllm.core.samplers.diffusion_gemma_config import DiffusionGemmaSamplerConfig
from dllm.values import parse_value, union_members

# fields of LikelihoodConfig that are settings here; the others follow from these, or are those of attention by blocks
LIKELIHOOD = (
    "likelihood",
    "mc_num",
    "exact_up_to",
    "sampling_eps",
    "cfg_scale",
    "right_shift_logits",
    "tokens_per_forward",
    "impl",
    "compile_body",
)
# a list as it is written where commas separate settings
_LIST = re.compile(r"\[.*\]", re.DOTALL)


@dataclass
class EvalConfig:
    """Settings of an evaluation besides those of model, sampler and likelihood.

    device: "cuda", "cuda:0", "cpu", ...; a GPU that is not there means the CPU. With several processes each takes the
        GPU of its LOCAL_RANK.
    batch_size: rows that are generated together. An answer does not depend on it. With `likelihood="as-published"` it
        is also the number of Monte-Carlo rows that are drawn together, on which the published estimate depends.
    max_length: prompt and answer together, in tokens; the model's number of positions if that is smaller.
    too_long: what is longer: "error" before anything runs, or "cut" the prompt on its left, as published for Dream.
    seed: of masks and noise; None: that of torch, which lm-evaluation-harness sets (`--seed`, default 1234).
    journal: a folder for answers as they come; a run that is given the same folder continues from there.
    add_bos_token: prompts begin with the tokenizer's BOS, for likelihood and generation.
    add_special_tokens: prompts are framed as the tokenizer frames a text, [CLS] ... [SEP] for BERT. None: all but those
        that a chat template has written.
    escape_until: stop strings are not applied and special tokens stay in the text, as in the Slurm scripts of dLLM 0.1.
    check_greedy: find out whether greedy decoding gives a target, token after token, the surest first; LAMBADA's
        accuracy is that. None: for targets that are the only one of their document, so not for choices.
    nll_type: "mc": as `likelihood` says. "ar_ftb", "ar_btf": as `likelihood="ar_ftb"` and `"ar_btf"`, which run one row
        for each token; 0.1's names.
    log_type: "ftb", the target after its context; 0.1's "btf" and "union" are refused, since what they compute is not
        documented.
    """

    device: str | None = None
    batch_size: int = 1
    max_length: int = 4096
    too_long: str = "error"
    seed: int | None = None
    journal: str | None = None
    add_bos_token: bool = False
    add_special_tokens: bool | None = None
    escape_until: bool = False
    check_greedy: bool | None = None
    nll_type: str = "mc"
    log_type: str = "ftb"

    def check(self) -> None:
        """Check the settings.

        Raises:
            TypeError, ValueError: a setting breaks a rule.
        """
        at_least(1, "batch_size", self.batch_size)
        at_least(1, "max_length", self.max_length)
        one_of(("error", "cut"), "too_long", self.too_long)
        one_of(("mc", *ORDERS), "nll_type", self.nll_type)
        if self.log_type != "ftb":
            raise ValueError(
                f"log_type must be ftb: what 0.1 computes as btf and union is not documented, got {self.log_type!r}"
            )

    def checks_greedy(self, alone: bool) -> bool:
        """Whether greedy decoding is tried for a target that is, or is not, the only one of its document."""
        return alone if self.check_greedy is None else self.check_greedy


class EvalSettings(NamedTuple):
    """All settings of an evaluation.

    eval, model, sampler, likelihood: by what they are for.
    given: the names that the user gave.
    """

    eval: EvalConfig
    model: ModelArguments
    sampler: BaseSamplerConfig | DiffusionGemmaSamplerConfig
    likelihood: LikelihoodConfig
    given: frozenset[str]

    def as_dict(self) -> dict[str, Any]:
        """Every setting by the name of its part and its own, for records.

        Example:
            >>> from dllm.core.eval.models import model_named
            >>> read_settings(model_named("bert"), {"pretrained": "some/model"}).as_dict()["sampler"]["steps"]
            128
        """
        parts = self._asdict()
        del parts["given"]
        return {name: dataclasses.asdict(part) for name, part in parts.items()}


def read_settings(model: EvalModel, given: Mapping[str, Any]) -> EvalSettings:
    """Read the settings of an evaluation.

    Args:
        model: whose defaults and second names apply.
        given: values by name, of any field of :class:`EvalConfig`, :class:`dllm.configs.ModelArguments`, the sampler's
            config and :class:`dllm.core.likelihood.LikelihoodConfig`. A value may be text, as on a command line; a list
            is written `[1;2]`. A setting that two parts share, such as `cfg_scale`, is set in both.

    Raises:
        TypeError, ValueError: an unknown name (the message has the nearest), a value that does not fit, or a setting
            that breaks its rule.

    Example:
        >>> from dllm.core.eval.models import model_named
        >>> words = {"pretrained": "some/model", "cfg": 0.5, "suppress_tokens": "[126081;126348]"}
        >>> settings = read_settings(model_named("llada"), words)
        >>> settings.sampler.suppress_tokens, settings.likelihood.cfg_scale, settings.sampler.steps
        ([126081, 126348], 0.5, 1024)
        >>> read_settings(model_named("llada"), {"pretrained": "some/model", "max_new_token": 3})
        Traceback (most recent call last):
        ...
        ValueError: llada knows no 'max_new_token': did you mean 'max_new_tokens'?
    """
    named = _by_first_name(model, given)
    values = dict(model.defaults) | named
    values.setdefault("model_name_or_path", "")
    values.setdefault("stop_at_eos", True)  # what follows an EOS is not read
    values.setdefault("dtype", "bfloat16" if torch.cuda.is_available() else "float32")
    made = {
        part: {name: _parsed(name, values[name], kind) for name, kind in kinds.items() if name in values}
        for part, kinds in _fields(model).items()
    }
    eval_config, sampler = EvalConfig(**made["eval"]), model.sampler.config_class(**made["sampler"])
    eval_config.check()
    sampler.check()
    if eval_config.nll_type != "mc":
        if "likelihood" in named:
            raise ValueError(
                f"likelihood must not be given beside nll_type, got {named['likelihood']} and {eval_config.nll_type}"
            )
        made["likelihood"]["likelihood"] = eval_config.nll_type
    published = made["likelihood"].get("likelihood") == "as-published"
    batch = {"batch_size": eval_config.batch_size} if published else {}
    likelihood = LikelihoodConfig(form=model.form, **made["likelihood"], **batch)
    likelihood = dataclasses.replace(likelihood, mc_num=likelihood.masks)  # records and keys hold the number itself
    return EvalSettings(eval_config, ModelArguments(**made["model"]), sampler, likelihood, frozenset(named))


def _fields(model: EvalModel) -> dict[str, dict[str, Any]]:
    """The settings of each part, {name: type}."""
    parts = {"eval": EvalConfig, "model": ModelArguments, "sampler": model.sampler.config_class}
    fields = {part: _types(cls) for part, cls in parts.items()}
    for name in ("return_dict", "keep_histories", "max_length"):
        fields["sampler"].pop(name, None)
    of_likelihood = _types(LikelihoodConfig)
    used = () if model.no_likelihood else LIKELIHOOD
    return fields | {"likelihood": {name: of_likelihood[name] for name in used}}


def _types(cls: type) -> dict[str, Any]:
    kinds = typing.get_type_hints(cls)
    return {field.name: kinds[field.name] for field in dataclasses.fields(cls)}


def _by_first_name(model: EvalModel, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given values, each under the first name of its setting."""
    second = ALIASES | dict(model.aliases)
    known = {name for part in _fields(model).values() for name in part}
    named: dict[str, Any] = {}
    for name, value in given.items():
        check_name(model.name, name, sorted(known | {alias for alias, first in second.items() if first in known}))
        first = second.get(name, name)
        if first in named:
            raise ValueError(f"{first} must be given once, got it under two names")
        named[first] = value
    return named


def _parsed(name: str, value: Any, kind: Any) -> Any:
    """A value in the type of its field."""
    types = union_members(kind)
    if isinstance(value, str) and _LIST.fullmatch(value.strip()):
        value = value.strip().replace(";", ",")
    is_list = any(typing.get_origin(one) is list for one in types)
    if is_list and type(value) is int:
        value = [value]
    if str in types and isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)  # a folder may be called 7
    if isinstance(value, tuple):
        value = list(value)
    return parse_value(name, value, kind)
