"""Adapters at the head and the embedding of models in which both are one weight, merged: the logits of the adapter."""

from __future__ import annotations

import pytest
import torch
import transformers

from dllm.demo.shipped import load_shipped
from dllm.models import get_model, tied
from dllm.tools import merge_peft_adapter
from dllm.tools.merge_peft_adapter import main
from tests.diffusion_gemma_models import needs_diffusion_gemma, tiny_diffusion_gemma
from tests.models import FIRST_WORD, tiny

peft = pytest.importorskip("peft")

HEAD = {"bert": "cls.predictions.decoder", "modernbert": "decoder", "llama": "lm_head"}
EMBEDDING = {"bert": "word_embeddings", "modernbert": "tok_embeddings", "llama": "embed_tokens"}
LAYER = {"bert": "query", "modernbert": "Wqkv", "llama": "q_proj"}

# what is adapted, and whether that parts the head from the embedding
CASES = {
    "layers": (lambda f: dict(target_modules=[LAYER[f]]), False),
    "head": (lambda f: dict(target_modules=[LAYER[f], HEAD[f]]), True),
    "embedding": (lambda f: dict(target_modules=[LAYER[f], EMBEDDING[f]]), True),
    "both": (lambda f: dict(target_modules=[HEAD[f], EMBEDDING[f]]), True),
    "dora": (lambda f: dict(target_modules=[LAYER[f], HEAD[f]], use_dora=True), True),
    "head saved": (lambda f: dict(target_modules=[LAYER[f]], modules_to_save=[HEAD[f]]), True),
    "embedding saved": (lambda f: dict(target_modules=[LAYER[f]], modules_to_save=[EMBEDDING[f]]), True),
    "biases": (lambda f: dict(target_modules=[LAYER[f], HEAD[f]], bias="all"), True),
    "tokens": (lambda f: dict(target_modules=[LAYER[f]], trainable_token_indices={EMBEDDING[f]: [7, 8]}), None),
}


def base_of(family: str) -> torch.nn.Module:
    if family != "llama":
        return tiny(family)
    size = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**size, is_causal=False, tie_word_embeddings=True, max_position_embeddings=96)
    return transformers.LlamaForCausalLM(config).eval()


def adapt(folder, family: str, options: dict) -> torch.nn.Module:
    """base and adapter in `folder`: an adapter that changes everything it may. Returns the model that has it."""
    base = base_of(family)
    base.save_pretrained(folder / "base")
    load_shipped()[1].save_pretrained(folder / "base")
    model = get_model(model_name_or_path=str(folder / "base"), dtype="float32")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, **options))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    adapted.save_pretrained(folder / "adapter")
    return adapted


def logits(model: torch.nn.Module, dtype: torch.dtype) -> torch.Tensor:
    tokens = torch.randint(FIRST_WORD, 97, (32, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.to(dtype).eval()(input_ids=tokens).logits.double()


def error(found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Of each row, the largest."""
    return (found - truth).abs().amax((1, 2))


# every case of ModernBERT; those of others that differ in their names, their second tied weight, their classes
GRID = [("modernbert", case) for case in CASES if case != "tokens"]
GRID += [("bert", "head"), ("bert", "embedding saved"), ("llama", "both"), ("llama", "tokens")]


@pytest.mark.parametrize("family, case", GRID)
def test_the_merged_model_is_the_adapted_one(case, family, tmp_path):
    """The adapter's own error in float32 against float64 says what rounding does; the merged model may err twice as
    much, and by the one rounding of each merged weight. Of 32 rows the median counts: a row whose rounding happens to
    grow says nothing of the merge. All rows agree to half of the digits of float32."""
    options, parted = CASES[case]
    saved = adapt(tmp_path, family, options(family))
    words = ["--adapter_model_name_or_path", tmp_path / "adapter", "--dtype", "float32"]
    assert main([*map(str, words), "--output_model_name_or_path", str(tmp_path / "merged")]) == 0

    def load(name: str) -> torch.nn.Module:
        return get_model(model_name_or_path=str(tmp_path / name), dtype="float32")

    adapted, merged = load("adapter"), load("merged")
    plain, found = logits(adapted, torch.float32), logits(merged, torch.float32)
    truth, base = logits(adapted, torch.float64), logits(load("base"), torch.float64)
    assert torch.equal(plain, logits(saved, torch.float32))
    bound = 2 * error(plain, truth).median() + len(list(merged.parameters())) * 2**-24 * truth.abs().max()
    assert error(found, truth).median() <= bound
    assert error(found, truth).max() <= 2**-12 * truth.abs().max()
    assert error(base, truth).median() > 1000 * bound
    if parted is not None:
        assert (merged.get_output_embeddings().weight is merged.get_input_embeddings().weight) is not parted
        assert merged.config.tie_word_embeddings is not parted


@pytest.mark.parametrize("case", ["tokens", "head"])
def test_what_cannot_be_merged_is_refused(case, tmp_path, monkeypatch, capsys):
    """peft leaves out the bias of a head of which single tokens are trained; and were a merge to change the head and
    the embedding, it would be seen."""
    adapt(tmp_path, "modernbert", CASES[case][0]("modernbert"))
    monkeypatch.setattr(tied, "separate", lambda model: model)
    words = ["--adapter_model_name_or_path", tmp_path / "adapter", "--output_model_name_or_path", tmp_path / "merged"]
    assert main([*map(str, words)]) == 1 and not (tmp_path / "merged").exists()
    assert "cannot be merged: logits up to" in capsys.readouterr().err


@needs_diffusion_gemma
@pytest.mark.parametrize("adapted", ["decoder", "language_model"])
def test_layers_that_share_their_weights(adapted, tmp_path):
    """DiffusionGemma's encoder and decoder: neither one's adapter can be merged."""
    pattern = rf".*\.{adapted}\.layers\.\d+\.self_attn\.q_proj"
    model = peft.get_peft_model(tiny_diffusion_gemma(), peft.LoraConfig(r=4, target_modules=pattern))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"{adapted}\.layers\.0\.self_attn\.q_proj shares its weight"):
        merge_peft_adapter._merged(model, tmp_path)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
