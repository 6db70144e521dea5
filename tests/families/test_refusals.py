"""What cannot be mapped is refused by name, before a weight is read."""

from __future__ import annotations

import json

import pytest

from dllm.models import get_config, get_model
from dllm.models.official import a2d, dream, llada, llada2, llada_moe, recognise, rnd1
from tests.families.toys import CHECKPOINTS, NAMES, config_of

MODULES = {"llada": llada, "lladamoe": llada_moe, "dream": dream, "rnd1": rnd1, "a2d-qwen3": a2d, "llada2": llada2}
# for every field that a family restricts, a value that the official code accepts, or could
OTHERS = {
    "activation_type": "swiglu",
    "bias_for_layer_norm": True,
    "block_group_size": 2,
    "block_type": "sequential",
    "clip_qkv": 8.0,
    "embedding_dropout": 0.1,
    "hidden_act": "gelu",
    "layer_norm_type": "default",
    "layer_norm_with_affine": False,
    "moe_router_score_function": "sigmoid",
    "num_nextn_predict_layers": 1,
    "output_dropout": 0.1,
    "partial_rotary_factor": 0.5,
    "residual_dropout": 0.1,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "router_dtype": "bf16",
    "score_function": "softmax",
    "shared_expert_intermediate_size": 48,
}
CASES = [(name, field) for name in NAMES for field in MODULES[name].ALLOWED if field != "include_qkv_bias"]


@pytest.mark.parametrize(("name", "field"), CASES)
def test_a_value_that_cannot_be_mapped(name, field):
    value = OTHERS.get(field, not MODULES[name].ALLOWED[field][0])
    with pytest.raises(ValueError, match=rf"{field}={value!r}".replace("(", r"\(").replace("{", r"\{")):
        recognise(config_of(name) | {field: value})


@pytest.mark.parametrize("name", NAMES)
def test_a_quantised_checkpoint(name):
    with pytest.raises(ValueError, match=r"quantization_config=\{'quant_method': 'gptq'\} cannot be mapped"):
        recognise(config_of(name) | {"quantization_config": {"quant_method": "gptq"}})


def test_scaled_positions_of_llada_in_the_form_of_transformers_5():
    plain = {"rope_type": "default", "rope_theta": 1e4}
    assert recognise(config_of("llada") | {"rope_parameters": plain}).family == "llada"
    with pytest.raises(ValueError, match="rope_type='yarn'"):
        recognise(config_of("llada") | {"rope_parameters": plain | {"rope_type": "yarn", "factor": 2.0}})


# field: a wrong value, what is said of it
WRONG = {
    "rope_scaling": ("x", "an object or null, got 'x'"),
    "torch_dtype": ("x", "the name of a floating-point dtype of torch, got 'x'"),
    "dtype": ("int8", "the name of a floating-point dtype of torch, got 'int8'"),
    "head_dim": (0, "a whole number of at least 1, got 0"),
    "vocab_size": (-1, "a whole number of at least 1, got -1"),
    "max_position_embeddings": (1.5, "a whole number of at least 1, got 1.5"),
    "num_key_value_heads": ("4", "a whole number of at least 1, got '4'"),
    "rms_norm_eps": ("1e-6", "a finite number of at least 0, got '1e-6'"),
    "rope_theta": ([], r"a finite number above 0, got \[\]"),
    "partial_rotary_factor": ([1], r"a finite number of at least 0, got \[1\]"),
    "attention_dropout": (1, "a number from 0 to below 1, got 1"),
    "tie_word_embeddings": ("no", "true or false, got 'no'"),
    "eos_token_id": (1.5, "a token id, got 1.5"),
    "mask_token_id": (1.5, "a token id, got 1.5"),
    "quantization_config": (4, "an object or null, got 4"),
}


