"""Small tokenizers in the files of the official checkpoints: a byte-level BPE, and the family's special tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXT = Path(__file__).read_text(encoding="utf-8").splitlines()
WORDS = 300  # of the BPE, before special tokens
ROWS = 330  # of the model's embedding
# how Qwen2 splits a text into words
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
# as published: begins an answer whether a generation prompt is asked for or not
LLADA_CHAT = (
    "{% for message in messages %}{% if loop.index0 == 0 %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
QWEN3_CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
DREAM_CODE = {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}


class Official(NamedTuple):
    """What a family publishes.

    special: special tokens, from the id `WORDS` on.
    settings: of tokenizer_config.json.
    config: of config.json; a text in `mask_token_id`, `eos_token_id` and so on stands for the token's id.
    slow: the vocabulary is in vocab.json and merges.txt, without a tokenizer.json.
    """

    special: tuple[str, ...]
    settings: dict
    config: dict
    slow: bool = False


_LLADA = ("<|startoftext|>", "<|endoftext|>", "[CLS]", "[gMASK]", "<|mdm_mask|>", "<role>", "</role>")
_LLADA_SETTINGS = dict(
    tokenizer_class="PreTrainedTokenizerFast",
    add_bos_token=False,
    bos_token="<|startoftext|>",
    eos_token="<|endoftext|>",
    pad_token="<|endoftext|>",
    cls_token="[CLS]",
)
_LLADA_CONFIG = dict(
    model_type="llada",
    architectures=["LLaDAModelLM"],
    auto_map={"AutoConfig": "configuration_llada.LLaDAConfig", "AutoModel": "modeling_llada.LLaDAModelLM"},
    vocab_size=ROWS,
    embedding_size=ROWS,
    mask_token_id="<|mdm_mask|>",
    eos_token_id="<|endoftext|>",
    pad_token_id="<|endoftext|>",
)
_ROLE_TOKENS = ("<|endoftext|>", "<role>", "</role>", "<|role_end|>", "<|mask|>")
_ROLE_SETTINGS = dict(
    tokenizer_class="PreTrainedTokenizerFast", eos_token="<|endoftext|>", pad_token="<|endoftext|>", fast_tokenizer=True
)
_QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN_SETTINGS = dict(tokenizer_class="Qwen2Tokenizer", bos_token=None, pad_token="<|endoftext|>", errors="replace")

OFFICIAL = {
    "llada": Official(_LLADA + HEADERS, _LLADA_SETTINGS | dict(chat_template=LLADA_CHAT), _LLADA_CONFIG),
    "llada-base": Official(_LLADA, _LLADA_SETTINGS, _LLADA_CONFIG),
    "llada_moe": Official(
        _ROLE_TOKENS,
        _ROLE_SETTINGS,
        dict(
            model_type="llada",
            architectures=["LLaDAMoEModelLM"],
            expert_intermediate_size=48,
            vocab_size=ROWS,
            pad_token_id="<|endoftext|>",
        ),
    ),
    "llada2": Official(
        _ROLE_TOKENS,
        _ROLE_SETTINGS,
        dict(model_type="llada2_moe", architectures=["LLaDA2MoeModelLM"], vocab_size=ROWS, pad_token_id=WORDS),
    ),
    "dream": Official(
        (*_QWEN, "<|beginoftext|>", "<|mask|>"),
        dict(
            tokenizer_class="DreamTokenizer",
            auto_map=DREAM_CODE,
            bos_token="<|beginoftext|>",
            eos_token="<|endoftext|>",
            pad_token="<|endoftext|>",
            mask_token="<|mask|>",
            additional_special_tokens=["<|beginoftext|>", "<|mask|>"],
            errors="replace",
        ),
        dict(
            model_type="Dream",
            architectures=["DreamModel"],
            vocab_size=ROWS,
            mask_token_id="<|mask|>",
            pad_token_id="<|endoftext|>",
            eos_token_id="<|endoftext|>",
        ),
        slow=True,
    ),
    # the id of RND1's mask is the first one after Qwen3's tokenizer, which has no token for it
    "rnd1": Official(
        _QWEN,
        _QWEN_SETTINGS | dict(eos_token="<|im_end|>"),
        dict(
            model_type="rnd1",
            architectures=["RND1LM"],
            vocab_size=ROWS,
            mask_token_id=WORDS + len(_QWEN),
            eos_token_id="<|im_end|>",
            pad_token_id="<|endoftext|>",
        ),
    ),
    "a2d": Official(
        (*_QWEN, "<|mask|>"),
        _QWEN_SETTINGS | dict(eos_token="<|im_end|>", mask_token="<|mask|>", chat_template=QWEN3_CHAT),
        dict(model_type="a2d-qwen3", architectures=["A2DQwen3LMHeadModel"], vocab_size=ROWS, eos_token_id="<|im_end|>"),
    ),
    "a2d-llama": Official(
        ("<|begin_of_text|>", "<|end_of_text|>", *HEADERS, "<|reserved_special_token_0|>"),
        dict(tokenizer_class="PreTrainedTokenizerFast", bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>"),
        dict(
            model_type="a2d-llama",
            architectures=["A2DLlamaLMHeadModel"],
            vocab_size=ROWS,
            bos_token_id="<|begin_of_text|>",
            eos_token_id="<|end_of_text|>",
        ),
    ),
}


def write(name: str, folder: Path, **config: object) -> Path:
    """Write the tokenizer and the configuration of a family; `config` replaces fields of the latter."""
    official = OFFICIAL[name]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = bpe()
    special = [AddedToken(token, special=True, normalized=False) for token in official.special]
    ids = {token: WORDS + number for number, token in enumerate(official.special)}
    settings = {"added_tokens_decoder": {str(i): _described(t) for t, i in ids.items()}} | official.settings
    if official.slow:
        tokenizer.model.save(str(folder))
        (folder / "added_tokens.json").write_text(json.dumps(ids))
        (folder / "tokenization_dream.py").write_text("raise AssertionError('code that comes with a model has run')\n")
    else:
        tokenizer.add_special_tokens(special)
        tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    fields = official.config | config
    fields = {k: ids.get(v, v) if isinstance(v, str) and k.endswith("_token_id") else v for k, v in fields.items()}
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def token_id(name: str, token: str) -> int:
    """The id that `token` has in a family's published files."""
    return WORDS + OFFICIAL[name].special.index(token)


def bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=WORDS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    assert tokenizer.get_vocab_size() == WORDS
    return tokenizer


def _described(token: str) -> dict:
    return dict(content=token, lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)
