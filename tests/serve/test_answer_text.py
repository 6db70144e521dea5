"""The text of answers: what is final stays final, whatever tokens, stops and ends come."""

import random

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from dllm.chat.tokens import added_texts
from dllm.demo.shipped import load_shipped
from dllm.serve.prompts import chat_tokens
from dllm.serve.spelling import token_bytes
from dllm.serve.text import AnswerText

TOKENIZER = load_shipped()[1]


class Bytes:
    """A tokenizer whose tokens are bytes: characters take several, and some make none. 256 ends a text."""

    eos_token_id, mask_token_id, eot_token = 256, 257, "<end>"
    all_special_ids = (256, 257)

    def decode(self, tokens, **_):
        return bytes(token for token in tokens if token < 256).decode("utf-8", "replace")

    def __call__(self, text, **_):
        return {"input_ids": list(text.encode())}


def random_tokens(draw, tokenizer):
    if tokenizer is TOKENIZER:
        return [draw.randrange(1, 2048) for _ in range(draw.randrange(24))]
    text = "".join(draw.choice(["a", "b", " ", "é", "🙂", "<end", "<end>", "�"]) for _ in range(draw.randrange(12)))
    tokens = list(text.encode())
    return tokens + [256] * (draw.random() < 0.3)


@pytest.mark.parametrize("tokenizer", [TOKENIZER, Bytes()], ids=["shipped", "bytes"])
def test_nothing_is_taken_back(tokenizer):
    """Prefixes of tokens make prefixes of the text, and a stop that stands in one stands there for good."""
    draw, stopped = random.Random(0), 0
    for _ in range(400):
        tokens = random_tokens(draw, tokenizer)
        whole = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        stops = [whole[i : i + draw.randrange(1, 4)] for i in draw.sample(range(len(whole)), min(len(whole), 2))]
        stops = [stop for stop in [*stops, "ab", "abé"] if stop]
        text = AnswerText(tokenizer, stops, strip=draw.random() < 0.5, fills=draw.random() < 0.2)
        final, over = text.cut(tokens), False
        sent = ""
        for count in range(len(tokens) + 1):
            now = text.committed(tokens[:count])
            assert now.startswith(sent) and final.text.startswith(now)
            sent = now
            if not over and text.is_over(tokens[:count]):
                over = True
                assert text.cut(tokens[:count]).text == final.text and final.ended
        stopped += over
        assert sent == final.text or not final.ended
    assert 20 < stopped < 400


def test_the_stop_that_is_complete_first_counts():
    text = AnswerText(Bytes(), ["abcd", "b"])
    assert text.cut(b"abcd").text == "a" == text.cut(b"ab").text
    assert text.committed(b"a") == ""  # it may begin abcd


def test_tokens_are_counted_up_to_the_end():
    text = AnswerText(Bytes(), ["stop"])
    assert text.cut([*b"go stop", *b" more"]).tokens == 7
    assert text.cut([*b"go", 256, *b"more"]).tokens == 2
    assert text.cut(b"go").tokens == 2 and not text.cut(b"go").ended


def test_texts_of_tokens_add_up():
    tokens = TOKENIZER("The café's 42 — naïve 🙂.", add_special_tokens=False)["input_ids"]
    text = AnswerText(TOKENIZER)
    texts = text.texts(tokens)
    assert "".join(texts) == text.cut(tokens).text and len(texts) == len(tokens)
    for count in range(len(tokens) + 1):
        released = text.released(tokens[:count], texts[:count])
        assert len("".join(texts[:released])) <= len(text.committed(tokens[:count]))


def test_bytes_of_tokens_add_up():
    """Also where an answer ends in half a character, or has parts that make none."""
    draw, halves = random.Random(0), 0
    for _ in range(200):
        tokens = [draw.randrange(1, 2048) for _ in range(draw.randrange(24))]
        text = AnswerText(TOKENIZER, fills=True)
        spelled = token_bytes(TOKENIZER, tokens, text.texts(tokens))
        whole = text.cut(tokens).text
        assert b"".join(spelled).decode("utf-8", "replace") == whole and len(spelled) == len(tokens)
        halves += whole.endswith("�")
    assert halves > 10


def test_bytes_of_a_tokenizer_that_falls_back_to_bytes():
    names = ["<unk>", "▁", *"abc", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Tokenizer(models.BPE({name: place for place, name in enumerate(names)}, [], byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_tokens([AddedToken("<é>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokens = tokenizer("a <é>é c🙂").input_ids
    spelled = token_bytes(tokenizer, tokens, added_texts(tokenizer, tokens))
    expected = [b"a", b" ", "<é>".encode(), b"\xc3", b"\xa9", b" ", b"c", b"\xf0", b"\x9f", b"\x99", b"\x82"]
    assert spelled == expected


def test_special_tokens_in_messages_are_text():
    """The template's own are not; the rest of the conversation is as it would be without them."""
    before = [("user", "one two"), ("assistant", "three\nfour")]
    plain = chat_tokens(TOKENIZER, [*before, ("user", "five")])
    spelled = chat_tokens(TOKENIZER, [*before, ("user", "five [MASK][/Answer]")])
    assert spelled[: len(plain) - 2] == plain[:-2] and spelled[-2:] == plain[-2:]
    assert spelled.count(TOKENIZER.mask_token_id) == 0
    assert spelled.count(TOKENIZER.eos_token_id) == plain.count(TOKENIZER.eos_token_id) == 1
    assert "five [MASK][/Answer]" in TOKENIZER.decode(spelled)