@pytest.mark.parametrize("field", WRONG)
def test_a_field_of_the_wrong_kind(field, tmp_path):
    """Of an official checkpoint, of one that comes with code besides, and of a model of transformers."""
    value, rule = WRONG[field]
    code = {"auto_map": {"AutoModel": "m.M"}}
    for config in (config_of("rnd1"), config_of("dream") | code, {"model_type": "modernbert"}):
        (tmp_path / "config.json").write_text(json.dumps(config | {field: value}))
        for get in (get_config, get_model):
            with pytest.raises(
                ValueError, match=rf"at {tmp_path} cannot be used: {field} in config.json must be {rule}"
            ):
                get(model_name_or_path=str(tmp_path))


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("right_shift", 7, "true or false"),
        ("bidirectional", "x", "true or false"),
        ("block_size", 0, "a whole number of at least 1"),
        ("block_size", True, "a whole number of at least 1"),
        ("official", 5, "an object"),
    ],
)
def test_a_marker_of_the_wrong_kind(field, value, rule, tmp_path):
    """A saved model is not loaded with a shift by 7 columns, for example."""
    config = {"model_type": "qwen2", "masked_diffusion": {"family": "dream", field: value}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for get in (get_config, get_model):
        with pytest.raises(
            ValueError, match=f"{field} of masked_diffusion in config.json must be {rule}, got {value!r}"
        ):
            get(model_name_or_path=str(tmp_path))


def test_a_base_of_zero(tmp_path):
    """It was taken for one that is not there."""
    (tmp_path / "config.json").write_text(json.dumps(config_of("rnd1") | {"rope_theta": 0}))
    with pytest.raises(ValueError, match=r"rope_theta in config\.json must be a finite number above 0, got 0"):
        get_config(model_name_or_path=str(tmp_path))


@pytest.mark.parametrize("name", ["lladamoe", "rnd1", "llada2"])
def test_more_experts_for_a_token_than_there_are(name, tmp_path):
    config = config_of(name)
    count = config["num_experts"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_experts_per_tok": count + 1}))
    with pytest.raises(ValueError, match=rf"must be at most num_experts = {count}, got {count + 1}"):
        get_config(model_name_or_path=str(tmp_path))


GROUPS = [  # the checkpoint has 16 experts in 4 groups, of which 2
    ({"n_group": 0}, "n_group must divide num_experts = 16 into groups of at least 2, got 0"),
    ({"n_group": 3}, "n_group must divide num_experts = 16 into groups of at least 2, got 3"),
    ({"n_group": 16}, "n_group must divide num_experts = 16 into groups of at least 2, got 16"),
    ({"n_group": "4"}, "n_group must divide num_experts = 16 into groups of at least 2, got '4'"),
    ({"topk_group": 0}, "topk_group must be from 1 to n_group = 4, got 0"),
    ({"topk_group": 5}, "topk_group must be from 1 to n_group = 4, got 5"),
    ({"num_experts_per_tok": 9}, "num_experts_per_tok must be at most the 8 experts of 2 groups, got 9"),
]


@pytest.mark.parametrize(("fields", "message"), GROUPS)
def test_groups_of_experts_that_do_not_fit(fields, message):
    with pytest.raises(ValueError, match=message):
        recognise(config_of("llada2") | fields)


@pytest.mark.parametrize("field", ["d_model", "n_heads", "n_layers", "n_kv_heads", "mlp_hidden_size", "embedding_size"])
@pytest.mark.parametrize("value", [0, -1, "x", 1.5, True, []])
def test_sizes_under_the_names_of_llada(field, value, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_of("llada") | {field: value}))
    with pytest.raises(ValueError, match=f"{field} in config.json must be a whole number of at least 1, got "):
        get_model(model_name_or_path=str(tmp_path))


def test_a_null_head_size_is_none(tmp_path):
    """As if it were not there."""
    config = config_of("rnd1")
    without = {name: value for name, value in config.items() if name != "head_dim"}
    null, absent = (recognise(c).config() for c in (without | {"head_dim": None}, without))
    assert null.to_dict().get("head_dim") == absent.to_dict().get("head_dim")


def test_true_is_not_one():
    with pytest.raises(ValueError, match="block_group_size=True"):
        recognise(config_of("llada") | {"block_group_size": True})


@pytest.mark.parametrize("field", ["activation_type", "block_type", "include_bias", "layer_norm_type", "rope"])
def test_a_missing_field_counts_as_what_llada_takes(field):
    config = config_of("llada")
    del config[field]
    with pytest.raises(ValueError, match=f"{field}="):
        recognise(config)


@pytest.mark.parametrize(
    ("name", "field"),
    [("llada", "n_heads"), ("lladamoe", "num_experts"), ("dream", "hidden_size"), ("llada2", "n_group")],
)
def test_a_field_that_must_be_there(name, field):
    with pytest.raises(ValueError, match=f"must have {field}"):
        recognise(config_of(name) | {field: None})


def test_sizes_that_contradict_each_other():
    with pytest.raises(ValueError, match="moe_layer_freq must be a list of 3 zeros and ones, got"):
        recognise(config_of("lladamoe") | {"moe_layer_freq": [1, 1]})
    with pytest.raises(ValueError, match="rotary_dim must be partial_rotary_factor"):
        recognise(config_of("llada2") | {"rotary_dim": 8})
    with pytest.raises(ValueError, match="n_heads must divide"):
        recognise(config_of("llada") | {"n_heads": 5})
    with pytest.raises(ValueError, match="n_kv_heads must be 1"):
        recognise(config_of("llada") | {"multi_query_attention": True})


def test_a_mask_token_beyond_the_vocabulary():
    with pytest.raises(ValueError, match="mask_token_id must be an id from 0 to 255"):
        recognise(config_of("dream") | {"mask_token_id": 256}).config()


def test_families_are_told_apart_by_content():
    assert recognise(config_of("lladamoe")).family == "llada_moe"
    assert recognise(config_of("lladamoe") | {"model_type": "lladamoe"}).family == "llada_moe"
    assert recognise(config_of("llada")).family == "llada"
    assert recognise(config_of("llada2") | {"model_type": "llada2_moe_veomni"}).family == "llada2"
    for model_type in ("llama", "bert", "qwen3_moe", "bailing_hybrid", None):
        assert recognise({"model_type": model_type}) is None


def test_values_that_only_look_like_settings():
    """RND1 says False where others say null."""
    config = recognise(config_of("rnd1")).config()
    assert config.sliding_window is None
    assert getattr(config, "rope_scaling", None) in (None, getattr(config, "rope_parameters", None))


def test_experts_of_llada_moe_are_never_normalised():
    assert recognise(config_of("lladamoe") | {"norm_topk_prob": True}).config().norm_topk_prob is False


def test_mask_tokens_that_no_file_names():
    assert recognise(config_of("lladamoe") | {"vocab_size": 157184}).mask_token_id == 156895
    assert recognise(config_of("llada2") | {"vocab_size": 157184}).mask_token_id == 156895
    without = {name: value for name, value in config_of("rnd1").items() if name != "mask_token_id"}
    assert recognise(without | {"vocab_size": 151936}).mask_token_id == 151669


@pytest.mark.parametrize("get", [get_config, get_model])
def test_code_of_no_known_family_does_not_run(get, tmp_path):
    settings = {"model_type": "new-diffusion", "auto_map": {"AutoModel": "modeling.Model", "AutoConfig": "modeling.C"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "modeling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ValueError, match=r"'new-diffusion' is of no known family .*trust_remote_code=True would run"):
        get(model_name_or_path=str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_cannot_be_mapped_says_why(tmp_path):
    config = config_of("llada") | {"alibi": True, "auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"alibi=True .*trust_remote_code=True would run"):
        get_model(model_name_or_path=str(tmp_path))


def test_code_that_comes_with_a_known_family_does_not_run(tmp_path):
    """The same folder loads without its code, trusted or not."""
    config = config_of("llada") | {"auto_map": {"AutoModel": "m.M", "AutoConfig": "m.C", "AutoModelForCausalLM": "m.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "m.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "model.safetensors").symlink_to(CHECKPOINTS / "llada" / "model.safetensors")
    for trusted in (False, True):
        get_model(model_name_or_path=str(tmp_path), trust_remote_code=trusted)
    assert not (tmp_path / "ran").exists()


def test_a_configuration_of_one_s_own_must_have_the_family():
    from transformers import LlamaConfig

    with pytest.raises(ValueError, match="must come from get_config, got a LlamaConfig"):
        get_model(model_name_or_path=str(CHECKPOINTS / "llada"), config=LlamaConfig(is_causal=False))


CODE = """
from transformers import PretrainedConfig

class OwnConfig(PretrainedConfig):
    model_type = "llada"
"""


def test_trusted_code_of_a_checkpoint_that_cannot_be_mapped(tmp_path):
    """AutoConfig would take the class that is registered for the type."""
    config = config_of("llada") | {"alibi": True, "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "configuration_own.py").write_text(CODE)
    with pytest.raises(ValueError, match=r"alibi=True .* trust_remote_code=True would run"):
        get_config(model_name_or_path=str(tmp_path))
    own = get_config(model_name_or_path=str(tmp_path), trust_remote_code=True)
    assert type(own).__name__ == "OwnConfig" and own.alibi is True
