"""Causal checkpoints become diffusion models: the same weights, other attention, a mask token; or nothing is made."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

import dllm
from dllm.demo.shipped import SHIPPED
from dllm.pipelines.a2d.convert import main
from tests.pipelines.sources import causal_checkpoint

IDS = torch.arange(5, 15)[None]
CAUSAL = torch.ones(10, 10, dtype=torch.bool).tril()[None, None]


# the mask token within the rows that the tokenizer does not use, and beyond the embedding, tied and not
@pytest.mark.parametrize(
    "family, spare, tied", [("Qwen2", 4, True), ("Qwen3", 4, False), ("Llama", 0, False), ("Llama", 0, True)]
)
def test_nothing_but_the_mask_changes(family, spare, tied, tmp_path, capsys):
    source = causal_checkpoint(tmp_path / "causal", family, spare=spare, tie_word_embeddings=tied)
    assert main([str(source), str(tmp_path / "a2d")]) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "a2d"))
    assert before.keys() == after.keys() and all(t.dtype == torch.bfloat16 for t in after.values())
    for name, weight in before.items():
        assert torch.equal(after[name][: len(weight)], weight)
        if not spare and len(weight) == 2048:  # the new row is the mean of the others
            assert torch.equal(after[name][2048:], weight.float().mean(0, keepdim=True).bfloat16())
    assert ("1 more, for the mask token" in capsys.readouterr().out) == (spare == 0)

    options = dict(model_name_or_path=str(tmp_path / "a2d"), dtype="float32", attn_implementation="eager")
    model, tokenizer = dllm.utils.get_model(**options).eval(), dllm.utils.get_tokenizer(**options)
    assert tokenizer.mask_token == "<|mask|>" and tokenizer.mask_token_id == model.config.mask_token_id
    assert tokenizer.mask_token_id < len(model.get_input_embeddings().weight)
    assert isinstance(model, getattr(dllm.pipelines.a2d, f"A2D{family}LMHeadModel"))
    base = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        causal = base(IDS).logits
        masked, whole = (model(IDS, attention_mask=mask).logits[..., : causal.shape[-1]] for mask in (CAUSAL, None))
    assert torch.equal(masked, causal)
    assert not torch.equal(whole[:, 0], causal[:, 0])


def test_a_mask_token_of_its_own_and_the_old_options(tmp_path):
    source = causal_checkpoint(tmp_path / "causal", "Qwen2", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    tokenizer.save_pretrained(source)
    (tmp_path / "a2d").mkdir()  # an empty folder is taken
    assert main(["--model_name_or_path", str(source), "--output_dir", str(tmp_path / "a2d")]) == 0
    assert dllm.utils.get_tokenizer(model_name_or_path=str(tmp_path / "a2d")).mask_token == "[MASK]"
    assert json.loads((tmp_path / "a2d" / "config.json").read_text())["is_causal"] is False
    assert load_file(tmp_path / "a2d" / "model.safetensors")["lm_head.weight"].dtype == torch.float32
    # what was converted is not converted again
    assert main([str(tmp_path / "a2d"), str(tmp_path / "again")]) == 1 and not (tmp_path / "again").exists()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return causal_checkpoint(tmp_path_factory.mktemp("source") / "causal", "Qwen2")


def edited(source, folder, **changes):
    """A copy with another config.json."""
    folder.mkdir()
    for file in source.iterdir():
        if file.name != "config.json":
            (folder / file.name).hardlink_to(file)
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(use_sliding_window=True, sliding_window=8, max_window_layers=0, layer_types=None), "sliding"),
        (dict(layer_types=["full_attention", "sliding_attention"]), "sliding window"),
        (dict(architectures=["Qwen2ForSequenceClassification"]), "must be a checkpoint of .*got Qwen2ForSequenceClass"),
        (dict(model_type="gemma", architectures=["GemmaForCausalLM"]), "must be a checkpoint of .*got GemmaForCausal"),
        (dict(quantization_config={"quant_method": "bitsandbytes"}), "quantised"),
        (dict(is_causal=False), "is a diffusion model already"),
        (dict(intermediate_size=64), "mlp.*shape"),
        (dict(num_hidden_layers=3, layer_types=None), "lack model.layers.2"),
    ],
)
def test_what_is_refused(changes, words, source, tmp_path, capsys):
    folder = edited(source, tmp_path / "edited", **changes)
    assert main([str(folder), str(tmp_path / "a2d")]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    with pytest.raises(ValueError, match=words):
        raise ValueError(told)
    assert [path.name for path in tmp_path.iterdir()] == ["edited"]


def test_nothing_is_overwritten_or_left_behind(source, tmp_path, monkeypatch, capsys):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").write_text("mine")
    assert main([str(source), str(tmp_path / "there")]) == 1 and "exists" in capsys.readouterr().err
    assert main([str(SHIPPED), str(tmp_path / "a2d")]) == 1 and "got ModernBert" in capsys.readouterr().err
    assert main([str(tmp_path / "missing"), str(tmp_path / "a2d")]) == 1
    (tmp_path / "cut").mkdir()
    for file in source.iterdir():
        content = file.read_bytes()
        (tmp_path / "cut" / file.name).write_bytes(content[:-99] if file.suffix == ".safetensors" else content)
    assert main([str(tmp_path / "cut"), str(tmp_path / "a2d")]) == 1 and "damaged" in capsys.readouterr().err

    def full(*arguments, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(transformers.PreTrainedTokenizerBase, "save_pretrained", full)
    assert main([str(source), str(tmp_path / "a2d")]) == 1 and "no space left" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "there"]
    for words in ([], [str(source)], [str(source), "a", "--output_dir", "b"], [str(source), "a", "--random_init"]):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 2
