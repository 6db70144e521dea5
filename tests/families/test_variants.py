"""Variants of the families that no toy covers, judged by the official forward in plain PyTorch."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from dllm.models import get_config, get_model
from tests.families import forwards
from tests.families.toys import CHECKPOINTS, config_of, random_like, reference_of, tensors_of, write

TOLERANCE = 2e-5
IDS = torch.randint(0, 200, (2, 24), generator=torch.Generator().manual_seed(1))
MASK = torch.ones(2, 24, dtype=torch.long)
MASK[1, 17:] = 0


def difference(folder, forward, config, tensors):
    """Largest difference from the judge's logits at real tokens, in their standard deviation if that is above 1; and
    the model."""
    model = get_model(model_name_or_path=folder, dtype="float32").eval()
    largest = 0.0
    for mask in (None, MASK):
        visible = torch.ones(2, 1, 1, 24, dtype=torch.bool) if mask is None else mask.bool()[:, None, None, :]
        truth = forward(config, tensors, IDS, visible)
        with torch.no_grad():
            found = model(input_ids=IDS, attention_mask=mask).logits
        error = (found - truth).abs()
        error = (error if mask is None else error[mask.bool()]).max() / max(1, truth.std())
        largest = max(largest, error.item())
    assert truth.std() > 0.3, "logits that are all alike judge nothing"
    return largest, model


def llada_shapes(config):
    """Names and shapes of the official tensors."""
    width, vocabulary, inner = config["d_model"], config["embedding_size"] or config["vocab_size"], 96
    kv = (config["n_kv_heads"] or (1 if config["multi_query_attention"] else config["n_heads"])) * 16
    top = "model.transformer."
    shapes = {f"{top}wte.weight": (vocabulary, width), f"{top}ln_f.weight": (width,)}
    if not config["weight_tying"]:
        shapes[f"{top}ff_out.weight"] = (vocabulary, width)
    if not config["mlp_hidden_size"]:
        inner = config["mlp_ratio"] * width
    for layer in range(config["n_layers"]):
        block = {
            "attn_norm.weight": (width,),
            "ff_norm.weight": (width,),
            "q_proj.weight": (width, width),
            "k_proj.weight": (kv, width),
            "v_proj.weight": (kv, width),
            "attn_out.weight": (width, width),
            "ff_proj.weight": (inner, width),
            "up_proj.weight": (inner, width),
            "ff_out.weight": (width, inner),
        }
        if config["include_qkv_bias"]:
            block |= {"q_proj.bias": (width,), "k_proj.bias": (kv,), "v_proj.bias": (kv,)}
        shapes |= {f"{top}blocks.{layer}.{name}": shape for name, shape in block.items()}
    return shapes


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"weight_tying": True, "embedding_size": 320}, transformers.LlamaForCausalLM),
        ({"n_kv_heads": 2}, transformers.LlamaForCausalLM),
        ({"n_kv_heads": None, "multi_query_attention": True}, transformers.LlamaForCausalLM),
        ({"n_kv_heads": 2, "include_qkv_bias": True}, transformers.Qwen2ForCausalLM),
        ({"include_qkv_bias": True, "weight_tying": True}, transformers.Qwen2ForCausalLM),
        ({"mlp_hidden_size": None, "mlp_ratio": 2, "embedding_size": None}, transformers.LlamaForCausalLM),
    ],
    ids=["tied-padded", "fewer-kv-heads", "one-kv-head", "biases", "biases-tied", "mlp-ratio"],
)
def test_variants_of_llada(changes, kind, tmp_path):
    config = config_of("llada") | changes
    tensors = random_like(llada_shapes(config))
    folder = write(tmp_path / "official", config, tensors)
    largest, model = difference(folder, forwards.llada, config, tensors)
    print(f"transformers {transformers.__version__} llada {changes}: {largest:.1e}")
    assert type(model) is kind and largest < TOLERANCE
    model.save_pretrained(tmp_path / "saved")
    assert difference(str(tmp_path / "saved"), forwards.llada, config, tensors)[0] < TOLERANCE


def test_dense_layers_of_llada_moe(tmp_path):
    config = config_of("lladamoe") | {"moe_layer_freq": [0, 1, 1]}
    tensors = {name: tensor for name, tensor in tensors_of("lladamoe").items() if ".layers.0.mlp." not in name}
    shapes = {"gate": (160, 64), "up": (160, 64), "down": (64, 160)}
    tensors |= random_like({f"model.layers.0.mlp.{part}_proj.weight": shape for part, shape in shapes.items()})
    largest, model = difference(write(tmp_path, config, tensors), forwards.qwen_like, config, tensors)
    print(f"transformers {transformers.__version__} llada_moe, first layer dense: {largest:.1e}")
    assert largest < TOLERANCE
    assert model.config.mlp_only_layers == [0]


@pytest.mark.parametrize(("base", "biased"), [("qwen2", True), ("llama", False)])
@pytest.mark.parametrize("tied", [False, True])
def test_a2d_of_qwen2_and_llama(base, biased, tied, tmp_path):
    """Dream's tensors are those of a Qwen2; without biases, of a Llama with fewer key heads."""
    config = {name: value for name, value in config_of("dream").items() if name != "use_mrope"}
    config |= {"model_type": f"a2d-{base}", "tie_word_embeddings": tied}
    tensors = {n: t for n, t in tensors_of("dream").items() if biased or not n.endswith(".bias")}
    if tied:
        del tensors["lm_head.weight"]
    folder = write(tmp_path, config, tensors)
    largest, model = difference(folder, forwards.qwen_like, config, tensors)
    print(f"transformers {transformers.__version__} a2d-{base} tied={tied}: {largest:.1e}")
    assert largest < TOLERANCE
    assert not model.config.masked_diffusion["right_shift"]


