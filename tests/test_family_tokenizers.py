"""Tokenizers of the families, from the files that their authors publish: tokens, templates, checks, saved copies."""

from __future__ import annotations

import copy
import json
import pickle
from types import SimpleNamespace

import pytest
import torch
import transformers

from dllm.chat.trim import sample_trim
from dllm.core.samplers import LLaDASampler
from dllm.data.chat import default_sft_map_fn
from dllm.models import get_tokenizer
from dllm.models.families import family_at, family_in
from dllm.models.templates import WITHOUT_THINKING
from tests.official_tokenizers import HEADERS, OFFICIAL, ROWS, WORDS, bpe, token_id, write

every_family = pytest.mark.parametrize("name", OFFICIAL)
TALK = [
    {"role": "user", "content": "How are you?"},
    {"role": "assistant", "content": "I am fine."},
    {"role": "user", "content": " 4 times 12? "},
]


def load(folder):
    return get_tokenizer(model_name_or_path=folder)


def rendered(tokenizer, messages=TALK, **options):
    return tokenizer.apply_chat_template(messages, tokenize=False, **options)


# mask, bos, eos, pad, the text that ends a turn, and whether that is one token
TOKENS = {
    "llada": ("<|mdm_mask|>", "<|startoftext|>", "<|endoftext|>", "<|endoftext|>", "<|eot_id|>", True),
    "llada-base": ("<|mdm_mask|>", "<|startoftext|>", "<|endoftext|>", "<|endoftext|>", "<|eot_id|>", False),
    "llada_moe": ("<|mask|>", "<|endoftext|>", "<|endoftext|>", "<|endoftext|>", "<|role_end|>", True),
    "llada2": ("<|mask|>", "<|endoftext|>", "<|endoftext|>", "<|endoftext|>", "<|role_end|>", True),
    "dream": ("<|mask|>", "<|beginoftext|>", "<|endoftext|>", "<|endoftext|>", "<|im_end|>", True),
    "rnd1": ("<|mask|>", "<|endoftext|>", "<|im_end|>", "<|endoftext|>", None, False),
    "a2d": ("<|mask|>", "<|endoftext|>", "<|im_end|>", "<|endoftext|>", "<|im_end|>", True),
    "a2d-llama": ("<|mask|>", "<|begin_of_text|>", "<|end_of_text|>", "<|end_of_text|>", "<|eot_id|>", True),
}


@every_family
def test_special_tokens(name, tmp_path):
    tokenizer = load(write(name, tmp_path))
    mask, bos, eos, pad, end, single = TOKENS[name]
    got = (tokenizer.mask_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.eot_token)
    assert got == (mask, bos, eos, pad, end)
    assert tokenizer.eot_token_id == (token_id(name, end) if single else None)
    assert tokenizer.mask_token_id == (
        token_id(name, mask) if mask in OFFICIAL[name].special else WORDS + len(OFFICIAL[name].special)
    )
    assert tokenizer.padding_side == "right" and list(tokenizer("How")) == ["input_ids", "attention_mask"]
    assert tokenizer(mask, add_special_tokens=False).input_ids == [tokenizer.mask_token_id]


@every_family
def test_texts_are_encoded_as_the_files_say(name, tmp_path):
    tokenizer, text = load(write(name, tmp_path)), "How are you?\n\n  I'm 1234 — né\u0301e 世界! <|im_end|"
    assert tokenizer(text, add_special_tokens=False).input_ids == bpe().encode(text).ids
    assert tokenizer.decode(tokenizer("How are you?").input_ids) == "How are you?"


def test_dream_is_read_by_qwens_class_without_its_code(tmp_path):
    """Its tokenizer_config.json names a class in a file beside it; that file would raise."""
    tokenizer = load(write("dream", tmp_path))
    assert isinstance(tokenizer, transformers.Qwen2TokenizerFast)
    again = get_tokenizer(model_name_or_path=tmp_path, trust_remote_code=True)
    assert again.get_vocab() == tokenizer.get_vocab()


# Templates: the conversation TALK, and what is added where an answer is to be generated

LLADA = (
    "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nHow are you?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nI am fine.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n4 times 12?<|eot_id|>"
)
ROLES = (
    "<role>SYSTEM</role>detailed thinking off<|role_end|><role>HUMAN</role>How are you?<|role_end|>"
    "<role>ASSISTANT</role>I am fine.<|role_end|><role>HUMAN</role> 4 times 12? <|role_end|>"
)
QWEN = (
    "<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\nI am fine.<|im_end|>\n"
    "<|im_start|>user\n 4 times 12? <|im_end|>\n"
)
CHATS = {
    "llada": (LLADA, "<|start_header_id|>assistant<|end_header_id|>\n\n"),
    "llada-base": (LLADA, "<|start_header_id|>assistant<|end_header_id|>\n\n"),
    "llada_moe": (ROLES, "<role>ASSISTANT</role>"),
    "llada2": (ROLES, "<role>ASSISTANT</role>"),
    "dream": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" + QWEN,
        "<|im_start|>assistant\n",
    ),
    "a2d": (QWEN, "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    "a2d-llama": (
        LLADA.replace("<|startoftext|>", "<|begin_of_text|>"),
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
}


