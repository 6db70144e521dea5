"""Names, keywords and messages that scripts for dLLM 0.1 rely on, beside those that have tests of their own."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

import dllm
from dllm.configs import DataArguments, ModelArguments
from dllm.core.samplers import MDLMSampler
from dllm.core.schedulers import (
    CosineAlphaScheduler,
    CubicKappaScheduler,
    LinearAlphaScheduler,
    get_alpha_scheduler_class,
    get_kappa_scheduler_class,
)

PLACES = {
    "dllm.core.samplers": ("MDLMSampler", "BD3LMSampler", "add_gumbel_noise", "get_num_transfer_tokens"),
    "dllm.core.trainers": ("MDLMConfig", "MDLMTrainer", "BD3LMConfig", "BD3LMTrainer"),
    "dllm.core.trainers.utils": ("NLLMetric", "PPLMetric", "OnEvaluateMetricsCallback"),
    "dllm.core.trainers.utils.metrics": ("NLLMetric", "PPLMetric"),
    "dllm.core.trainers.utils.meters": ("OnEvaluateMetricsCallback",),
    "dllm.utils.utils": ("load_peft", "parse_spec", "resolve_with_base_env"),
    "dllm.utils": ("load_peft",),
}


@pytest.mark.parametrize("place, name", [(place, name) for place, names in PLACES.items() for name in names])
def test_names(place, name):
    assert hasattr(__import__(place, fromlist=[name]), name)


KEYWORDS = {
    "prepend_bos": "batch bos_token_id label_pad_token_id",
    "parse_spec": "spec",
    "resolve_with_base_env": "path env_name",
    "print_args_main": "model_args data_args training_args",
    "sample_trim": "tokenizer seq_ids_list input_ids_list",
}


@pytest.mark.parametrize("name", KEYWORDS)
def test_keywords(name):
    parameters = inspect.signature(getattr(dllm.utils, name)).parameters
    assert [known for known in KEYWORDS[name].split() if known not in parameters] == []


def test_arguments_by_name(capsys):
    assert dllm.utils.parse_spec(spec="a=1,b=2") == (None, {"a": "1", "b": "2"})
    assert dllm.utils.parse_spec(spec="a[b:2]") == ("a", {"b": 2})
    assert LinearAlphaScheduler().alpha(i=0.25) == 0.75 == -0.75 * LinearAlphaScheduler().alpha_derivative(i=0.25)
    assert CosineAlphaScheduler().weight(i=0.5) == pytest.approx(math.pi / 2, abs=1e-5)
    assert CubicKappaScheduler().kappa(t=0.5) == 0.5
    batch = dllm.utils.prepend_bos(batch={"input_ids": torch.tensor([[5]])}, bos_token_id=1)
    assert batch["input_ids"].tolist() == [[1, 5]]
    model, data = ModelArguments(model_name_or_path="a/b"), DataArguments(max_length=7)
    dllm.utils.print_args_main(model_args=model, data_args=data)
    told = capsys.readouterr().out
    assert "model_name_or_path: 'a/b'" in told and "max_length: 7" in told
    assert list(inspect.signature(MDLMSampler).parameters)[:2] == ["model", "tokenizer"]


@pytest.mark.parametrize(
    "call, key_words",
    [
        (lambda: LinearAlphaScheduler().alpha(1.1), "not in"),
        (lambda: CubicKappaScheduler().kappa(-0.1), "not in"),
        (lambda: LinearAlphaScheduler().reverse_mask_prob(s=0.6, t=0.4), "s < t"),
        (lambda: get_alpha_scheduler_class("none"), "Unknown scheduler"),
        (lambda: get_kappa_scheduler_class("none"), "Unknown scheduler"),
        (lambda: dllm.utils.parse_spec("x[no_colon]"), "expected key:value"),
    ],
)
def test_key_words_of_errors(call, key_words):
    with pytest.raises(ValueError, match=key_words):
        call()


def test_a_base_folder_without_the_path(monkeypatch, tmp_path):
    (tmp_path / "there").mkdir()
    monkeypatch.setenv("BASE_X", str(tmp_path))
    assert dllm.utils.resolve_with_base_env(path="there", env_name="BASE_X") == str(tmp_path / "there")
    for kept in (str(tmp_path), ".", "~/models"):
        assert dllm.utils.resolve_with_base_env(kept, "BASE_X") == kept
    with pytest.raises(FileNotFoundError, match=r"Path not found: .*missing .BASE_X is set"):
        dllm.utils.resolve_with_base_env("missing", "BASE_X")
    monkeypatch.delenv("BASE_X")
    assert dllm.utils.resolve_with_base_env("missing", "BASE_X") == "missing"