@pytest.mark.parametrize("tied", [False, True])
def test_a_mask_token_beyond_the_embedding_gets_a_row(tied, tmp_path):
    """Llama 3's tokenizer fills its embedding, so the mask token that dLLM 0.1 adds has no row."""
    config = {name: value for name, value in config_of("dream").items() if name not in ("use_mrope", "mask_token_id")}
    config |= {"model_type": "a2d-llama", "tie_word_embeddings": tied}
    tensors = {n: t for n, t in tensors_of("dream").items() if not n.endswith(".bias")}
    if tied:
        del tensors["lm_head.weight"]
    folder = write(tmp_path / "official", config, tensors)
    names = {"mask_token": "<|mask|>", "added_tokens_decoder": {"256": {"content": "<|mask|>", "special": True}}}
    (tmp_path / "official" / "tokenizer_config.json").write_text(json.dumps(names))
    model = get_model(model_name_or_path=folder, dtype="float32").eval()
    assert model.config.mask_token_id == 256 and model.config.vocab_size == 257
    embedding = model.get_input_embeddings().weight
    torch.testing.assert_close(embedding[256], embedding[:256].mean(0))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[5, 256, 7]])).logits
    assert logits.shape == (1, 3, 257) and logits.isfinite().all()
    assert (model.get_output_embeddings().weight is embedding) == tied
    model.save_pretrained(tmp_path / "saved")
    again = get_model(model_name_or_path=str(tmp_path / "saved"), dtype="float32").eval()
    with torch.no_grad():
        assert torch.equal(again(input_ids=torch.tensor([[5, 256, 7]])).logits, logits)


def test_experts_of_groups_that_are_not_chosen_never_win(tmp_path):
    """With biases below -1 every score is negative; transformers 4 gives experts of other groups the score 0."""
    config, tensors = config_of("llada2"), tensors_of("llada2")
    for name in [name for name in tensors if name.endswith("expert_bias")]:
        tensors[name] = tensors[name] - 3
    largest, model = difference(write(tmp_path / "official", config, tensors), forwards.llada2, config, tensors)
    print(f"transformers {transformers.__version__} llada2, biases below -1: {largest:.1e}")
    assert largest < TOLERANCE
    model.save_pretrained(tmp_path / "saved")
    assert difference(str(tmp_path / "saved"), forwards.llada2, config, tensors)[0] < TOLERANCE


def test_biases_of_routers_stay_float32_in_a_bfloat16_model():
    model = get_model(model_name_or_path=str(CHECKPOINTS / "llada2"))
    stored = tensors_of("llada2")["model.layers.1.mlp.gate.expert_bias"]
    bias = model.state_dict()["model.layers.1.mlp.gate.e_score_correction_bias"]
    assert model.dtype == torch.bfloat16
    assert bias.dtype == torch.float32 and torch.equal(bias, stored)


@pytest.mark.parametrize("name", ["dream", "a2d-qwen3", "llada"])
def test_logits_in_bfloat16_are_as_exact_as_the_official_ones(name):
    """LLaDA's official code rotates in float32, Llama in bfloat16. Bits depend on the machine, errors do not. Experts
    are left out: rounding may send a token to another one."""
    reference = reference_of(name)
    model = get_model(model_name_or_path=str(CHECKPOINTS / name)).eval()
    with torch.no_grad():
        found = model(input_ids=reference["ids"]).logits.float()
    error, official = (((x - reference["full"]) ** 2).mean().sqrt() for x in (found, reference["full_bf16"]))
    assert error < 1.5 * official
    assert (found.argmax(-1) == reference["full"].argmax(-1)).float().mean() > 0.9


def test_padding_of_llada_can_be_learnt():
    """Its padding token is its end of sequence, too, so the embedding must not leave its gradient out."""
    model = get_model(model_name_or_path=str(CHECKPOINTS / "llada"), dtype="float32")
    pad = model.config.pad_token_id
    model(input_ids=torch.full((1, 4), pad)).logits.square().sum().backward()
    assert model.get_input_embeddings().weight.grad[pad].abs().max() > 0


def test_mask_tokens_that_only_a_tokenizer_names(tmp_path):
    folder = tmp_path / "official"
    write(folder, config_of("lladamoe"), tensors_of("lladamoe"))
    assert get_config(model_name_or_path=str(folder)).mask_token_id is None
    (folder / "special_tokens_map.json").write_text(json.dumps({"mask_token": {"content": "<|mask|>"}}))
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 202, "content": "<|mask|>"}]}))
    assert get_config(model_name_or_path=str(folder)).mask_token_id == 202


def test_biases_of_routers_stay_float32_in_a_saved_model(tmp_path):
    get_model(model_name_or_path=str(CHECKPOINTS / "llada2")).save_pretrained(tmp_path)
    stored = tensors_of("llada2")["model.layers.1.mlp.gate.expert_bias"]
    bias = get_model(model_name_or_path=str(tmp_path)).state_dict()["model.layers.1.mlp.gate.e_score_correction_bias"]
    assert torch.equal(bias, stored)
