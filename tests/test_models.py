"""Models as they lie on a disk: families, adapters, safetensors only, half-written files, code that comes with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from dllm.configs import ModelArguments, TrainingArguments
from dllm.demo.shipped import SHIPPED
from dllm.models import get_model, get_tokenizer, load_peft
from dllm.models.families import FAMILIES, family_of


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path / "model", ignore=shutil.ignore_patterns("*.png", "*.md")))


def told(folder: Path, **fields) -> None:
    """Change fields of a folder's config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize(
    "model_type, mask, end", [("llada", "<|mdm_mask|>", "<|eot_id|>"), ("a2d-qwen3", "<|mask|>", "<|im_end|>")]
)
def test_a_familys_own_tokens(folder, model_type, mask, end):
    """Read without any class for the model's type, and without running code that comes with it."""
    bare = AutoTokenizer.from_pretrained(SHIPPED)
    bare.mask_token, bare.chat_template = None, "{{ messages }}"
    bare.save_pretrained(folder)
    told(folder, model_type=model_type, vocab_size=len(bare) + 1)
    tokenizer = get_tokenizer(model_name_or_path=folder)
    assert (tokenizer.mask_token, tokenizer.eot_token) == (mask, end) and tokenizer.mask_token_id is not None
    assert tokenizer.chat_template == "{{ messages }}"


def test_families():
    types = [model_type for family in FAMILIES for model_type in family.model_types]
    assert len(set(types)) == len(types)
    names = {"bert", "llada", "llada_moe", "llada2", "dream", "rnd1", "a2d", "a2d-llama"}
    names |= {"diffusion_gemma", "nemotron_diffusion"}
    assert {family.name for family in FAMILIES} == names
    assert family_of("gpt2") is None and family_of(None) is None


def test_code_that_comes_with_a_model_is_not_run(folder, monkeypatch):
    ran = folder.parent / "ran"
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w')\n")
    told(folder, model_type="llada", auto_map={"AutoConfig": "code.Config", "AutoModel": "code.Model"})
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # what transformers would ask
    with pytest.raises(ValueError, match="trust_remote_code"):
        get_model(model_name_or_path=str(folder))
    assert not ran.exists()


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "a/b/c"])
def test_a_missing_folder(name):
    for get in (get_model, get_tokenizer):
        with pytest.raises(FileNotFoundError, match=f"there is no folder {name}"):
            get(model_name_or_path=name)


def test_weights_that_were_not_written_to_their_end(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(OSError, match="damaged, or were not written to their end"):
        get_model(model_name_or_path=str(folder))


def test_pickled_weights_are_not_read(folder):
    model = get_model(model_name_or_path=str(folder), dtype="float32")
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        get_model(model_name_or_path=str(folder))


def test_checkpoints_are_safetensors_whatever_is_asked():
    assert TrainingArguments(output_dir="out", report_to="none", save_safetensors=False).save_safetensors


def test_an_adapter_is_saved_and_comes_back(folder, tmp_path):
    peft = pytest.importorskip("peft")
    arguments = ModelArguments(model_name_or_path=str(folder), dtype="float32", lora=True, r=2)
    model = get_model(arguments)
    assert isinstance(model, peft.PeftModel) and load_peft(model, arguments) is model
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.copy_(torch.randn(weight.shape, generator=generator) / 10)
    model.save_pretrained(tmp_path / "adapter")
    get_tokenizer(arguments).save_pretrained(tmp_path / "adapter")
    assert not list((tmp_path / "adapter").glob("*.bin"))

    again = get_model(model_name_or_path=str(tmp_path / "adapter"), dtype="float32")
    tokenizer = get_tokenizer(model_name_or_path=tmp_path / "adapter")
    assert tokenizer.eot_token == "[/Answer]"
    tokens = torch.tensor([[5, 6, 7, 8]])
    plain = get_model(arguments, lora=False)
    with torch.no_grad():
        logits, expected, without = (m.eval()(tokens).logits for m in (again, model, plain))
    assert torch.equal(logits, expected) and not torch.allclose(logits, without)

    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(OSError, match="in adapter_model"):
        get_model(model_name_or_path=str(tmp_path / "adapter"))


@pytest.mark.parametrize("targets", ['["Wqkv", "Wo"]', "Wqkv,Wo", "Wqkv, Wo", r".*\.(Wqkv|Wo)"])
def test_targets_of_an_adapter(targets):
    pytest.importorskip("peft")
    model = get_model(model_name_or_path=str(SHIPPED), lora=True, r=2, target_modules=targets)
    names = {name.split(".lora_")[0].rsplit(".", 1)[1] for name, w in model.named_parameters() if w.requires_grad}
    assert names == {"Wqkv", "Wo"}
