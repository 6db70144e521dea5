"""Running text as token ids."""

import functools
import itertools

import pytest
import torch

from dllm.data.tokens import prepend_bos, tokenize_and_group
from dllm.demo.shipped import load_shipped

TEXTS = ["Hello, how are you?", "", "What is 12 * 4?", "Good"]


@pytest.fixture(scope="module")
def tokenizer():
    return load_shipped()[1]


def joined(samples) -> list[int]:
    return list(itertools.chain.from_iterable(samples))


def one_by_one(tokenizer, **options) -> list[list[int]]:
    return [tokenizer.encode(text, **options) for text in TEXTS]


@pytest.mark.parametrize("special", [False, True])
def test_nothing_is_lost_but_the_tail(tokenizer, special):
    whole = joined(one_by_one(tokenizer, add_special_tokens=special))
    options = dict(seq_length=5, add_special_tokens=special)
    cut = tokenize_and_group({"text": TEXTS}, tokenizer, **options)["input_ids"]
    assert joined(cut) == whole[: len(whole) // 5 * 5] and {len(sample) for sample in cut} == {5}
    kept = tokenize_and_group({"text": TEXTS}, tokenizer, drop_tail=False, **options)
    assert joined(kept["input_ids"]) == whole and len(kept["input_ids"][-1]) == (len(whole) % 5 or 5)
    assert kept["labels"] == kept["input_ids"] and kept["labels"][0] is not kept["input_ids"][0]


def test_texts_end(tokenizer):
    end = tokenizer.eos_token_id
    found = tokenize_and_group({"body": TEXTS}, tokenizer, text_field="body", insert_eos=True, seq_length=1)
    expected = joined([*tokens, end] for tokens in one_by_one(tokenizer, add_special_tokens=False))
    assert [sample[0] for sample in found["input_ids"]] == expected
    twice = tokenize_and_group({"text": [tokenizer.eos_token]}, tokenizer, insert_eos=True, seq_length=1)
    assert twice["input_ids"] == [[end]]


def test_over_a_data_set_and_a_stream(tokenizer):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": TEXTS})
    group = functools.partial(tokenize_and_group, tokenizer=tokenizer, seq_length=4)
    direct = group({"text": TEXTS})["input_ids"]
    for data in (rows, rows.to_iterable_dataset()):
        found = data.map(group, batched=True, remove_columns=["text"])
        assert [row["input_ids"] for row in found] == direct


def test_the_column_of_the_texts_is_found(tokenizer):
    group = functools.partial(tokenize_and_group, tokenizer=tokenizer, seq_length=1)
    for column, asked in (("Body", "body"), ("Text", "text"), ("raw_content", "text")):
        assert group({"id": [1], column: TEXTS}, text_field=asked) == group({"text": TEXTS})
    for columns in (("Body", "BODY"), ("text", "raw_content")):
        with pytest.raises(ValueError, match=f"must have the column 'body', got {', '.join(columns)}"):
            group(dict.fromkeys(columns, TEXTS), text_field="body")


def test_no_text_at_all(tokenizer):
    assert tokenize_and_group({"text": []}, tokenizer) == {"input_ids": [], "labels": []}
    assert tokenize_and_group({"text": [""]}, tokenizer, drop_tail=False) == {"input_ids": [], "labels": []}


@pytest.mark.parametrize(
    ("examples", "options", "rule"),
    [
        ({"body": TEXTS}, {}, "column 'text', got body"),
        ({"text": ["a", None]}, {}, "text must be text, got None"),
        ({"text": TEXTS}, {"seq_length": 0}, "at least 1, got 0"),
    ],
)
def test_what_is_no_text(tokenizer, examples, options, rule):
    with pytest.raises(ValueError, match=rule):
        tokenize_and_group(examples, tokenizer, **options)


def test_one_more_token_at_the_beginning():
    batch = dict(
        input_ids=torch.tensor([[5, 6], [7, 0]]),
        labels=torch.tensor([[-100, 6], [7, -100]]),
        attention_mask=torch.tensor([[1, 1], [1, 0]]),
        position_ids=torch.tensor([[0, 1], [0, 1]]),
        length=2,
    )
    found = prepend_bos(batch, bos_token_id=9)
    assert found["input_ids"].tolist() == [[9, 5, 6], [9, 7, 0]]
    assert found["labels"].tolist() == [[-100, -100, 6], [-100, 7, -100]]
    assert found["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert found["position_ids"].tolist() == [[0, 1, 2], [0, 1, 2]]
    assert found["length"] == 2 and batch["input_ids"].shape == (2, 2)
    assert prepend_bos(batch, 9, label_pad_token_id=0)["labels"][:, 0].tolist() == [0, 0]


def test_what_has_no_beginning():
    ids = torch.tensor([[5, 6]])
    with pytest.raises(TypeError, match="must be a token id, got None"):
        prepend_bos({"input_ids": ids}, None)
    with pytest.raises(ValueError, match="right padding"):
        prepend_bos({"input_ids": ids, "attention_mask": torch.tensor([[0, 1]])}, 9)
    with pytest.raises(ValueError, match=r"labels must have the shape of input_ids \[1, 2\], got \[1, 3\]"):
        prepend_bos({"input_ids": ids, "labels": torch.ones(1, 3)}, 9)
