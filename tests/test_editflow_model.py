"""Models of Edit Flows: heads on every backbone, saved and loaded again, the shift of Dream, LoRA."""

from __future__ import annotations

import pytest
import torch
import transformers

from dllm.configs import ModelArguments
from dllm.core.edits import Edits, rows_of
from dllm.fast.training.edit_loss import EditTargets
from dllm.fast.visibility import check_bidirectional, why_not_padded
from dllm.models import EditFlowConfig, EditFlowModel, bidirectional, get_config, get_model, load_peft
from tests.families.toys import load
from tests.models import tiny

SIZE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48)
NAMES = ("modernbert", "llada", "dream", "qwen2", "qwen3")
IDS = torch.arange(5, 23).view(2, 9)


def backbone(name: str) -> torch.nn.Module:
    """A small one with random weights; those of Qwen have a head that is tied to the embedding."""
    if name == "modernbert":
        return tiny(name)
    if name in ("llada", "dream"):
        return load(name).eval()
    kind = {"qwen2": "Qwen2", "qwen3": "Qwen3"}[name]
    config = getattr(transformers, f"{kind}Config")(
        **SIZE, vocab_size=97, head_dim=8, tie_word_embeddings=True, is_causal=False, mask_token_id=3
    )
    torch.manual_seed(0)
    return bidirectional(getattr(transformers, f"{kind}ForCausalLM")(config)).eval()


@pytest.fixture(params=NAMES)
def made(request) -> tuple[EditFlowModel, torch.Tensor]:
    """The model, and the logits of its backbone before its head was taken."""
    model = backbone(request.param)
    with torch.no_grad():
        logits = model(input_ids=IDS).logits
    return EditFlowModel.from_backbone(model), logits


@torch.no_grad()
def test_both_heads_begin_as_the_lm_head(made):
    model, logits = made
    output = model(input_ids=IDS)
    assert torch.allclose(output.ins_logits, logits, atol=1e-6)
    if model.config.right_shift:
        assert not output.sub_logits[:, 0].any() and torch.allclose(output.sub_logits[:, 1:], logits[:, :-1], atol=1e-6)
    else:
        assert torch.allclose(output.sub_logits, logits, atol=1e-6)
    model.sub_logits.weight.add_(1)  # heads of their own: neither follows the other, nor the embedding
    assert torch.allclose(model(input_ids=IDS).ins_logits, logits, atol=1e-6)


@torch.no_grad()
def test_saved_and_loaded(made, tmp_path):
    model, _ = made
    model.save_pretrained(tmp_path)
    before = model(input_ids=IDS)
    kind = f"editflow-{model.config.backbone}"
    assert get_config(model_name_or_path=str(tmp_path)).model_type == kind
    ours = get_model(model_name_or_path=str(tmp_path), dtype="float32")
    for loaded in (ours, transformers.AutoModel.from_pretrained(tmp_path), type(model).from_pretrained(tmp_path)):
        after = loaded.eval()(input_ids=IDS)
        assert type(loaded) is type(model) and all(torch.equal(before[name], after[name]) for name in before)
        assert loaded.config.mask_token_id == model.config.mask_token_id
    family = {"modernbert": "bert", "llada": "llada", "dream": "dream"}.get(model.config.backbone)
    assert getattr(ours.config, "masked_diffusion", {}).get("family") == family


def test_sees_both_sides_and_no_padding(made):
    model, _ = made
    check_bidirectional(model, torch.device("cpu"))
    assert why_not_padded(model, torch.device("cpu")) is None


@torch.no_grad()
def test_rates_are_read_where_they_belong(made):
    model, _ = made
    hidden = model.hidden_states(IDS)
    plain = torch.nn.functional.softplus(model.rate_heads(hidden))
    sub, delete, insert = model.rates(hidden).unbind(-1)
    assert torch.equal(insert, plain[..., 2])
    if model.config.right_shift:
        assert not sub[:, 0].any() and not delete[:, 0].any()
        assert torch.equal(sub[:, 1:], plain[:, :-1, 0]) and torch.equal(delete[:, 1:], plain[:, :-1, 1])
    else:
        assert torch.equal(sub, plain[..., 0]) and torch.equal(delete, plain[..., 1])
    output = model(input_ids=IDS, t=torch.zeros(2))
    for name, rate in (("sub", sub), ("del", delete), ("ins", insert)):
        assert torch.equal(output[f"{name}_rate_hat"], rate)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_backbone_keeps_its_attention_and_dtype(attention):
    backbone = load("a2d-qwen3", attn_implementation=attention).to(torch.bfloat16)
    model = EditFlowModel.from_backbone(backbone)
    assert model.config._attn_implementation == model.backbone.config._attn_implementation == attention
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    made = EditFlowModel._from_config(model.config, dtype=torch.float32)  # whatever the backbone's configuration says
    assert {weight.dtype for weight in made.parameters()} == {torch.float32}


def edits_of() -> EditTargets:
    kind, sample, position = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 0, 1, 1]), torch.tensor([3, 4, 0, 8])
    edits = Edits(kind, sample, position, torch.tensor([7, -1, 8, 9]))
    return EditTargets(torch.tensor([9, 9]), torch.tensor([1.5, 0.5]), **rows_of(edits, 9))


def test_the_loss_is_that_of_its_rates_and_logits(made):
    """The forward with edits, against logits and rates of all positions; and every weight has a gradient."""
    model, _ = made
    output, given = model(input_ids=IDS), edits_of()
    weight = given.sample_weight
    rates = torch.stack([output.sub_rate_hat, output.del_rate_hat, output.ins_rate_hat], -1)
    expected = (weight * rates.sum((1, 2))).sum()
    sub, ins = output.sub_logits.log_softmax(-1), output.ins_logits.log_softmax(-1)
    expected = expected - weight[0] * (rates[0, 3, 0].log() + sub[0, 3, 7] + rates[0, 4, 1].log())
    expected = expected - weight[1] * (rates[1, 0, 2].log() + ins[1, 0, 8] + rates[1, 8, 2].log() + ins[1, 8, 9])
    found = model(input_ids=IDS, edits=given).loss
    assert torch.allclose(found, expected, rtol=1e-5)
    found.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_lora_trains_the_heads_in_full(made, tmp_path):
    peft = pytest.importorskip("peft")
    model, _ = made
    name = model.config.backbone
    adapted = load_peft(model, ModelArguments(model_name_or_path="toy", lora=True, r=2, target_modules="all-linear"))
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    for head in EditFlowModel.new_modules:
        assert sum(f"{head}.modules_to_save" in name for name in trained) == 1 + (
            name == "modernbert" or "rate" in head
        )
    assert all("lora_" in name or "modules_to_save" in name for name in trained)
    loss = adapted(input_ids=IDS, edits=edits_of()).loss
    loss.backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    adapted.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(EditFlowModel.from_backbone(backbone(name)), tmp_path)
    with torch.no_grad():
        want, got = (m.eval()(input_ids=IDS).ins_logits for m in (adapted, again))
    assert torch.allclose(want, got, atol=1e-5)


def test_another_backbone_is_refused():
    with pytest.raises(ValueError, match="must have a backbone of modernbert, llada, dream, qwen2, qwen3, got bert"):
        EditFlowModel.from_backbone(tiny("bert"))
    with pytest.raises(ValueError, match="must have a backbone_config, got none"):
        EditFlowModel(EditFlowConfig())


def test_random_weights_from_a_configuration():
    config = EditFlowConfig(tiny("modernbert").config)
    assert EditFlowModel(config)(IDS).sub_logits.shape == (2, 9, 97)