@pytest.mark.parametrize("name", CHATS)
def test_chats(name, tmp_path):
    tokenizer, (text, opening) = load(write(name, tmp_path)), CHATS[name]
    assert rendered(tokenizer) == text
    assert rendered(tokenizer, add_generation_prompt=True) == text + opening


@pytest.mark.parametrize("name", CHATS)
def test_no_answer_is_opened_after_an_answer(name, tmp_path):
    tokenizer = load(write(name, tmp_path))
    tokenizer.chat_template = tokenizer.chat_template if name != "a2d" else None  # Qwen's own opens one
    if name == "a2d":
        tokenizer.save_pretrained(tmp_path)
        tokenizer = load(tmp_path)
    assert rendered(tokenizer, TALK[:2], add_generation_prompt=True) == rendered(tokenizer, TALK[:2])


@pytest.mark.parametrize("name", ["llada", "llada2", "dream", "a2d"])
def test_a_system_message(name, tmp_path):
    begins = {
        "llada": "<|startoftext|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|><|start_header_id|>us",
        "llada2": "<role>SYSTEM</role>Be kind.<|role_end|><role>HUMAN</role>How",
        "dream": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user",
        "a2d": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user",
    }
    system = {"role": "system", "content": "Be kind."}
    assert rendered(load(write(name, tmp_path)), [system, *TALK]).startswith(begins[name])


def test_a_base_model_without_turns_has_no_template(tmp_path):
    tokenizer = load(write("rnd1", tmp_path))
    assert tokenizer.chat_template is None and tokenizer.eot_token is None
    prompt = tokenizer("Question: How are you?\nAnswer:").input_ids
    ends = [*prompt, *tokenizer(" I am fine.").input_ids, tokenizer.eos_token_id, 5]
    assert sample_trim(tokenizer, [ends], [prompt]) == [" I am fine."]


def test_ones_own_template_is_kept_unless_it_opens_answers_unasked(tmp_path):
    own = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    settings = write("llada", tmp_path) / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"chat_template": own}))
    assert load(tmp_path).chat_template == own


def test_reasoning_is_off_by_default_and_can_be_turned_on(tmp_path):
    tokenizer = load(write("a2d", tmp_path))
    assert "<think>" not in rendered(tokenizer, add_generation_prompt=True, enable_thinking=True)
    assert rendered(tokenizer, add_generation_prompt=True, enable_thinking=False) == "".join(CHATS["a2d"])
    tokenizer.save_pretrained(tmp_path)
    assert load(tmp_path).chat_template.count(WITHOUT_THINKING) == 1


@pytest.mark.parametrize("name", CHATS)
def test_answers_are_learnt_and_end_where_the_turn_ends(name, tmp_path):
    tokenizer = load(write(name, tmp_path))
    sample = default_sft_map_fn({"messages": TALK[:2]}, tokenizer=tokenizer)
    learnt = tokenizer.decode([token for token in sample["labels"] if token != -100])
    assert learnt.removeprefix("<think>\n\n</think>\n\n").startswith("I am fine." + tokenizer.eot_token)
    prompt = sample["input_ids"][: sample["prompt_len"]]
    assert sample_trim(tokenizer, [sample["input_ids"]], [prompt]) == ["I am fine."]


# Saved copies


@every_family
def test_a_saved_tokenizer_is_the_same(name, tmp_path):
    """With and without the model's configuration beside it, and as copies in memory."""
    tokenizer = load(write(name, tmp_path / "official"))
    tokenizer.save_pretrained(tmp_path / "alone")
    tokenizer.save_pretrained(tmp_path / "beside")
    fields = dict(model_type="qwen2", vocab_size=ROWS, dllm={"family": family_at(tmp_path / "official").name})
    (tmp_path / "beside" / "config.json").write_text(json.dumps(fields))
    copies = [copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))]
    for again in [*map(load, [tmp_path / "alone", tmp_path / "beside"]), *copies]:
        assert again.get_vocab() == tokenizer.get_vocab() and again.chat_template == tokenizer.chat_template
        for kind in ("mask", "bos", "eos", "pad", "eot"):
            for field in (f"{kind}_token", f"{kind}_token_id"):
                assert getattr(again, field) == getattr(tokenizer, field)
        assert again.padding_side == "right"
    assert "auto_map" not in (tmp_path / "alone" / "tokenizer_config.json").read_text()


# Checks against the model

