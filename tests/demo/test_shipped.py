"""The bundled model reads a text as it did when it was trained, under every version of transformers: all that its card,
README and docs say of it is said of these token ids."""

from __future__ import annotations

import pytest

from dllm.demo.shipped import SHIPPED, load_shipped
from dllm.demo.training.tokenizer import build_tokenizer
from dllm.models import get_tokenizer

CARD = (
    "Lily can run 12 kilometers per hour for 4 hours. After that, she runs 6 kilometers per hour. "
    "How many kilometers can she run in 8 hours?"
)
IDS = {
    "What is 7 * 8?": "582 424 270 433 269 37",
    "48 + 24 = ?": "295 470 289 287 227 37",
    "8 - 4": "269 504 265",
    " What": "582",
    "What": "582",
    "[Question]\nWhat is 12 * 4?\n[/Question]\n\n[Answer]\n": "1 582 424 271 433 265 37 2 3",
    "Hello, how are you?": "1231 18 592 478 561 37",
    "zxqv Größe 98765": "227 96 94 87 92 773 88 134 121 134 260 75 384 29 28 27",
    CARD: (
        "678 541 529 271 488 450 434 456 265 284 20 576 437 18 440 542 267 488 450 434 20 "
        "476 465 488 541 440 529 475 269 284 37"
    ),
}


@pytest.mark.parametrize("text", IDS, ids=range(len(IDS)))
def test_ids(text):
    for tokenizer in (load_shipped()[1], get_tokenizer(model_name_or_path=str(SHIPPED))):
        assert " ".join(map(str, tokenizer(text).input_ids)) == IDS[text]


def test_ids_of_the_template():
    tokenizer = load_shipped()[1]
    talk = [{"role": "user", "content": "What is 12 * 4?"}]
    found = tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert " ".join(map(str, found)) == IDS["[Question]\nWhat is 12 * 4?\n[/Question]\n\n[Answer]\n"]


def test_a_tokenizer_that_is_saved_reads_as_before(tmp_path):
    built = build_tokenizer(["How are you?"] * 9, 512, 20, 64)
    built.save_pretrained(tmp_path)
    again = get_tokenizer(model_name_or_path=str(tmp_path))
    for text in ("How are you?", "you", "12 ants", "[Question]\nHow"):
        assert again(text).input_ids == built(text).input_ids
    assert again("you").input_ids == again(" you").input_ids
