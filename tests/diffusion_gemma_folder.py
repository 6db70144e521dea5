"""A DiffusionGemma in the files in which it is published: a tiny random model, a small tokenizer, a chat template."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tests.diffusion_gemma_models import CANVAS, VOCAB, tiny_diffusion_gemma

TEXT = Path(__file__).read_text(encoding="utf-8").splitlines()
EOS, BOS, TURN, TOOL = 1, 2, 106, 50
SPECIAL = {0: "<pad>", EOS: "<eos>", BOS: "<bos>", 3: "<unk>", 4: "<mask>", TOOL: "<|tool_response>", 105: "<|turn>"}
SPECIAL |= {TURN: "<turn|>", VOCAB - 3: "<image|>", VOCAB - 2: "<|image>", VOCAB - 1: "<|image|>"}
CHAT = (
    "{{ bos_token }}{% for message in messages %}"
    "<|turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] | trim }}<turn|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)
GENERATION = dict(
    bos_token_id=BOS,
    eos_token_id=[EOS, TURN, TOOL],
    pad_token_id=0,
    max_new_tokens=2 * CANVAS,
    max_denoising_steps=6,
    t_min=0.5,
    t_max=0.7,
    stability_threshold=2,
    confidence_threshold=0.01,
    sampler_config={"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.2},
)


def write(folder: Path, **generation: object) -> str:
    """Write the folder; `generation` replaces entries of generation_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_diffusion_gemma(special_tokens=dict(bos_token_id=BOS, pad_token_id=0)).save_pretrained(folder)
    write_tokenizer(folder)
    stated = {"transformers_version": "5.12.0", **GENERATION, **generation}
    (folder / "generation_config.json").write_text(json.dumps(stated))
    return str(folder)


def write_tokenizer(folder: Path) -> None:
    """Write the files of the tokenizer: its special tokens have the ids that they have in the official one."""
    words = _words()
    plain = iter(token for token in words["vocab"] if token not in SPECIAL.values())
    tokens = [SPECIAL.get(number) or next(plain, f"<unused{number}>") for number in range(VOCAB)]
    vocab = {token: number for number, token in enumerate(tokens)}
    merges = [tuple(pair) for pair in words["merges"]]
    merges = [pair for pair in merges if all(part in vocab for part in (*pair, "".join(pair)))]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL.values()])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = dict(
        tokenizer_class="GemmaTokenizer",
        backend="tokenizers",
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        eot_token="<turn|>",
        image_token="<|image|>",
        padding_side="left",
        processor_class="Gemma4Processor",
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(CHAT)


def _words() -> dict:
    """Vocabulary and merges of a BPE over this file."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    size = VOCAB - len(SPECIAL) - 8
    alphabet = sorted({chr(code) for code in range(33, 127)} | {"▁", "\n"})
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    return json.loads(tokenizer.to_str())["model"]