DISAGREE = {
    "another mask": (
        "dream",
        dict(mask_token_id=WORDS + 1),
        r"the mask token '<\|mask\|>' of the tokenizer is 304, mask_t",
    ),
    "another mask, undeclared": (
        "llada",
        dict(mask_token_id=7),
        r"'<\|mdm_mask\|>' of the tokenizer is 304, mask_token_id",
    ),
    "a mask outside": (
        "llada2",
        dict(vocab_size=WORDS + 4),
        r"mask token '<\|mask\|>' is 304, and the model's embedding has 304",
    ),
    "a reserved token outside": (
        "a2d-llama",
        dict(vocab_size=WORDS + 4, mask_token_id=None),
        r"reserved_special_token_0\|>' is 305, and the model's embedding has 304",
    ),
    "a mask that no tokenizer can have": (
        "rnd1",
        dict(mask_token_id=WORDS + 9),
        "of the tokenizer is 303, mask_token_id of",
    ),
    "an end of turn outside": ("llada", dict(embedding_size=305), r"the eot token '<\|eot_id\|>' is 309"),
    "a longer vocabulary": (
        "llada-base",
        dict(vocab_size=306, embedding_size=None),
        "last token '</role>' is 306, and",
    ),
    "another vocabulary": (
        "llada2",
        dict(pad_token_id=20, eos_token_id=20),
        "the model has eos_token_id 20, pad_token_id 20, the tokenizer bos_token_id 300, eos_token_id 300, pad",
    ),
}


@pytest.mark.parametrize("case", DISAGREE)
def test_a_tokenizer_of_another_model(case, tmp_path):
    name, config, message = DISAGREE[case]
    with pytest.raises(ValueError, match=r"tokenizer and model at .* disagree: .*" + message):
        load(write(name, tmp_path, **config))


def test_llama_takes_a_reserved_token_where_there_is_no_row_for_a_mask(tmp_path):
    """Llama 3 has 128,256 tokens and as many rows: an added mask would lie outside. A declared one gains a row."""
    assert (
        load(write("a2d-llama", tmp_path / "full", vocab_size=WORDS + 6)).mask_token == "<|reserved_special_token_0|>"
    )
    assert load(write("a2d-llama", tmp_path / "room", vocab_size=WORDS + 7)).mask_token == "<|mask|>"
    assert load(write("a2d", tmp_path / "declared", vocab_size=WORDS + 3)).mask_token_id == WORDS + 3


@every_family
def test_missing_header_tokens_are_noticed(name, tmp_path, caplog):
    tokenizer = load(write(name, tmp_path))
    warnings = [record.getMessage() for record in caplog.records if record.name == "dllm"]
    if name != "llada-base":
        assert not warnings
        return
    (message,) = warnings
    assert "has no token for <|start_header_id|>, <|end_header_id|>, <|eot_id|>" in message
    assert (
        "tokenizer.add_tokens(['<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>'], special_tokens=True)"
        in message
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "plain")  # a template without headers
    caplog.clear()
    assert load(tmp_path / "plain").chat_template == tokenizer.chat_template and not caplog.records
    tokenizer.chat_template = None
    tokenizer.add_tokens(list(HEADERS), special_tokens=True)
    tokenizer.save_pretrained(tmp_path)
    caplog.clear()
    assert load(tmp_path).eot_token_id == len(tokenizer) - 1 and not caplog.records


@pytest.mark.parametrize(
    "broken, error, message",
    [
        (
            lambda folder: (folder / "vocab.json").unlink(),
            OSError,
            "must have a tokenizer.json, or a vocab.json and a m",
        ),
        (
            lambda folder: (folder / "merges.txt").unlink(),
            OSError,
            "must have a tokenizer.json, or a vocab.json and a m",
        ),
        (
            lambda folder: (folder / "tokenizer_config.json").write_text("[1]"),
            ValueError,
            r"^the tokenizer at [^ ]* cannot be used: tokenizer_config\.json must hold a JSON object",
        ),
        (lambda folder: (folder / "tokenizer_config.json").write_text("{"), ValueError, "the tokenizer at"),
    ],
    ids=["no vocabulary", "no merges", "a list", "not JSON"],
)
def test_damaged_files(broken, error, message, tmp_path):
    broken(write("dream", tmp_path))
    with pytest.raises(error, match=message):
        load(tmp_path)


# Families by content


def test_families_are_told_apart_by_content(tmp_path):
    for name in OFFICIAL:
        assert family_at(write(name, tmp_path / name)).name == name.removesuffix("-base")
    assert family_at(tmp_path / "llada").name == "llada" and family_at(tmp_path) is None
    assert family_in({"model_type": "llada", "expert_intermediate_size": 8}).name == "llada_moe"
    assert family_in({"model_type": "llada2_moe_veomni"}).name == "llada2"
    assert family_in({"model_type": "llama", "masked_diffusion": {"family": "a2d"}}).name == "a2d-llama"
    assert family_in({"model_type": "llama"}) is None
    with pytest.raises(ValueError, match=r"must be one of bert, llada, .*, got 'gpt'"):
        family_in({"model_type": "llama", "masked_diffusion": {"family": "gpt"}})


# Samplers


def test_lladas_sampler_commits_any_familys_end_of_turn_last():
    tokenizer = SimpleNamespace(eot_token_id=41, eos_token_id=40, mask_token_id=3)
    sampler = LLaDASampler(torch.nn.Identity(), tokenizer)
    assert sampler._settings(None, {"confidence_eos_eot_inf": True}).begin_suppress_tokens == [40, 41]
