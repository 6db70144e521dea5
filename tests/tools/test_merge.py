"""A base model and its adapter as one: python -m dllm.tools.merge_peft_adapter."""

import json
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import transformers

from dllm.demo.shipped import load_shipped
from dllm.models import get_model
from dllm.tools.merge_peft_adapter import main
from dllm_kernels.testing import assert_no_worse, operand_rounding
from tests.models import make_prompt, tiny

peft = pytest.importorskip("peft")


@pytest.fixture
def trained(tmp_path):
    """(base, adapter, folder) of a small model whose adapter does something."""
    base = tiny("bert")
    base.save_pretrained(tmp_path / "base")
    load_shipped()[1].save_pretrained(tmp_path / "base")
    base.name_or_path = str(tmp_path / "base")
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    adapted.save_pretrained(tmp_path / "adapter")
    return adapted.eval(), tmp_path


def merge(folder, *more) -> int:
    options = ["--adapter_model_name_or_path", folder / "adapter", "--output_model_name_or_path", folder / "merged"]
    return main([*map(str, options), *map(str, more)])


def test_the_merged_model_says_what_the_adapted_one_does(trained):
    """W + 2 B A is rounded once: an error of a few units in the last place of float32, which two layers carry on."""
    adapted, folder = trained
    assert merge(folder, "--dtype", "float32") == 0
    merged = get_model(model_name_or_path=str(folder / "merged"), dtype="float32").eval()
    prompt = make_prompt(adapted, 2, 20)
    with torch.no_grad():
        plain = adapted.float()(input_ids=prompt).logits
        truth = adapted.double()(input_ids=prompt).logits
        rounding = operand_rounding(lambda: {"logits": adapted(input_ids=prompt).logits}, adapted.parameters())
        found = merged(input_ids=prompt).logits
        base = get_model(model_name_or_path=str(folder / "base"), dtype="float32").eval()(input_ids=prompt).logits
    assert_no_worse({"logits": found}, {"logits": plain}, {"logits": truth}, rounding=rounding)
    assert (base - truth).abs().max() > 1000 * (plain - truth).abs().max()
    files = {path.name for path in (folder / "merged").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= files and not any(".bin" in name for name in files)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "merged")
    assert tokenizer.get_vocab() == load_shipped()[1].get_vocab()


def test_the_dtype_of_what_is_saved(trained):
    _, folder = trained
    assert merge(folder) == 0
    merged = transformers.AutoModelForMaskedLM.from_pretrained(folder / "merged", dtype="auto")
    assert merged.dtype == torch.bfloat16


@pytest.mark.parametrize("name, kind", [("bf16", torch.bfloat16), ("fp32", torch.float32), ("fp16", torch.float16)])
def test_short_names_of_dtypes(trained, name, kind):
    _, folder = trained
    assert merge(folder, "--dtype", name) == 0
    assert transformers.AutoModelForMaskedLM.from_pretrained(folder / "merged", dtype="auto").dtype == kind


def test_the_merged_model_is_uploaded_on_request(trained, monkeypatch, capsys):
    _, folder = trained
    asked = []

    class Hub:
        def create_repo(self, name, private, exist_ok):
            asked.append((name, private, exist_ok))
            return SimpleNamespace(repo_id=name)

        def upload_folder(self, repo_id, folder_path):
            return f"https://hub/{repo_id}/{len(list(folder_path.glob('*.safetensors')))}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert merge(folder, "--push_to_hub", "True") == 1
    assert "push_to_hub needs an output that is named owner/name" in capsys.readouterr().err and not asked
    monkeypatch.chdir(folder)
    assert merge(folder, "--push_to_hub", "True", "--output_model_name_or_path", "me/merged") == 0
    assert asked == [("me/merged", True, True)] and "uploaded: https://hub/me/merged/1" in capsys.readouterr().out


def test_what_cannot_be_merged(trained, capsys):
    _, folder = trained

    def refused(*more) -> str:
        assert merge(folder, *more) == 1 and not (folder / "merged").exists()
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
        return capsys.readouterr().err

    assert "must be float32, bfloat16 or float16, got 'int8'" in refused("--dtype", "int8")
    tiny("bert", hidden_size=64).save_pretrained(folder / "wider")
    assert "is no adapter of" in refused("--base_model_name_or_path", folder / "wider")
    assert "no folder /no/adapter" in refused("--adapter_model_name_or_path", "/no/adapter")
    assert "got no adapter_config.json" in refused("--adapter_model_name_or_path", folder / "base")
    weights = folder / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "is no whole file of safetensors" in refused()
    weights.rename(weights.with_suffix(".bin"))
    assert "got no adapter_model.safetensors" in refused()
    config = folder / "adapter" / "adapter_config.json"
    weights.with_suffix(".bin").rename(weights)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": None}))
    assert "does not name its base model" in refused()
    (folder / "merged").mkdir()
    (folder / "merged" / "mine.txt").write_text("kept")
    assert merge(folder) == 1 and (folder / "merged" / "mine.txt").read_text() == "kept"
    assert "exists: name another output" in capsys.readouterr().err
